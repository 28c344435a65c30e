"""Sizes that disagree are named with both sides, also when sizes that agree are remembered."""

import pytest
import torch

from deformable_detr.ops.checks import check_devices, check_given, check_projected

SHAPES = ((7, 5), (3, 4), (1, 2))
VALUE, POINTS = (2, 49, 3, 6), (4, 4, 4)
LOCATIONS, WEIGHTS = (2, 5, 3, 3, 4, 2), (2, 5, 3, 3, 4)
FLAT, FLAT_WEIGHTS = (2, 5, 3, 12, 2), (2, 5, 3, 12)
REFERENCE, PROJECTION = (2, 5, 3, 4), (2, 5, 108)


def test_both_forms_come_to_the_same():
    assert check_given(VALUE, SHAPES, None, LOCATIONS, WEIGHTS) == ((7, 5, 3, 4, 1, 2), POINTS)
    assert check_given(VALUE, SHAPES, POINTS, FLAT, FLAT_WEIGHTS) == ((7, 5, 3, 4, 1, 2), POINTS)
    uneven = check_given(VALUE, SHAPES, (7, 0, 5), FLAT, FLAT_WEIGHTS)
    assert uneven.points == (7, 0, 5)
    for points in (4, POINTS):
        assert check_projected(VALUE, SHAPES, points, REFERENCE, PROJECTION) == ((7, 5, 3, 4, 1, 2), POINTS)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("value", "points", "locations", "weights", "message"),
    [
        ((2, 48, 3, 6), POINTS, FLAT, FLAT_WEIGHTS, r"value has 48 positions but spatial_shapes .* need 49"),
        (
            VALUE,
            POINTS,
            (2, 5, 3, 8, 2),
            FLAT_WEIGHTS,
            r"\(2, 5, 3, 8, 2\); value and spatial_shapes need \(2, 5, 3, 12",
        ),
        (VALUE, POINTS, FLAT, (2, 4, 3, 12), r"attention_weights have shape \(2, 4, 3, 12\)"),
        ((49, 3, 6), POINTS, FLAT, FLAT_WEIGHTS, "value needs axes"),
        (VALUE, (4, 4), FLAT, FLAT_WEIGHTS, r"num_points \(4, 4\) names 2 levels but spatial_shapes .* have 3"),
        (VALUE, POINTS, LOCATIONS, WEIGHTS, "with num_points need axes"),
        (VALUE, None, FLAT, FLAT_WEIGHTS, "sampling_locations need axes"),
        (VALUE, None, (2, 5, 3, 2, 4, 2), WEIGHTS, r"sampling_locations have 2 levels but spatial_shapes .* have 3"),
        (VALUE, None, LOCATIONS, (2, 5, 3, 3, 3), r"attention_weights have shape \(2, 5, 3, 3, 3\)"),
        (VALUE, None, (3, *LOCATIONS[1:]), (3, *WEIGHTS[1:]), r"\(3, 5, 3, 12, 2\); value .* need \(2, 5, 3, 12, 2\)"),
    ],
)
def test_disagreeing_tensors_are_named_with_both_numbers(value, points, locations, weights, message, times):
    check_given(VALUE, SHAPES, POINTS, FLAT, FLAT_WEIGHTS)
    for _ in range(times):
        with pytest.raises(ValueError, match=message):
            check_given(value, SHAPES, points, locations, weights)


def test_disagreeing_projections_are_named_with_both_numbers():
    with pytest.raises(ValueError, match=r"3 heads of 12 samples need \(2, queries, 108\)"):
        check_projected(VALUE, SHAPES, POINTS, REFERENCE, (2, 5, 107))
    with pytest.raises(ValueError, match=r"reference has shape \(2, 5, 2, 4\); .* \(2, 5, 3, 2\) for points"):
        check_projected(VALUE, SHAPES, POINTS, (2, 5, 2, 4), PROJECTION)
    with pytest.raises(ValueError, match=r"\(2, 5, 3, 4\) for boxes"):
        check_projected(VALUE, SHAPES, POINTS, (2, 5, 3, 3), PROJECTION)


@pytest.mark.parametrize("empty", [((0, 9), (7, 5)), ((7, 5), (3, 0)), ((-5, -7),)])
def test_a_map_without_a_pixel_is_refused(empty):
    """Its neighbours' pixels, or memory of others, would be taken for its own."""
    points = (8 // len(empty),) * len(empty)
    with pytest.raises(ValueError, match="every map needs a row and a column"):
        check_given((2, 35, 3, 6), empty, points, (2, 5, 3, 8, 2), (2, 5, 3, 8))


def test_a_tensor_elsewhere_is_named_with_both_devices():
    here, there = torch.empty(2), torch.empty(2, device="meta")
    check_devices(here, other=here)
    with pytest.raises(ValueError, match="value is on cpu but sampling_locations on meta; move one"):
        check_devices(here, attention_weights=here, sampling_locations=there)
