"""Both orders of the norms, against the layer written out with PyTorch's own attention; which predictions there are."""

import pytest
import torch
from torch import nn

from deformable_detr.models.layers.dense_decoder import DenseDecoder, DenseDecoderLayer
from deformable_detr.models.layers.feedforward import MLP
from tests.models.layers.test_dense_encoder import DIM, HEADS, feed, make_memory

QUERIES, ROWS = 5, 4


def make_decoder(pre_norm=False, *, auxiliary=True, layers=3):
    made = [DenseDecoderLayer(DIM, num_heads=HEADS, ffn_dim=20, dropout=0.1, pre_norm=pre_norm) for _ in range(layers)]
    heads = nn.Linear(DIM, ROWS), MLP(DIM, DIM, 4, num_layers=3)
    decoder = DenseDecoder(made, DIM, *heads, auxiliary=auxiliary).double().eval()
    torch.manual_seed(5)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return decoder


def attend(own, query, key, value, mask=None):
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    theirs.load_state_dict(own.state_dict())
    return theirs(query, key, value, key_padding_mask=mask)[0]


def among(layer, x, position):
    return attend(layer.self_attention, x + position, x + position, x)


def across(layer, x, position, memory):
    key = memory.tokens + memory.position
    return attend(layer.cross_attention, x + position, key, memory.tokens, memory.padding_mask)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_the_layers_written_out(pre_norm):
    decoder, memory = make_decoder(pre_norm), make_memory()
    position = torch.randn(QUERIES, DIM).double()
    predictions = decoder(position, memory)
    assert len(predictions) == 3
    x = torch.zeros(2, QUERIES, DIM).double()
    for layer, found in zip(decoder.layers, predictions, strict=True):
        if pre_norm:
            x = x + among(layer, layer.norm_self(x), position)
            x = x + across(layer, layer.norm_cross(x), position, memory)
            x = x + feed(layer, layer.norm_ffn(x))
        else:
            x = layer.norm_self(x + among(layer, x, position))
            x = layer.norm_cross(x + across(layer, x, position, memory))
            x = layer.norm_ffn(x + feed(layer, x))
        features = decoder.norm(x)  # which the next layer does not see
        torch.testing.assert_close(found.logits, decoder.class_head(features), rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.boxes, decoder.box_head(features).sigmoid(), rtol=1e-8, atol=1e-9)


def test_without_auxiliary_losses_the_last_is_the_same():
    position, memory = torch.randn(QUERIES, DIM).double(), make_memory()
    (last,) = make_decoder(auxiliary=False)(position, memory)
    every = make_decoder()(position, memory)
    assert torch.equal(last.logits, every[-1].logits)
    assert torch.equal(last.boxes, every[-1].boxes)
    assert not torch.equal(every[0].logits, every[-1].logits)


def test_boxes_and_logits_stay_in_float32_under_autocast():
    decoder, memory = make_decoder().float(), make_memory()
    memory = memory._replace(tokens=memory.tokens.float(), position=memory.position.float())
    position = torch.randn(QUERIES, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        found = decoder(position, memory)[-1]
    assert found.logits.dtype == found.boxes.dtype == torch.float32
