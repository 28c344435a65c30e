"""The small dense networks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from deformable_detr.models import build
from deformable_detr.models.layers.feedforward import MLP, FeedForward, in_float32


def test_mlp_has_relus_between_and_none_at_the_end():
    mlp = MLP(3, 5, 2, num_layers=3)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(5, 3), (5, 5), (2, 5)]
    tokens = torch.randn(4, 7, 3)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(tokens), third(second(first(tokens).clamp(min=0)).clamp(min=0)))


def test_feed_forward():
    ffn = FeedForward(3, 8, dropout=0.5).eval()
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(ffn(tokens), ffn.linear2(ffn.linear1(tokens).clamp(min=0)))


def test_autocast_does_not_reach_the_module():
    module, inputs = nn.Linear(8, 3), torch.randn(5, 8)
    expected = module(inputs)
    assert torch.equal(in_float32(module, inputs), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(inputs).dtype == torch.bfloat16
        assert torch.equal(in_float32(module, inputs), expected)
        assert in_float32(module, inputs.bfloat16()).dtype == torch.float32


def test_without_autocast_other_types_stay_what_they_are():
    module = nn.Linear(8, 3).double()
    assert in_float32(module, torch.randn(5, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_boxes_and_scores_are_float32_under_autocast(tiny_config, variant):
    torch.manual_seed(0)
    model = build(replace(tiny_config.model, variant=variant, num_classes=3)).eval()
    images, padding = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, :, 70:] = True
    with torch.no_grad():
        exact = model(images, padding)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images, padding)
    stages = [*rough.layers, *([rough.proposals] if rough.proposals else [])]
    assert {part.dtype for predictions in stages for part in predictions} == {torch.float32}
    if variant != "two_stage":  # there, scores that are nearly equal may choose other proposals
        # Twice what half the bits do to the shift of a box; computed in bfloat16 as a whole it would be 3e-3.
        assert (rough.final.boxes - exact.final.boxes).abs().max() < 1.5e-3
