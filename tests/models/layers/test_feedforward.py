"""The small dense networks."""

import torch

from deformable_detr.models.layers.feedforward import MLP, FeedForward


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
