"""Where encoder positions look from."""

import pytest
import torch

from deformable_detr.core.types import Memory
from deformable_detr.models.layers.encoder import Encoder, EncoderLayer, position_references

SHAPES = ((4, 6), (2, 3))


def test_references_are_pixel_centres_of_the_valid_part():
    valid_ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.5, 0.75], [2 / 3, 0.5]]])
    references = position_references(SHAPES, valid_ratios)
    assert references.shape == (2, 30, 2, 2)
    # Image 1, level 1, row 0, column 1 of a valid part of 2 x 1 pixels: centre (1.5 / 2, 0.5 / 1) of the image.
    seen = references[1, 24 + 1]
    torch.testing.assert_close(seen[0], torch.tensor([0.75 * 0.5, 0.5 * 0.75]))
    torch.testing.assert_close(seen[1], torch.tensor([0.75 * 2 / 3, 0.5 * 0.5]))


@pytest.mark.parametrize("layers", [0, 2])
def test_encoder_changes_tokens_and_nothing_else(layers):
    encoder = Encoder(
        [EncoderLayer(12, num_heads=3, num_levels=2, num_points=2, ffn_dim=20, dropout=0.0) for _ in range(layers)]
    )
    memory = Memory(
        torch.randn(2, 30, 12),
        torch.randn(2, 30, 12),
        torch.zeros(2, 30, dtype=torch.bool),
        torch.ones(2, 2, 2),
        SHAPES,
    )
    encoded = encoder(memory)
    assert torch.equal(encoded.tokens, memory.tokens) == (layers == 0)
    assert encoded.position is memory.position
