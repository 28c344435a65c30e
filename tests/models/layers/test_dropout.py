"""Dropout drops as often as it says, keeps the mean, and its gradient goes where its output went."""

import pytest
import torch

from deformable_detr.models.layers.dropout import Dropout


def test_outside_training_nothing_happens():
    dropout = Dropout(0.3).eval()
    tokens = torch.randn(2, 5, 7)
    assert dropout(tokens) is tokens
    assert torch.equal(dropout.after_relu(tokens), tokens.relu())
    assert Dropout(0.0)(tokens) is tokens


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.9])
def test_drops_as_often_as_it_says_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    result = Dropout(probability)(torch.ones(301, 1003))
    # Five standard deviations of a share of 301,903 numbers.
    assert (
        abs(float((result == 0).float().mean()) - probability) < 5 * (probability * (1 - probability) / 301_903) ** 0.5
    )
    torch.testing.assert_close(
        result[result != 0], torch.tensor(1 / (1 - probability)).expand(int((result != 0).sum()))
    )


def test_neighbours_are_dropped_independently():
    """Four numbers share a draw: no pair of them may go together."""
    torch.manual_seed(1)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).view(-1, 4).float()
    together = torch.corrcoef(dropped.T) - torch.eye(4)
    assert together.abs().max() < 5 / 100_000**0.5


def test_everything_can_be_dropped():
    assert torch.equal(Dropout(1.0)(torch.ones(3, 5)), torch.zeros(3, 5))
    assert torch.equal(Dropout(1.0).after_relu(torch.ones(3, 5)), torch.zeros(3, 5))


def test_the_same_seed_drops_the_same():
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(Dropout(0.4)(torch.ones(7, 9)))
    assert torch.equal(*results)


def test_gradients_go_where_outputs_went():
    torch.manual_seed(3)
    tokens = torch.randn(11, 13, requires_grad=True)
    result = Dropout(0.4)(tokens)
    result.backward(torch.full_like(result, 3.0))
    torch.testing.assert_close(tokens.grad, (result != 0) * 3.0 / 0.6)


def test_after_relu_is_dropout_of_the_rectified():
    tokens = torch.randn(11, 13, generator=torch.Generator().manual_seed(2))
    together, apart = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    dropout = Dropout(0.4)
    torch.manual_seed(5)
    one = dropout.after_relu(together)
    torch.manual_seed(5)
    other = dropout(apart.relu())
    towards = torch.randn(11, 13, generator=torch.Generator().manual_seed(4))
    one.backward(towards)
    other.backward(towards)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(together.grad, apart.grad)
    assert 0 < int((one != 0).sum()) < tokens.numel()


def test_it_says_what_it_is():
    assert repr(Dropout(0.1)) == "Dropout(probability=0.1)"


@pytest.mark.compile
def test_compiles_without_a_graph_break():
    dropout = Dropout(0.4)
    tokens = torch.randn(11, 13, requires_grad=True)
    result = torch.compile(lambda x: dropout.after_relu(dropout(x)), fullgraph=True, backend="aot_eager")(tokens)
    result.sum().backward()
    assert torch.equal(tokens.grad != 0, result != 0)
