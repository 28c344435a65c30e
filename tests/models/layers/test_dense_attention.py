"""Against the definition, one query and head at a time, and against PyTorch's own module."""

import pytest
import torch

from deformable_detr.models.layers.dense_attention import DenseAttention

BATCH, QUERIES, KEYS, HEADS, HEAD_DIM = 3, 5, 7, 2, 6
DIM = HEADS * HEAD_DIM


@pytest.fixture
def attention():
    attention = DenseAttention(DIM, num_heads=HEADS, dropout=0.4).double().eval()
    torch.nn.init.normal_(attention.in_proj_bias)
    torch.nn.init.normal_(attention.out_proj.bias)
    return attention


@pytest.fixture
def inputs():
    query, key, value = (torch.randn(BATCH, count, DIM, dtype=torch.float64) for count in (QUERIES, KEYS, KEYS))
    mask = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    mask[0, 4:] = True
    mask[2, [1, 5]] = True
    return query, key, value, mask


def slowly(attention, query, key, value, mask):
    found = torch.zeros(BATCH, QUERIES, DIM, dtype=torch.float64)
    for image in range(BATCH):
        free = [place for place in range(KEYS) if not mask[image, place]]
        for head in range(HEADS):
            rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            parts = []
            for number, tokens in enumerate((query, key, value)):
                block = slice(number * DIM + rows.start, number * DIM + rows.stop)
                parts.append(tokens[image] @ attention.in_proj_weight[block].T + attention.in_proj_bias[block])
            for place in range(QUERIES):
                weights = (parts[1][free] @ parts[0][place] / HEAD_DIM**0.5).softmax(0)
                found[image, place, rows] = weights @ parts[2][free]
    return found @ attention.out_proj.weight.T + attention.out_proj.bias


def test_equals_the_definition(attention, inputs):
    torch.testing.assert_close(attention(*inputs), slowly(attention, *inputs), rtol=1e-10, atol=1e-12)
    *tokens, mask = inputs
    nothing = torch.zeros_like(mask)
    torch.testing.assert_close(attention(*tokens), slowly(attention, *tokens, nothing), rtol=1e-10, atol=1e-12)


def test_equals_pytorchs_module_with_its_parameters(attention, inputs):
    query, key, value, mask = inputs
    theirs = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True).double().eval()
    theirs.load_state_dict(attention.state_dict())
    expected, _ = theirs(query, key, value, key_padding_mask=mask)
    torch.testing.assert_close(attention(query, key, value, mask), expected, rtol=1e-10, atol=1e-12)


def test_gradients_do_not_reach_padding(attention, inputs):
    *tokens, mask = inputs
    query, key, value = (one.requires_grad_() for one in tokens)
    attention(query, key, value, mask).square().sum().backward()
    for one in (key, value):
        assert one.grad[mask].abs().max() == 0
        assert one.grad[~mask].abs().min() > 0


def test_dropout_is_of_the_weights_and_in_training_alone(attention, inputs):
    query, key, value, mask = inputs
    once = attention(query, key, value, mask)
    assert torch.equal(attention(query, key, value, mask), once)
    attention.train()
    with torch.no_grad():
        mean = torch.stack([attention(query, key, value, mask) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, once, rtol=0, atol=0.15)
    assert not torch.equal(attention(query, key, value, mask), once)
    # A key alone: its weight is 1, and is dropped whole or scaled.
    alone = attention(query[:1, :1], key[:1, :1], value[:1, :1]) - attention.out_proj.bias
    attention.eval()
    kept = attention(query[:1, :1], key[:1, :1], value[:1, :1]) - attention.out_proj.bias
    heads = (alone @ torch.linalg.inv(attention.out_proj.weight).T) / (
        kept @ torch.linalg.inv(attention.out_proj.weight).T
    )
    for value_of_head in heads.flatten().tolist():
        assert min(abs(value_of_head), abs(value_of_head - 1 / 0.6)) < 1e-9


def test_initial_values():
    attention = DenseAttention(64, num_heads=4, dropout=0.0)
    bound = (6 / (64 + 3 * 64)) ** 0.5  # Xavier, of the three projections as one matrix
    assert 0.95 * bound < attention.in_proj_weight.abs().max() <= bound
    assert attention.in_proj_bias.abs().max() == attention.out_proj.bias.abs().max() == 0
    assert "num_heads=4" in repr(attention)
