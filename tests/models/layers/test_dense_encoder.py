"""Both orders of the norms, against the layer written out with PyTorch's own attention."""

import pytest
import torch
from torch import nn

from deformable_detr.core.types import Memory
from deformable_detr.models.layers.dense_encoder import DenseEncoder, DenseEncoderLayer

DIM, HEADS = 12, 3


def make_memory(batch=2, height=3, width=4):
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[0, :, 3:] = True
    mask[1, 2:] = True
    count = height * width
    return Memory(
        tokens=torch.randn(batch, count, DIM).double(),
        position=torch.randn(batch, count, DIM).double(),
        padding_mask=mask.flatten(1),
        valid_ratios=torch.ones(batch, 1, 2),
        spatial_shapes=((height, width),),
    )


def make_encoder(pre_norm, layers=2):
    made = [DenseEncoderLayer(DIM, num_heads=HEADS, ffn_dim=20, dropout=0.1, pre_norm=pre_norm) for _ in range(layers)]
    encoder = DenseEncoder(made, DIM, pre_norm=pre_norm).double().eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return encoder


def attend(layer, tokens, position, mask):
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    theirs.load_state_dict(layer.self_attention.state_dict())
    query = tokens + position
    return theirs(query, query, tokens, key_padding_mask=mask)[0]


def feed(layer, tokens):
    return layer.ffn.linear2(layer.ffn.linear1(tokens).relu())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_the_layer_written_out(pre_norm):
    encoder, memory = make_encoder(pre_norm), make_memory()
    x = memory.tokens
    for layer in encoder.layers:
        if pre_norm:
            x = x + attend(layer, layer.norm_attention(x), memory.position, memory.padding_mask)
            x = x + feed(layer, layer.norm_ffn(x))
        else:
            x = layer.norm_attention(x + attend(layer, x, memory.position, memory.padding_mask))
            x = layer.norm_ffn(x + feed(layer, x))
    if pre_norm:
        x = encoder.norm(x)
    encoded = encoder(memory)
    torch.testing.assert_close(encoded.tokens, x, rtol=1e-9, atol=1e-10)
    assert encoded.position is memory.position


def test_without_layers_nothing_changes_but_the_norm():
    memory = make_memory()
    assert torch.equal(make_encoder(False, layers=0)(memory).tokens, memory.tokens)
    encoder = make_encoder(True, layers=0)
    torch.testing.assert_close(encoder(memory).tokens, encoder.norm(memory.tokens))


def test_dropout_in_training():
    encoder, memory = make_encoder(False), make_memory()
    assert torch.equal(encoder(memory).tokens, encoder(memory).tokens)
    encoder.train()
    assert not torch.equal(encoder(memory).tokens, encoder(memory).tokens)
