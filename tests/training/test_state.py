import pytest
import torch
from torch import nn

from deformable_detr.core.errors import CheckpointError
from deformable_detr.training.state import generator_states, optimizer_tensors, restore_generators, restore_optimizer

CPU = torch.device("cpu")


def trained(steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    unused = nn.Linear(1, 1)
    model.add_module("unused", unused)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model[1](model[0](torch.randn(4, 3))).sum().backward()
        optimizer.step()
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model[1](model[0](torch.ones(4, 3))).square().sum().backward()
    optimizer.step()


def test_the_next_step_is_the_same_bits():
    model, optimizer = trained(3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    other, fresh = trained(0)
    other.load_state_dict(model.state_dict())
    restore_optimizer(other, fresh, tensors)
    step(model, optimizer)
    step(other, fresh)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert not any(name.endswith("unused.weight") for name in tensors)


def test_what_was_loaded_is_copied():
    model, optimizer = trained(1)
    tensors = optimizer_tensors(model, optimizer)
    other, fresh = trained(0)
    restore_optimizer(other, fresh, tensors)
    step(other, fresh)
    assert optimizer.state[model[0].weight]["step"] == 1


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_half_a_state_is_refused_by_name(change):
    model, optimizer = trained(1)
    tensors = optimizer_tensors(model, optimizer)
    if change == "missing":
        del tensors["exp_avg/0.weight"]
    else:
        tensors["exp_avg/0.weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"state of 0\.weight is missing or of another shape"):
        restore_optimizer(model, optimizer, tensors)


@pytest.mark.parametrize("name", ["exp_avg_sq/0.weight", "step/0.weight"])
def test_every_moment_has_its_shape(name):
    model, optimizer = trained(1)
    tensors = optimizer_tensors(model, optimizer) | {name: torch.zeros(5)}
    with pytest.raises(CheckpointError, match=r"state of 0\.weight is missing or of another shape"):
        restore_optimizer(model, optimizer, tensors)


@pytest.mark.parametrize("state", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), torch.zeros(0)])
def test_chance_of_another_kind_is_refused(state):
    with pytest.raises(CheckpointError, match="the state of a random generator cannot be restored: "):
        restore_generators({"cpu": state}, CPU)


def test_chance_goes_on_where_it_was():
    states = generator_states(CPU)
    first = torch.rand(5)
    torch.rand(7)
    restore_generators(states, CPU)
    assert torch.equal(torch.rand(5), first)
    restore_generators({}, CPU)
