"""DINO's decoder against plain words, layer by layer, and where its gradients go."""

import math

import pytest
import torch
from torch import nn

from deformable_detr.core.types import Memory, Queries
from deformable_detr.models.layers.box_decoder import BoxDecoder
from deformable_detr.models.layers.decoder import DecoderLayer
from deformable_detr.models.layers.feedforward import MLP

DIM, CLASSES, LAYERS = 32, 3, 3
SHAPES = ((5, 7), (3, 4))


def make(separate=True, head_eps=1e-3):
    torch.manual_seed(1)
    heads = LAYERS if separate else 1
    layers = [
        DecoderLayer(DIM, num_heads=4, num_levels=2, num_points=3, ffn_dim=40, dropout=0.0) for _ in range(LAYERS)
    ]
    decoder = BoxDecoder(
        layers,
        [nn.Linear(DIM, CLASSES) for _ in range(heads)],
        [MLP(DIM, DIM, 4, num_layers=3) for _ in range(heads)],
        dim=DIM,
        head_eps=head_eps,
    )
    nn.init.normal_(decoder.norm.weight, mean=1.0, std=0.3)
    return decoder


def inputs():
    torch.manual_seed(2)
    positions = sum(height * width for height, width in SHAPES)
    memory = Memory(
        torch.randn(2, positions, DIM),
        torch.randn(2, positions, DIM),
        torch.zeros(2, positions, dtype=torch.bool),
        torch.tensor([[[0.8, 1.0], [0.75, 1.0]], [[1.0, 0.6], [1.0, 2 / 3]]]),
        SHAPES,
    )
    return Queries(torch.randn(2, 11, DIM), None, torch.rand(2, 11, 4) * 0.6 + 0.2), memory


def logit(value, eps):
    return torch.log(value.clamp(min=eps) / (1 - value).clamp(min=eps))


def embedding(boxes):
    """Half of DIM features for each of y, x, w, h; sine and cosine in turn."""
    features = []
    for coordinate in (1, 0, 2, 3):
        for index in range(DIM // 2):
            angle = boxes[..., coordinate] * 2 * math.pi / 10_000 ** (2 * (index // 2) / (DIM // 2))
            features.append(angle.cos() if index % 2 else angle.sin())
    return torch.stack(features, dim=-1)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("head_eps", [1e-3, 1e-5])
def test_layers_in_plain_words(separate, head_eps):
    decoder = make(separate, head_eps)
    queries, memory = inputs()
    predictions = decoder(queries, memory)
    x, r = queries.content, queries.reference
    n = r
    for number, layer in enumerate(decoder.layers):
        head = number if separate else 0
        in_levels = torch.stack(
            [r * torch.cat([ratio, ratio], dim=-1)[:, None] for ratio in memory.valid_ratios.unbind(1)], 2
        )
        x = layer(x, decoder.position_head(embedding(in_levels[:, :, 0])), in_levels, memory)
        h = decoder.norm(x)
        boxes = (decoder.box_heads[head](h) + logit(n, head_eps)).sigmoid()
        torch.testing.assert_close(predictions[number].boxes, boxes, atol=1e-5, rtol=0)
        torch.testing.assert_close(predictions[number].logits, decoder.class_heads[head](h), atol=1e-4, rtol=1e-4)
        n = (decoder.box_heads[head](x) + logit(r, 1e-3)).sigmoid()
        r = n.detach()


def test_positions_of_boxes_in_the_image_do_not_depend_on_the_padding():
    decoder = make()
    queries, memory = inputs()
    more = memory._replace(valid_ratios=memory.valid_ratios / 2)
    seen = []
    decoder.position_head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    for per_image in (True, False):
        decoder.per_image = per_image
        for one in (memory, more):
            decoder(queries, one)
    first = seen[::LAYERS]
    assert torch.equal(first[0], first[1])
    assert not torch.allclose(first[2], first[3], atol=1e-3)


def test_the_boxes_of_a_layer_teach_its_head_and_the_head_before():
    decoder = make()
    queries, memory = inputs()
    # Content that teaches nothing: only the way of the references is left.
    for layer in decoder.layers:
        layer.register_forward_hook(lambda _, inputs, output: output.detach())
    decoder(queries, memory)[2].boxes.sum().backward()
    reached = [
        any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters()) for head in decoder.box_heads
    ]
    assert reached == [False, True, True]


def test_the_attention_mask_is_heeded():
    decoder = make()
    queries, memory = inputs()
    mask = torch.zeros(11, 11, dtype=torch.bool)
    mask[4:, :4] = True  # the last seven do not see the first four
    masked = decoder(queries._replace(attention_mask=mask), memory)[-1]
    alone = decoder(Queries(queries.content[:, 4:], None, queries.reference[:, 4:]), memory)[-1]
    torch.testing.assert_close(masked.logits[:, 4:], alone.logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked.logits, decoder(queries, memory)[-1].logits, atol=1e-3)
