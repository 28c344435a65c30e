import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.runs.config import OptimizerConfig, ScheduleConfig
from deformable_detr.training.optimizer import (
    clip_gradients,
    learning_rate,
    make_optimizer,
    schedule_share,
    set_learning_rate,
)
from tests.dense import Dense, DenseConfig


def test_the_learning_rate_follows_the_root_of_the_batch():
    config = OptimizerConfig(base_lr=2e-4, base_batch_size=32)
    assert learning_rate(config, 32) == pytest.approx(2e-4)
    assert learning_rate(config, 2) == pytest.approx(5e-5)
    assert learning_rate(replace(config, lr=3e-4), 2) == 3e-4


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
    config, steps = ScheduleConfig(), 7
    shares = [schedule_share(config, step, 50 * steps) for step in range(50 * steps)]
    assert shares[: 40 * steps] == [1.0] * 40 * steps
    assert shares[40 * steps :] == [0.1] * 10 * steps


def test_warm_up_is_linear_and_one_never_drops():
    config = ScheduleConfig(warmup_steps=3, drop_at=1.0)
    assert [schedule_share(config, step, 6) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_every_group_keeps_its_share():
    model = Dense(DenseConfig(num_classes=2))
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


def test_a_cosine_falls_from_the_warm_up_to_the_last_step():
    config = ScheduleConfig(shape="cosine", warmup_steps=4, final_factor=0.1)
    shares = [schedule_share(config, step, 21) for step in range(21)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[12] == pytest.approx(0.55)  # half of the way down
    assert shares[20] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(shares[4:]))


def test_a_flat_cosine_falls_from_drop_at_on():
    config = ScheduleConfig(shape="flat_cosine", drop_at=0.5, final_factor=0.0)
    shares = [schedule_share(config, step, 21) for step in range(21)]
    assert shares[:11] == [1.0] * 11
    assert shares[15] == pytest.approx(0.5)
    assert shares[20] == pytest.approx(0.0)
    assert [schedule_share(replace(config, drop_at=1.0), step, 5) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("name", ["cosine", "flat_cosine", "step"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_a_learning_rate(name, total):
    config = ScheduleConfig(shape=name, warmup_steps=5)
    assert all(0 < schedule_share(config, step, total) <= 1 for step in range(total))


def test_every_part_has_its_factor():
    with torch.device("meta"):
        model = build(DeformableDETRConfig(variant="two_stage"), load_backbone_weights=False)
    config = OptimizerConfig(encoder_lr_factor=0.5, decoder_lr_factor=0.25, heads_lr_factor=3.0)
    optimizer = make_optimizer(model, config, 1.0)
    rates = {parameter: group["peak_lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: rates[parameter] for name, parameter in model.named_parameters() if parameter in rates}
    wanted = {
        "encoder.layers.0.ffn.": 0.5,
        "encoder.layers.5.self_attention.sampling_offsets.": 0.05,
        "decoder.layers.0.ffn.": 0.25,
        "decoder.layers.0.cross_attention.sampling_offsets.": 0.025,
        "decoder.class_heads.": 3.0,
        "query_source.box_head.": 3.0,
        "pyramid.backbone.": 0.1,
        "pyramid.projections.": 1.0,
    }
    for start, factor in wanted.items():
        of_it = [rate for name, rate in found.items() if name.startswith(start)]
        assert of_it, start
        assert of_it == pytest.approx([factor] * len(of_it)), start
    assert optimizer.param_groups[0]["peak_lr"] == 1.0
    assert len(rates) == sum(parameter.requires_grad for parameter in model.parameters())
