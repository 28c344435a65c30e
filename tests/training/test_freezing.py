from dataclasses import replace

import pytest
import torch
from torch import nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Target
from deformable_detr.models import build
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.runs.config import OptimizerConfig
from deformable_detr.training.freezing import count_parameters, freeze, to_training_mode
from deformable_detr.training.optimizer import make_optimizer

PARTS = ["backbone", "projections", "encoder", "queries", "decoder", "heads"]
# By hand, from the printed model: a start of each part's parameters, and of modules that act differently in training.
OWNERS = {
    "backbone": ["pyramid.backbone."],
    "projections": ["pyramid.projections.", "pyramid.level_embed"],
    "encoder": ["encoder."],
    "decoder": ["decoder.layers."],
}


@pytest.fixture(params=["base", "refine", "two_stage"])
def model(request, tiny_config):
    return build(replace(tiny_config.model, variant=request.param, num_classes=4))


def steps(model, number=2):
    """Train on noise; what the network was like before."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerConfig(), 1e-2)
    criterion = Criterion(CriterionConfig())
    images, padding = torch.randn(2, 3, 40, 56), torch.zeros(2, 40, 56, dtype=torch.bool)
    padding[1, :, 48:] = True
    targets = [
        Target(torch.tensor([3, 0]), torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.2, 0.7, 0.1, 0.4]])),
        Target(torch.tensor([1]), torch.tensor([[0.3, 0.3, 0.2, 0.5]])),
    ]
    for _ in range(number):
        optimizer.zero_grad()
        criterion(model(images, padding), targets).total.backward()
        optimizer.step()
    return before


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("part", [*PARTS, "all_but_heads"])
def test_what_is_frozen_does_not_move_and_all_the_rest_does(model, part):
    freeze(model, (part,))
    to_training_mode(model, (part,))
    before = steps(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    moved = changed(model, before)
    assert frozen
    assert not moved & frozen
    # Buffers too: the statistics of a frozen backbone's batch norm stay, and others follow the batches.
    moving_statistics = any("running_mean" in name for name in moved)
    assert moving_statistics == (part not in ("backbone", "all_but_heads"))
    # A linear layer before a softmax over queries may have a bias without an effect; nothing else stands still.
    still = {name for name, _ in model.named_parameters()} - frozen - moved
    assert not still, still


@pytest.mark.parametrize("part", OWNERS)
def test_parts_are_what_their_names_say(model, part):
    freeze(model, (part,))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(tuple(OWNERS[part]))}


def test_every_parameter_is_in_one_part(tiny_config):
    """The parts together are the network, and none counts a parameter that another has."""
    for variant in ("base", "refine", "two_stage"):
        config = replace(tiny_config.model, variant=variant)
        total = sum(parameter.numel() for parameter in build(config).parameters())
        frozen = 0
        for part in PARTS:
            model = build(config)
            freeze(model, (part,))
            assert count_parameters(model).trained + count_parameters(model).frozen == total
            frozen += count_parameters(model).frozen
        assert frozen == total


def test_all_but_heads_leaves_the_heads(model):
    freeze(model, ("all_but_heads", "encoder"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "class_head" in name or "box_head" in name}


def test_frozen_parts_are_in_evaluation_mode_at_every_depth(model):
    model.eval()
    to_training_mode(model, ("encoder", "backbone"))
    modes = {name: module.training for name, module in model.named_modules()}
    off = {name for name, training in modes.items() if not training}
    assert off == {name for name in modes if name.split(".")[0] == "encoder" or name.startswith("pyramid.backbone")}
    to_training_mode(model, ())
    assert all(module.training for module in model.modules())


def test_dropout_of_a_frozen_part_draws_nothing(tiny_config):
    model = build(replace(tiny_config.model, dropout=0.5, frozen_batch_norm=False))
    everything = ("backbone", "projections", "encoder", "queries", "decoder", "heads")
    image, padding = torch.randn(1, 3, 40, 56), torch.zeros(1, 40, 56, dtype=torch.bool)
    to_training_mode(model, everything)
    first, second = (model(image, padding).final.logits for _ in range(2))
    assert torch.equal(first, second)
    to_training_mode(model, everything[:2])
    first, second = (model(image, padding).final.logits for _ in range(2))
    assert not torch.equal(first, second)


def test_something_must_be_left(model):
    with pytest.raises(ConfigError, match="freeze holds all_but_heads, heads; nothing is left to train"):
        freeze(model, ("all_but_heads", "heads"))


def test_parts_must_exist(model):
    with pytest.raises(ConfigError, match=r"freeze holds 'spine'; there are heads, backbone, .*all_but_heads"):
        freeze(model, ("encoder", "spine"))


def test_numbers_are_counted_not_tensors():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[1].requires_grad_(False)
    assert count_parameters(model) == (20, 12)
