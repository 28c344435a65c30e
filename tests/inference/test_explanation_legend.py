import numpy as np
from PIL import Image

from deformable_detr.inference.explanation_legend import (
    Counts,
    LegendRow,
    beside_legend,
    count_rows,
    level_rows,
    panel_of,
    path_rows,
    size_rows,
    title_rows,
    zoom_rows,
)
from deformable_detr.inference.explanation_view import view_of
from deformable_detr.inference.missed import Missed
from tests.explained import BEFORE, by_hand, looking_from, white


def texts(rows):
    return [row.text for row in rows]


def test_rows_say_the_figures():
    found = by_hand()
    assert texts(title_rows(found, 0, "Decoder layer 2 of 2")) == ["dog 0.75", "Decoder layer 2 of 2, query 7"]
    assert "the largest is 0.995" in texts(size_rows(found, 0, "weight", 0.995))[0]
    assert "-0.4 to 0.4: fall of the logit of dog" in texts(size_rows(found, 0, "effect", 0.4))[0]
    levels = texts(level_rows(found, found.layers[1], 0, "weight"))
    assert levels[1:3] == ["stride 8, 25 x 38 cells: 90 %", "stride 16, 13 x 19 cells: 10 %"]
    counts = texts(count_rows(found, found.layers[1], 0, Counts(4, 2, 1, 1, ", head 1 alone")))
    assert counts == [
        "2 of 4 dots shown, head 1 alone; hidden: 1 below 1 % of the largest, 1 outside this view",
        "Half of all weight in 2 of 4 dots; outside the image: 0.2 % of it",
        "From query to query, offsets vary by less than 0.1 %, weights by 25 %",
    ]
    (path,) = texts(path_rows(found, 0, 1))
    assert (
        path == "b0: proposal of stride 16, row 5, column 9. b1 to b2: boxes after the layers; this one looks from b1."
    )
    moved = found.layers[1]._replace(reference_xyxy=found.layers[1].reference_xyxy + 2)
    (near,) = texts(path_rows(by_hand(layers=(found.layers[0], moved)), 0, 1))
    assert near.endswith("this one looks from near b1.")
    assert texts(path_rows(by_hand(proposals=(), layers=looking_from(BEFORE[0], BEFORE[0])), 0, 1)) == [
        "b0: learned reference; every layer looks from it."
    ]
    assert path_rows(by_hand(layers=()), 0, 1) == []
    assert texts(zoom_rows(view_of(white(), (0.0, 0.0, 20.0, 10.0)))) == ["Part of the image, 16.7 times as large"]


def test_a_place_without_a_detection_has_its_reason():
    missed = Missed(place=(250.0, 30.0), distance_px=0.0, score=0.1, threshold=0.5, overlap=0.0, overlapped=None)
    rows = title_rows(by_hand(missed=missed), 0, "Decoder layer 2 of 2")
    assert rows[0].text == "No detection at 250,30"
    assert "below the threshold 0.50" in rows[1].text


def test_long_names_are_broken_or_cut():
    for text in ("word " * 60, "w" * 400, "ž" * 90 + "\x1b"):
        panel = np.asarray(panel_of([LegendRow(text)]))
        assert (panel[:, -17:] == panel[0, 0]).all()
        assert (panel != panel[0, 0]).any()


def test_the_legend_lies_beside_the_view_with_a_small_map():
    image = Image.new("RGB", (300, 200), (0, 255, 0))
    view = view_of(image, (0.0, 0.0, 20.0, 10.0))
    rows = [LegendRow("one", swatch=(1, 2, 3)), LegendRow("two", bar=((4, 5, 6), (7, 8, 9)))]
    drawn = beside_legend(view, rows, image)
    assert drawn.height == 1000
    assert drawn.width > 1300
    right = np.asarray(drawn)[:, 1000:]
    for color, least in (((1, 2, 3), 100), ((4, 5, 6), 1000), ((7, 8, 9), 1000), ((0, 255, 0), 10_000)):
        assert (right == color).all(2).sum() > least
    assert not (np.asarray(beside_legend(view, rows))[:, 1000:] == (0, 255, 0)).all(2).any()
    assert beside_legend(view, rows * 40).height > 1000
