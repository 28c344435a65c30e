from dataclasses import replace

import pytest
import torch

from deformable_detr.inference.explanation_words import in_words, percent_of, places_of, share_in_box, stride_of
from deformable_detr.inference.missed import Missed
from tests.explained import BOX, by_hand, without_points


def test_a_detection_in_words():
    assert in_words(by_hand(), 0) == (
        "dog 0.75: 2 of 4 points carry 90 % of the weight, most at the right edge; the level of stride 8 has 90 %; the "
        "point that helps most, at the top edge, raises the class logit by 0.40, and 1 point speaks against the class."
    )
    assert "logit" not in in_words(by_hand(), 0, layer=0)


def test_weight_outside_the_image_is_said():
    found = by_hand()
    layer = found.layers[1]
    moved = layer._replace(weights=layer.weights.flip(2))
    assert "; 50 % lies outside the image" in in_words(replace(found, layers=(moved,)), 0)


def test_a_place_without_a_detection_in_words():
    missed = Missed(place=(250.0, 30.0), distance_px=50.0, score=0.1, threshold=0.5, overlap=0.0, overlapped=None)
    assert in_words(by_hand(missed=missed), 0).startswith(
        "No detection at 250,30: no query's box holds 250,30: the nearest ends 50 pixels away; the score 0.10 of its "
        "best class is below the threshold 0.50. The query that came nearest, dog 0.75: 2 of 4 points"
    )


def test_detr_in_words():
    text = in_words(without_points(by_hand()), 0)
    assert text == "dog 0.75: 2 of 70 cells of stride 32 carry 100 % of the weight, 50 % of it lies in the box."


def test_places():
    points = torch.tensor([[100, 90], [150, 61], [199, 90], [150, 125], [150, 90], [240, 90], [96, 56], [150, 140]])
    assert places_of(points.float(), torch.tensor(BOX)).tolist() == [0, 1, 2, 3, 4, 5, 0, 5]


def test_two_edges_or_one_and_the_middle():
    found = by_hand()
    layer = found.layers[1]
    for weights, where in (
        ([0.4, 0.0, 0.4, 0.0], "at the top and right edge"),
        ([0.4, 0.4, 0.0, 0.0], "at the top edge and in the middle of the box"),
        ([0.0, 0.9, 0.1, 0.0], "in the middle of the box"),
    ):
        given = layer._replace(weights=torch.tensor(weights).view(1, 2, 2, 1))
        assert f"most {where};" in in_words(replace(found, layers=(given,)), 0)


def test_the_share_in_a_box_counts_parts_of_cells():
    weights = torch.zeros(4, 6)
    weights[1, 2] = 3.0
    weights[3, 5] = 1.0
    # The cell covers 100..150, 50..100 of 300 x 200 pixels; half of its width is in the box.
    assert share_in_box(weights, torch.tensor([125.0, 40.0, 240.0, 120.0]), (300, 200)) == pytest.approx(0.375)
    assert share_in_box(weights * 0, torch.tensor(BOX), (300, 200)) == 0.0


def test_strides_and_shares():
    assert [stride_of(by_hand(), level) for level in (0, 1)] == [8, 16]
    assert [percent_of(share) for share in (0.0, 0.0002, 0.014, 0.725)] == ["0.0 %", "less than 0.1 %", "1.4 %", "72 %"]
