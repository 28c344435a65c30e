"""The arithmetic of sampling locations, and what padding and references mean."""

import pytest
import torch

from deformable_detr.nn.deformable_attention import DeformableAttention, sampling_locations

SHAPES = ((6, 10), (3, 5))
BATCH, QUERIES, HEADS, POINTS, DIM = 2, 7, 3, 4, 12


def make_attention():
    attention = DeformableAttention(DIM, num_heads=HEADS, num_levels=2, num_points=POINTS)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def test_offsets_around_a_point_count_pixels_of_the_level():
    reference = torch.rand(BATCH, QUERIES, 2, 2)
    offsets = torch.randn(BATCH, QUERIES, HEADS, 2, POINTS, 2)
    locations = sampling_locations(reference, offsets, SHAPES)
    for level, (height, width) in enumerate(SHAPES):
        x = reference[1, 2, level, 0] + offsets[1, 2, 0, level, 3, 0] / width
        y = reference[1, 2, level, 1] + offsets[1, 2, 0, level, 3, 1] / height
        torch.testing.assert_close(locations[1, 2, 0, level, 3], torch.stack([x, y]))


def test_offsets_around_a_box_count_its_half_sides_over_the_points():
    reference = torch.rand(BATCH, QUERIES, 2, 4)
    offsets = torch.randn(BATCH, QUERIES, HEADS, 2, POINTS, 2)
    locations = sampling_locations(reference, offsets, SHAPES)
    cx, cy, w, h = reference[0, 5, 1]
    dx, dy = offsets[0, 5, 2, 1, 0]
    expected = torch.stack([cx + dx / POINTS * w / 2, cy + dy / POINTS * h / 2])
    torch.testing.assert_close(locations[0, 5, 2, 1, 0], expected)


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
