from dataclasses import replace

import pytest
import torch

from deformable_detr.models import build
from deformable_detr.training.ema import EMA


@pytest.fixture
def model(tiny_config):
    return build(replace(tiny_config.model, num_classes=3), load_backbone_weights=False)


def walk(model, average, steps):
    """Random steps; returns the weights after each."""
    generator = torch.Generator().manual_seed(5)
    history = []
    for _ in range(steps):
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)
        average.update()
        history.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return history


@pytest.mark.parametrize("decay", [0.4, 0.9997])
def test_it_is_the_weighted_mean_of_all_weights_so_far(model, decay):
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = EMA(model, decay)
    history = walk(model, average, 7)
    # Each weight's share in closed form: what later updates leave of it.
    kept = [min(decay, (1 + t) / (10 + t)) for t in range(1, 8)]
    shares = [1.0, *(1 - one for one in kept)]
    for position in range(len(shares)):
        for later in kept[position:]:
            shares[position] *= later
    assert sum(shares) == pytest.approx(1)
    for name, tensor in average.model.state_dict().items():
        if tensor.is_floating_point():
            wanted = sum(share * one[name].double() for share, one in zip(shares, [start, *history], strict=True))
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(tensor, history[-1][name])
    assert any("running_mean" in name for name in start)


def test_the_model_it_is_taken_of_is_left_alone(model):
    average = EMA(model.train(), 0.9)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not average.model.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average.update()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_do_not_change_stay_to_the_bit(model):
    average = EMA(model, 0.9997)
    for _ in range(20):
        average.update()
    assert all(torch.equal(a, b) for a, b in zip(average.model.parameters(), model.parameters(), strict=True))


def test_it_can_begin_anew(model):
    average = EMA(model, 0.9)
    last = walk(model, average, 3)[-1]
    average.begin()
    assert average.updates == 0
    assert all(torch.equal(tensor, last[name]) for name, tensor in average.model.state_dict().items())
