import pytest
import torch

from deformable_detr.inference.explanation import LayerPoints


def layer_points(locations, weights):
    return LayerPoints(3, torch.tensor(locations), torch.tensor(weights), torch.zeros(1, 4), None, 0.25, 0.5)


def test_shares_by_hand():
    """One detection, two heads, two levels, two points; three points lie outside a picture of 40 x 20 pixels."""
    places = [
        [[[10.0, 5.0], [41.0, 5.0]], [[0.0, 0.0], [40.0, 20.0]]],
        [[[-1.0, 5.0], [10.0, 20.5]], [[10.0, 10.0], [1.0, 1.0]]],
    ]
    weights = [[[0.1, 0.2], [0.3, 0.4]], [[0.05, 0.15], [0.7, 0.1]]]
    points = layer_points([places], [weights])
    torch.testing.assert_close(points.outside((40, 20)), torch.tensor([(0.2 + 0.05 + 0.15) / 2]))
    torch.testing.assert_close(points.level_shares(), torch.tensor([[0.25, 0.75]]))
    # 0.7 and 0.4 are 1.1 of 2.
    assert points.points_for_half().tolist() == [2]


@pytest.mark.parametrize(("weights", "number"), [([0.25] * 4, 2), ([1.0, 0, 0, 0], 1), ([0.4, 0.3, 0.2, 0.1], 2)])
def test_points_for_half(weights, number):
    points = layer_points([[[[[0.0, 0.0]] * 4]]], [[[weights]]])
    assert points.points_for_half().tolist() == [number]
