import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from deformable_detr.errors import ConfigError
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.optimizer import (
    OptimizerConfig,
    clip_gradients,
    learning_rate,
    make_optimizer,
    schedule,
    set_learning_rate,
)


def test_the_learning_rate_follows_the_root_of_the_batch():
    config = OptimizerConfig(lr=2e-4, lr_batch_size=32)
    assert learning_rate(config, 32) == pytest.approx(2e-4)
    assert learning_rate(config, 2) == pytest.approx(5e-5)
    assert learning_rate(replace(config, lr_batch_size=None), 2) == 2e-4


def test_the_groups_of_the_paper_count_as_in_the_official_code():
    with torch.device("meta"):
        model = build(DeformableDETRConfig(), load_backbone_weights=False)
    optimizer = make_optimizer(model, OptimizerConfig(), 2e-4)
    counts = [sum(parameter.numel() for parameter in group["params"]) for group in optimizer.param_groups]
    assert counts == [15_824_735, 23_232_512, 790_018]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-4, 2e-5, 2e-5])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert all(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"])


def test_the_schedule_drops_after_40_of_50_epochs():
    config, steps = OptimizerConfig(), 7
    shares = [schedule(config, step, 50 * steps) for step in range(50 * steps)]
    assert shares[: 40 * steps] == [1.0] * 40 * steps
    assert shares[40 * steps :] == [0.1] * 10 * steps


def test_warm_up_is_linear_and_one_never_drops():
    config = OptimizerConfig(warmup_steps=3, drop_at=1.0)
    assert [schedule(config, step, 6) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_every_group_keeps_its_share():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    optimizer = make_optimizer(model, OptimizerConfig(backbone_lr_factor=0.5), 0.2)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.01])


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 100.0])
def test_clipping_reports_the_2_norm_from_before(clip_norm):
    model = nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 2.0), torch.tensor([1.0, -4.0])
    norm = math.sqrt(6 * 4 + 1 + 16)
    assert clip_gradients(model, clip_norm) == pytest.approx(norm)
    left = math.sqrt(float(model.weight.grad.square().sum() + model.bias.grad.square().sum()))
    assert left == pytest.approx(0.5 if clip_norm == 0.5 else norm, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": math.nan},
        {"clip_norm": -0.1},
        {"weight_decay": math.inf},
        {"lr_batch_size": 0},
        {"warmup_steps": -1},
        {"drop_at": 0.0},
        {"drop_at": 1.5},
    ],
)
def test_values_no_run_could_mean_are_refused(settings):
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(settings))} is"):
        OptimizerConfig(**settings)
