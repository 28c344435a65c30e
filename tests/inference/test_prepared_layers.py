import pytest
import torch
from torch import nn

from deformable_detr.core.types import Memory
from deformable_detr.inference.onednn import EVERYTHING, NOTHING
from deformable_detr.inference.prepared_layers import (
    PreparedDecoderLayer,
    PreparedEncoderLayer,
    PreparedMLP,
    PreparedProposalQueries,
    linear_maker,
)
from deformable_detr.models.layers.decoder import DecoderLayer
from deformable_detr.models.layers.encoder import EncoderLayer
from deformable_detr.models.layers.feedforward import MLP
from deformable_detr.models.layers.queries import ProposalQueries, anchors_of

SHAPES = ((6, 9), (3, 5))
POSITIONS = 54 + 15
LAYER = {"num_heads": 4, "num_levels": 2, "num_points": 3, "ffn_dim": 48, "dropout": 0.1}


@pytest.fixture(params=[NOTHING, EVERYTHING], ids=["plain", "packed"])
def make(request):
    return linear_maker(request.param, torch.float32)


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def memory_of(tokens: torch.Tensor) -> Memory:
    batch = len(tokens)
    mask = torch.zeros(batch, POSITIONS, dtype=torch.bool)
    return Memory(tokens, torch.randn(batch, POSITIONS, 32), mask, torch.ones(batch, 2, 2), SHAPES)


@torch.no_grad()
def test_encoder_layer(make):
    layer = randomised(EncoderLayer(32, **LAYER))
    memory = memory_of(torch.randn(2, POSITIONS, 32))
    reference = torch.rand(2, POSITIONS, 2, 2)
    expected = layer(memory.tokens, memory.position, reference, memory.padding_mask, SHAPES)
    found = PreparedEncoderLayer(layer, make, torch.float32)(memory.tokens, memory.position, reference, SHAPES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("coordinates", [2, 4])
def test_decoder_layer(make, coordinates):
    layer = randomised(DecoderLayer(32, **LAYER))
    memory = memory_of(torch.randn(2, POSITIONS, 32))
    content, position, reference = torch.randn(2, 7, 32), torch.randn(2, 7, 32), torch.rand(2, 7, 2, coordinates)
    expected = layer(content, position, reference, memory)
    found = PreparedDecoderLayer(layer, make, torch.float32)(content, position, reference, memory.tokens, SHAPES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mlp(make):
    mlp = randomised(MLP(32, 24, 4, num_layers=3))
    tokens = torch.randn(2, 7, 32)
    torch.testing.assert_close(PreparedMLP(mlp, make)(tokens), mlp(tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("choice", ["paper", "valid", "distinct"])
@pytest.mark.parametrize("num_queries", [5, 500])
def test_proposals(make, choice, num_queries):
    source = randomised(ProposalQueries(num_queries, 32, 3, choice=choice))
    memory = memory_of(torch.randn(2, POSITIONS, 32))
    expected, _ = source(memory)
    anchors = anchors_of(SHAPES, torch.ones(1, 2, 2), torch.zeros(1, POSITIONS, dtype=torch.bool))
    found = PreparedProposalQueries(source, make)(memory.tokens, anchors)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
