"""Values between modules."""

import torch

from deformable_detr.core.types import DetectorOutput, Predictions


def test_the_final_predictions_are_the_last_layers():
    layers = [Predictions(torch.full((2, 5, 3), float(layer)), torch.rand(2, 5, 4)) for layer in range(3)]
    assert DetectorOutput(layers, None).final is layers[-1]
