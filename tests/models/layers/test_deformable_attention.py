"""The arithmetic of sampling locations, and what padding and references mean."""

import pytest
import torch

from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.ops import multi_scale_deformable_attention

SHAPES = ((6, 10), (3, 5))
BATCH, QUERIES, HEADS, POINTS, DIM = 2, 7, 3, 4, 12


def make_attention():
    attention = DeformableAttention(DIM, num_heads=HEADS, num_levels=2, num_points=POINTS)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_projection_holds_offsets_then_weights(coordinates):
    """The four layers one after another, as the paper has them, give the same."""
    attention = make_attention()
    query, tokens = torch.randn(BATCH, QUERIES, DIM), torch.randn(BATCH, 75, DIM)
    mask = torch.zeros(BATCH, 75, dtype=torch.bool)
    reference = torch.rand(BATCH, QUERIES, 2, coordinates)
    offsets = attention.sampling_offsets(query).view(BATCH, QUERIES, HEADS, 2, POINTS, 2)
    weights = attention.attention_weights(query).view(BATCH, QUERIES, HEADS, -1).softmax(-1)
    around = reference[:, :, None, :, None]
    if coordinates == 2:
        sizes_wh = torch.tensor([(width, height) for height, width in SHAPES])
        locations = around + offsets / sizes_wh[:, None]
    else:
        locations = around[..., :2] + offsets / POINTS * around[..., 2:] / 2
    sampled = multi_scale_deformable_attention(
        attention.value_proj(tokens).view(BATCH, 75, HEADS, -1),
        SHAPES,
        locations,
        weights.view(BATCH, QUERIES, HEADS, 2, POINTS),
        backend="reference",
    )
    expected = attention.output_proj(sampled.flatten(2))
    torch.testing.assert_close(attention(query, reference, tokens, mask, SHAPES), expected)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_what_lies_in_the_padding_is_never_read(coordinates):
    attention = make_attention()
    query, tokens = torch.randn(BATCH, QUERIES, DIM), torch.randn(BATCH, 75, DIM)
    mask = torch.zeros(BATCH, 75, dtype=torch.bool)
    mask[:, 30:50] = True
    reference = torch.rand(BATCH, QUERIES, 2, coordinates)
    expected = attention(query, reference, tokens, mask, SHAPES)
    tokens[:, 30:50] = 1000.0
    torch.testing.assert_close(attention(query, reference, tokens, mask, SHAPES), expected)
    tokens[:, :30] = 1000.0
    assert (attention(query, reference, tokens, mask, SHAPES) - expected).abs().max() > 1


def test_every_parameter_gets_a_gradient():
    attention = make_attention()
    mask = torch.zeros(BATCH, 75, dtype=torch.bool)
    result = attention(
        torch.randn(BATCH, QUERIES, DIM), torch.rand(BATCH, QUERIES, 2, 2), torch.randn(BATCH, 75, DIM), mask, SHAPES
    )
    result.square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
