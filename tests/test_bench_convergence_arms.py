"""Arms differ in what they say alone, and the networks of the benchmark's own do what they say."""

import itertools
from dataclasses import asdict

import pytest
import torch

from benchmarks.accuracy.convergence import arms
from benchmarks.accuracy.convergence.networks import OwnLevelAttention, SigmoidDETR
from benchmarks.accuracy.convergence.scenes import VARIANTS, Task
from deformable_detr.core.config import flat_settings
from deformable_detr.core.types import Target
from deformable_detr.models import interface_of
from deformable_detr.models.interface import class_scores_of
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.losses import CriterionConfig
from deformable_detr.runs.config_file import from_json, to_json

RATES = {"detr": 0.5, "deformable": 2.0, arms.FASTER_RCNN: 1.0}
TINY = ["model.backbone=test_resnet", "model.hidden_dim=32", "model.ffn_dim=48", "model.encoder_layers=1"]
TINY += ["model.decoder_layers=2", "model.num_queries=9"]


@pytest.fixture
def task(tmp_path):
    style = asdict(VARIANTS["sizes"])
    return Task(tmp_path, {"style": style, "images": {"train": 12, "val": 4, "test": 0}, "objects": {}})


def test_stages_have_the_arms_of_the_design():
    names = {stage: [arm.name for arm in arms.arms_of(stage, 100, 5, RATES)] for stage in arms.STAGES}
    assert names["pilot"] == ["two_stage_5_x1_s0", "detr_30_x1_s0"]
    assert sorted(names["grid"]) == sorted(
        f"{family}_x{factor:g}_s100" for family in ("detr_25", "base_10") for factor in (0.5, 1, 2)
    )
    curves = names["curves"]
    for decisive in ("detr_100_x0.5", "base_10_x2"):
        assert [name for name in curves if name.startswith(decisive)] == [f"{decisive}_s{seed}" for seed in range(5)]
    others = {"detr_50_x0.5", "detr_25_x0.5", "base_5_x2", "base_20_x2", "dino_10_x2", "detr_focal_100_x0.5"}
    others |= {f"{family}_{epochs}_x2" for family in ("refine", "two_stage") for epochs in (5, 10, 20)}
    assert {name.rpartition("_")[0] for name in curves} == others | {"detr_100_x0.5", "base_10_x2"}
    assert all(curves.count(f"{name}_s2") == 1 and f"{name}_s3" not in curves for name in others)
    assert curves[:2] == ["detr_100_x0.5_s0", "base_10_x2_s0"]
    assert set(names["table2"]) & set(curves) == {f"base_10_x2_s{seed}" for seed in range(3)}
    assert len(names["table2"]) == 15
    assert len(names["yardstick"]) == 9


def test_a_learning_rate_is_chosen_first():
    with pytest.raises(SystemExit, match="deformable; run the stage grid first"):
        arms.arms_of("curves", 100, 5, {"detr": 1.0})
    assert arms.arms_of("grid", 100, 5, {})
    assert [arm.factor for arm in arms.arms_of("yardstick", 100, 5, {})] == [0.5, 1.0, 2.0]
    assert arms.share(7, 20) == 1
    few = arms.arms_of("curves", 6, 2, RATES)
    assert len(few) == len(set(few))


def test_families_share_all_but_the_network(task):
    settings = {}
    for family in arms.FAMILIES:
        config = arms.config_of(arms.Arm(family, 6, 1.0, 3), task, "none")
        settings[family] = flat_settings(to_json(config))
        assert from_json(to_json(config), "here") == config
    may_differ = {"name", "optimizer.base_lr", "schedule.drop_at"}
    for first, second in itertools.combinations(settings.values(), 2):
        assert {name for name in first if name.split(".")[0] != "model" and first[name] != second[name]} <= may_differ
    shared = [f"model.{name}" for name in ("hidden_dim", "num_heads", "encoder_layers", "decoder_layers", "ffn_dim")]
    for name in (*shared, "model.num_queries", "model.backbone", "model.frozen_stages", "model.dropout"):
        assert len({one[name] for one in settings.values()}) == 1, name
    assert settings["detr"]["schedule.drop_at"] == pytest.approx(2 / 3)
    assert settings["base"]["schedule.drop_at"] == 0.8
    assert settings["detr"]["augmentation.short_sides"] == settings["base"]["augmentation.short_sides"]
    assert list(settings["detr"]["augmentation.short_sides"]) == [128]
    assert settings["detr"]["augmentation.max_side"] >= 160


def test_factor_seed_and_overrides_arrive(task):
    plain = arms.config_of(arms.Arm("detr", 6, 1.0, 0), task, "none")
    changed = arms.config_of(arms.Arm("detr", 7, 2.0, 4), task, "weights.safetensors", ["model.num_queries=9"])
    assert changed.optimizer.base_lr == 2 * plain.optimizer.base_lr
    assert (changed.schedule.epochs, changed.run.seed, changed.model.num_queries) == (7, 4, 9)
    assert (changed.model.backbone_weights, changed.model.frozen_stages) == ("weights.safetensors", 2)
    assert (plain.model.frozen_stages, plain.model.frozen_batch_norm) == (0, False)


def network(family, task, seed=0, **more):
    arm = arms.Arm(family, 6, 1.0, seed)
    settings = TINY + [f"model.{name}={value}" for name, value in more.items()]
    return arms.network_of(arm, arms.config_of(arm, task, "none", settings))


def test_detr_with_sigmoid_scores(task):
    model = network("detr_focal", task)
    assert isinstance(model, SigmoidDETR)
    assert interface_of(model).num_classes == 3
    assert class_scores_of(model) == "sigmoid"
    images = torch.randn(2, 3, 64, 96)
    output = model(images, torch.zeros(2, 64, 96, dtype=torch.bool))
    assert output.final.logits.shape == (2, 9, 3)
    targets = [
        Target(torch.tensor([2, 0]), torch.rand(2, 4) * 0.3 + 0.3),
        Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
    ]
    losses = model.make_criterion(CriterionConfig())(output, targets)
    losses.total.backward()
    assert model.decoder.class_head.weight.grad.abs().sum() > 0
    # Every class starts improbable, as in the other arms with this loss.
    assert output.final.logits.sigmoid().mean() < 0.1


def test_the_same_seed_gives_the_same_network(task):
    first, again, other = (network("inputs_k4", task, seed) for seed in (0, 0, 1))
    weights = [torch.cat([one.flatten() for one in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert network("base", task) is None


def test_positions_attend_to_their_own_level_alone(task):
    model = network("inputs_k4", task).eval()
    attention = model.encoder.layers[0].self_attention
    assert isinstance(attention, OwnLevelAttention)
    assert attention.num_points == 4
    assert not isinstance(model.decoder.layers[0].cross_attention, OwnLevelAttention)
    shapes = ((7, 5), (4, 3), (2, 2))
    sizes = [35, 12, 4]
    generator = torch.Generator().manual_seed(0)
    query, tokens = (torch.randn(2, 51, 32, generator=generator) for _ in range(2))
    reference = torch.rand(2, 51, 3, 2, generator=generator)
    padding = torch.rand(2, 51, generator=generator) < 0.2
    with torch.no_grad():
        attention.sampling_offsets.weight.normal_(0, 0.3)
        attention.attention_weights.weight.normal_(0, 0.3)
        whole = attention(query, reference, tokens, padding, shapes)
        # Against attention with one level, given that level alone.
        alone = DeformableAttention(32, num_heads=4, num_levels=1, num_points=4)
        alone.load_state_dict(attention.state_dict())
        start = 0
        for level, size in enumerate(sizes):
            part = slice(start, start + size)
            expected = alone(
                query[:, part],
                reference[:, part, level : level + 1],
                tokens[:, part],
                padding[:, part],
                (shapes[level],),
            )
            torch.testing.assert_close(whole[:, part], expected)
            start += size
        # What another level holds makes no difference.
        changed = tokens.clone()
        changed[:, 35:47] += 1
        again = attention(query, reference, changed, padding, shapes)
    assert torch.equal(whole[:, :35], again[:, :35])
    assert torch.equal(whole[:, 47:], again[:, 47:])
    assert not torch.allclose(whole[:, 35:47], again[:, 35:47])


def test_k_1_has_one_point(task):
    model = network("inputs_k1", task)
    assert model.encoder.layers[0].self_attention.num_points == 1
    assert model.decoder.layers[0].cross_attention.num_points == 1
    single = arms.config_of(arms.Arm("single_k1", 6, 1.0, 0), task, "none").model
    assert (single.num_levels, single.encoder_points, single.decoder_points, single.dilation) == (1, 1, 1, True)
    full = arms.config_of(arms.Arm("full_k1", 6, 1.0, 0), task, "none").model
    assert (full.num_levels, full.encoder_points, full.decoder_points) == (4, 1, 1)
