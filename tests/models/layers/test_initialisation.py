"""The initial values of the paper, read off a built model."""

import math

import pytest
import torch

from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.models.layers.initialisation import ring


def make_model(variant):
    settings = {"frozen_stages": 0, "frozen_batch_norm": False, "backbone_weights": "none", "backbone": "resnet10t"}
    config = DeformableDETRConfig(
        variant=variant, hidden_dim=64, encoder_layers=2, decoder_layers=3, num_queries=50, ffn_dim=96, **settings
    )
    return build(config)


def test_ring_of_eight_heads():
    offsets = ring(8, 3, 4).view(8, 3, 4, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for point in range(4):
            expected = torch.tensor(direction, dtype=torch.float32) * (point + 1)
            torch.testing.assert_close(offsets[head, 1, point], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_heads(variant):
    model = make_model(variant)
    decoder = model.decoder
    assert len(decoder.box_heads) == (1 if variant == "base" else 3)
    for index, (class_head, box_head) in enumerate(zip(decoder.class_heads, decoder.box_heads, strict=True)):
        torch.testing.assert_close(class_head.bias, torch.full((91,), -math.log(99)))
        assert torch.equal(class_head.weight, decoder.class_heads[0].weight)
        assert torch.equal(box_head.layers[0].weight, decoder.box_heads[0].layers[0].weight)
        assert not box_head.layers[-1].weight.any()
        size = -2.0 if variant != "two_stage" and index == 0 else 0.0
        assert box_head.layers[-1].bias.tolist() == [0.0, 0.0, size, size]
    if variant == "two_stage":
        assert torch.equal(model.query_source.class_head.weight, decoder.class_heads[0].weight)
        assert not model.query_source.box_head.layers[-1].bias.any()


def test_attention_starts_uniform_and_layers_differ():
    model = make_model("two_stage")
    for layer in model.encoder.layers:
        attention = layer.self_attention
        assert not attention.sampling_offsets.weight.any()
        assert not attention.attention_weights.weight.any()
        assert not attention.attention_weights.bias.any()
        assert not attention.value_proj.bias.any()
        torch.testing.assert_close(attention.sampling_offsets.bias, ring(8, 4, 4))
        bound = math.sqrt(6 / (64 + 64))
        assert 0.9 * bound < attention.value_proj.weight.abs().max() <= bound
    first, second = model.encoder.layers
    assert not torch.equal(first.ffn.linear1.weight, second.ffn.linear1.weight)


def test_embeddings_and_projections():
    model = make_model("refine")
    assert model.pyramid.level_embed.std().item() == pytest.approx(1, abs=0.15)
    assert model.query_source.embedding.weight.std().item() == pytest.approx(1, abs=0.05)
    for projection in model.pyramid.projections:
        convolution, norm = projection
        assert not convolution.bias.any()
        assert (norm.weight == 1).all()
        fan_in = convolution.weight[0].numel()
        fan_out = convolution.weight.shape[0] * convolution.weight[0, 0].numel()
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * bound < convolution.weight.abs().max() <= bound
