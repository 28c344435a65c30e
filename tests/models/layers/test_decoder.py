"""References from layer to layer, with and without refinement."""

import pytest
import torch
from torch import nn

from deformable_detr.core.boxes import inverse_sigmoid
from deformable_detr.core.types import Memory, Queries
from deformable_detr.models.layers.decoder import Decoder, DecoderLayer
from deformable_detr.models.layers.feedforward import MLP

SHAPES = ((4, 6), (2, 3))
DIM, QUERIES, CLASSES = 12, 5, 7


def make_decoder(refine):
    heads = 3 if refine else 1
    return Decoder(
        [DecoderLayer(DIM, num_heads=3, num_levels=2, num_points=2, ffn_dim=20, dropout=0.0) for _ in range(3)],
        [nn.Linear(DIM, CLASSES) for _ in range(heads)],
        [MLP(DIM, DIM, 4, num_layers=3) for _ in range(heads)],
        refine=refine,
    )


def make_inputs(coordinates):
    memory = Memory(
        torch.randn(2, 30, DIM),
        torch.randn(2, 30, DIM),
        torch.zeros(2, 30, dtype=torch.bool),
        torch.ones(2, 2, 2),
        SHAPES,
    )
    reference = torch.rand(2, QUERIES, coordinates).requires_grad_()
    return Queries(torch.randn(2, QUERIES, DIM), torch.randn(2, QUERIES, DIM), reference), memory


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("refine", [False, True])
def test_boxes_start_from_the_reference(refine, coordinates):
    decoder = make_decoder(refine)
    for head in decoder.box_heads:
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
    queries, memory = make_inputs(coordinates)
    expected = torch.full((2, QUERIES, 4), 0.5)  # a size predicted from nothing
    expected[..., :coordinates] = queries.reference.detach()
    for layer in decoder(queries, memory):
        assert layer.logits.shape == (2, QUERIES, CLASSES)
        torch.testing.assert_close(layer.boxes.detach(), expected, rtol=1e-3, atol=1e-4)


def test_refinement_adds_to_the_layer_before_and_without_it_to_the_start():
    queries, memory = make_inputs(2)
    for refine in (False, True):
        decoder = make_decoder(refine)
        layers = decoder(queries, memory)
        content = queries.content
        reference = queries.reference
        for index, layer in enumerate(decoder.layers):
            content = layer(content, queries.position, reference[:, :, None].expand(-1, -1, 2, -1), memory)
            delta = decoder.box_heads[index if refine else 0](content)
            known = reference.shape[-1]
            logits = torch.cat([delta[..., :known] + inverse_sigmoid(reference), delta[..., known:]], dim=-1)
            torch.testing.assert_close(layers[index].boxes, logits.sigmoid(), rtol=1e-4, atol=1e-5)
            if refine:
                reference = logits.sigmoid().detach()


def test_a_refined_layer_sends_no_gradient_to_the_heads_before_it():
    decoder = make_decoder(refine=True)
    queries, memory = make_inputs(2)
    decoder(queries, memory)[-1].boxes.sum().backward()
    assert decoder.box_heads[2].layers[-1].weight.grad.abs().sum() > 0
    assert decoder.box_heads[0].layers[-1].weight.grad is None


def test_a_mask_keeps_queries_apart():
    """Blocked from each other, two parts of the queries are what each is alone; one way, only one of them is."""
    decoder = make_decoder(refine=True).double()
    queries, memory = make_inputs(4)
    queries = queries._replace(
        **{name: getattr(queries, name).double() for name in ("content", "position", "reference")}
    )
    memory = memory._replace(
        **{name: getattr(memory, name).double() for name in ("tokens", "position", "valid_ratios")}
    )
    first, second = slice(0, 2), slice(2, QUERIES)

    def of(part):
        return queries._replace(
            content=queries.content[:, part], position=queries.position[:, part], reference=queries.reference[:, part]
        )

    apart = torch.zeros(QUERIES, QUERIES, dtype=torch.bool)
    apart[first, second] = True  # the first do not see the second
    whole, one_way = decoder(queries, memory), decoder(queries._replace(attention_mask=apart), memory)
    apart[second, first] = True
    both_ways = decoder(queries._replace(attention_mask=apart), memory)
    for part in (first, second):
        alone = decoder(of(part), memory)
        for layer, own in zip(both_ways, alone, strict=True):
            torch.testing.assert_close(layer.logits[:, part], own.logits)
            torch.testing.assert_close(layer.boxes[:, part], own.boxes)
    torch.testing.assert_close(one_way[-1].logits[:, first], both_ways[-1].logits[:, first])
    torch.testing.assert_close(one_way[0].logits[:, second], whole[0].logits[:, second])
    assert (one_way[0].logits[:, first] - whole[0].logits[:, first]).abs().max() > 1e-4
