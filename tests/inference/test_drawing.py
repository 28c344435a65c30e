from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import Sample
from deformable_detr.inference import drawing
from deformable_detr.inference.drawing import class_color, contact_sheet, draw_detections, draw_objects

GRAY = (120, 121, 122)
CLASSES = ("cat", "dog", "owl")


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows], dtype=torch.float32),
        torch.tensor([class_id for _, _, class_id in rows], dtype=torch.int64),
    )


def canvas(width: int = 300, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def changed(image: Image.Image) -> np.ndarray:
    """True where the gray was painted over."""
    return (np.asarray(image) != GRAY).any(2)


def count(image: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == color).all(2).sum())


def truth(*boxes: list[float]) -> Sample:
    return Sample(
        path=Path("x.png"),
        size_wh=(300, 200),
        boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        class_ids=np.zeros(len(boxes), dtype=np.int64),
        is_crowd=np.zeros(len(boxes), dtype=bool),
        areas=np.ones(len(boxes)),
        image_id=1,
        object_ids=tuple(range(len(boxes))),
    )


def test_a_box_and_its_tag_in_the_class_s_colour():
    before = canvas()
    after = draw_detections(before, detections(([100, 80, 180, 150], 0.9, 1)), CLASSES)
    assert after.size == before.size
    assert not changed(before).any()
    for x, y in ((100, 110), (179, 110), (140, 80), (140, 149)):
        assert after.getpixel((x, y)) == class_color(1)
    assert after.getpixel((140, 115)) == GRAY
    tag = changed(after)[:78]
    assert tag.sum() > 300
    assert tag[:60].sum() == 0


def test_nothing_found_nothing_drawn():
    assert not changed(draw_detections(canvas(), detections(), CLASSES)).any()


def test_the_threshold_keeps_what_reaches_it():
    found = detections(([10, 50, 60, 90], 0.5, 0), ([200, 50, 260, 90], 0.49, 2))
    after = draw_detections(canvas(), found, CLASSES, threshold=0.5)
    assert count(after, class_color(0)) > 0
    assert count(after, class_color(2)) == 0


def test_the_best_is_on_top_in_any_order():
    boxes = ([100, 80, 180, 150], 0.3, 0), ([100, 80, 180, 150], 0.8, 1)
    for rows in (boxes, boxes[::-1]):
        after = draw_detections(canvas(), detections(*rows), CLASSES)
        assert after.getpixel((100, 115)) == class_color(1)


def test_tags_stay_in_the_picture_and_off_each_other():
    corners = [[0, 0, 40, 20], [270, 0, 300, 30], [0, 180, 30, 200], [280, 190, 300, 200]]
    found = detections(*((box, 0.9, 0) for box in corners))
    whole = count(draw_detections(canvas(), detections(([120, 90, 150, 110], 0.9, 0)), CLASSES), class_color(0))
    after = draw_detections(canvas(), found, CLASSES)
    assert count(after, class_color(0)) > 2.5 * whole
    same_place = detections(*(([120, 90, 150, 110], 0.9 - 0.01 * i, 0) for i in range(3)))
    assert count(draw_detections(canvas(), same_place, CLASSES), class_color(0)) > 1.8 * whole


@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 400, 300],
        [250, 150, 900, 900],
        [301, 0, 400, 50],
        [20, 20, 20, 20],
        [50, 50, 40, 60],
        [float("nan"), 0, 5, 5],
        [0, 0, float("inf"), 5],
        [1e9, 1e9, 2e9, 2e9],
    ],
)
def test_strange_boxes_do_no_harm(box):
    after = draw_detections(canvas(), detections((box, 0.9, 0)), CLASSES)
    assert after.size == (300, 200)


def test_what_leaves_the_picture_is_drawn_at_its_border():
    after = draw_detections(canvas(), detections(([-50, 60, 400, 300], 0.9, 0)), CLASSES)
    assert after.getpixel((0, 130)) == after.getpixel((299, 130)) == after.getpixel((150, 199)) == class_color(0)


ODD_NAMES = [
    *("été", "Ворона", "漢字", "a\nb\tc", "", "\ud800", "very long " * 30, "$x_1$"),
    *(
        "\x1b[31mred",
        "\0\x07\x7f\x9b",
        "\u202etxt.exe",
        "\u05d0\u05d1 \u0627\u0644",
        "🐈\u200d🐈",
        "\u0301" * 50,
        "\u2028",
    ),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name(name):
    after = draw_detections(canvas(), detections(([100, 80, 180, 150], 0.9, 0)), (name,))
    assert changed(after).any()


def test_codes_for_a_terminal_are_drawn_as_escapes():
    def tag(name: str) -> bytes:
        return draw_objects(canvas(), [[10.0, 60.0, 290.0, 190.0]], [0], (name,)).tobytes()

    assert tag("a\x1b[1m") == tag("a\\x1b[1m") != tag("a[1m")


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_name_of_a_million_letters_is_drawn_at_once(letter, monkeypatch):
    rows = [([10.0 + i, 60.0, 90.0 + i, 150.0], 0.9, 0) for i in range(100)]
    lengths = []
    measure = ImageFont.FreeTypeFont.getlength

    def counted(font, text, *options, **more):
        lengths.append(len(text))
        return measure(font, text, *options, **more)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", counted)
    after = draw_detections(canvas(), detections(*rows), (letter * 10**6,))
    assert 0 < max(lengths) <= 2000
    assert sum(lengths) < 10**6
    assert after.tobytes() == draw_detections(canvas(), detections(*rows), (letter * 500,)).tobytes()


def test_the_longest_beginning_that_fits_is_kept():
    pen = drawing._pen((300, 200), is_plain=True)
    name = "".join(chr(ord("a") + i % 26) for i in range(300))
    for after in ("", " 0.87"):
        shown = drawing._shortened(name, pen, 300, after)
        kept = len(shown) - len("..." + after)
        assert shown == f"{name[:kept]}...{after}"
        room = 150 - 2 * pen.padding
        assert pen.font.getlength(shown) <= room < pen.font.getlength(f"{name[: kept + 1]}...{after}")
    assert drawing._shortened("ab", pen, 300, " 0.87") == "ab 0.87"
    assert drawing._shortened("x" * 300, pen, 10, " 0.87") == " 0.87"


def test_accents_are_drawn_as_letters():
    def tag(name: str) -> bytes:
        after = draw_detections(canvas(), detections(([100, 80, 180, 150], 0.9, 0)), (name, "é"))
        return after.crop((90, 50, 200, 79)).tobytes()

    assert tag("è") != tag("ö")


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (90, 7), (3000, 2000)])
def test_any_size(size):
    found = detections(([0, 0, size[0], size[1]], 1.0, 2))
    assert draw_detections(Image.new("RGB", size), found, CLASSES).size == size


def test_lines_grow_with_the_picture():
    small = draw_detections(canvas(300, 200), detections(([30, 40, 270, 190], 0.9, 0)), CLASSES)
    large = draw_detections(canvas(3000, 2000), detections(([300, 400, 2700, 1900], 0.9, 0)), CLASSES)
    assert changed(large)[1000, :1000].sum() > 4 * changed(small)[100, :100].sum()


def test_scale_enlarges_the_picture_and_moves_the_box():
    after = draw_detections(canvas(), detections(([100, 80, 180, 150], 0.9, 1)), CLASSES, scale=2.0)
    assert after.size == (600, 400)
    assert after.getpixel((200, 250)) == class_color(1)


def test_a_scale_below_one_leaves_at_least_a_pixel():
    after = draw_detections(canvas(1000, 2), detections(([0, 0, 1000, 2], 0.9, 0)), CLASSES, scale=0.1)
    assert after.size == (100, 1)


def test_ground_truth_is_dashed_white():
    after = draw_detections(canvas(), detections(), CLASSES, ground_truth=truth([100, 80, 180, 150]))
    edges = np.asarray(after)[80, 100:180]
    white = (edges == 255).all(1)
    assert 20 < white.sum() < 60
    assert (np.diff(white.astype(int)) != 0).sum() > 6
    assert after.getpixel((140, 115)) == GRAY


def test_other_modes_become_rgb():
    assert draw_detections(Image.new("L", (50, 40)), detections(), CLASSES).mode == "RGB"


def test_an_unknown_class_is_an_error():
    with pytest.raises(ValueError, match="class id 3, but there are 3"):
        draw_detections(canvas(), detections(([0, 0, 9, 9], 0.9, 3)), CLASSES)


def test_colours_differ():
    colors = [class_color(class_id) for class_id in range(60)]
    assert len(set(colors)) == 60
    assert all(0 <= part <= 255 for color in colors for part in color)


def test_contact_sheet_shows_every_picture_in_its_cell():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    images = [Image.new("RGB", (60, 40 + i), color) for i, color in enumerate(colors)]
    sheet = contact_sheet(images, 3, gap=10)
    assert sheet.size == (10 + 3 * 70, 10 + 2 * (42 + 10))
    for position, color in enumerate(colors):
        row, column = divmod(position, 3)
        assert sheet.getpixel((10 + column * 70 + 30, 10 + row * 52 + 21)) == color


def test_contact_sheet_keeps_proportions_and_takes_other_modes():
    images = [Image.new("L", (30, 90), 255), Image.new("RGB", (300, 200)), Image.new("RGB", (300, 200))]
    sheet = contact_sheet(images, 8, cell_width=150, gap=0)
    assert sheet.size == (450, 100)
    white = (np.asarray(sheet)[:, :150] == 255).all(2)
    assert white[50].sum() == pytest.approx(33, abs=1)


@pytest.mark.parametrize(("number", "columns"), [(0, 3), (2, 0)])
def test_impossible_contact_sheets(number, columns):
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([canvas()] * number, columns)


def test_objects_have_boxes_and_names_but_no_scores():
    boxes = [[20.0, 40.0, 120.0, 140.0], [200.0, 60.0, 290.0, 190.0]]
    image = draw_objects(canvas(), boxes, [0, 2], CLASSES)
    assert changed(image)[40, 20:120].all()
    assert changed(image)[60:190, 200].all()
    assert count(image, class_color(0)) > 300
    assert count(image, class_color(2)) > 300
    assert count(image, class_color(1)) == 0
    named = draw_objects(canvas(), boxes[:1], [0], ("a much longer name",))
    assert count(named, class_color(0)) > count(draw_objects(canvas(), boxes[:1], [0], CLASSES), class_color(0))
    assert draw_objects(canvas(), [], [], CLASSES).tobytes() == canvas().tobytes()
    assert draw_objects(canvas(), boxes, [0, 2], CLASSES, scale=2.0).size == (600, 400)


def test_a_name_that_is_far_too_long_is_shortened():
    image = draw_objects(canvas(), [[10.0, 60.0, 60.0, 150.0]], [0], ("x" * 500,))
    assert not changed(image)[:, 200:].any()


def test_the_font_is_found_where_a_distribution_keeps_it_elsewhere(tmp_path, monkeypatch):
    usual = draw_objects(canvas(), [[10.0, 20.0, 90.0, 80.0]], [0], ["čmelák"])
    elsewhere = ModuleSpec("matplotlib", None, origin=str(tmp_path / "matplotlib" / "__init__.py"))
    monkeypatch.setattr(drawing, "find_spec", lambda name: elsewhere)
    assert draw_objects(canvas(), [[10.0, 20.0, 90.0, 80.0]], [0], ["čmelák"]) == usual
