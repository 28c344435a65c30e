import json
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.presets import find_preset
from deformable_detr.models import MODELS, build
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.config_file import from_json, to_json
from deformable_detr.runs.recipes import (
    RECIPES,
    find_recipe,
    finetune,
    small,
    with_augmentation,
    with_backbone,
    with_image_size,
)
from deformable_detr.training.optimizer import learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_plain_data_named_like_their_function_and_documented(name):
    config = RECIPES[name]()
    assert config.name == name
    assert from_json(json.loads(json.dumps(to_json(config))), "it") == config
    document = RECIPES[name].__doc__
    assert "ddetr " in document
    assert "Cost:" in document
    assert "Expected:" in document


# Trainable and all parameters of the official code.
@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [
        ("paper_r50", 39_847_265, 40_069_665),
        ("paper_r50_refine", 40_627_260, 40_849_660),
        ("paper_r50_two_stage", 40_959_129, 41_181_529),
        ("paper_r50_single_scale", 33_844_193, 34_066_593),
        ("paper_r50_single_scale_dc5", 33_844_193, 34_066_593),
    ],
)
def test_the_papers_recipes_are_the_papers_models_and_settings(name, trainable, total):
    config = RECIPES[name]()
    with torch.device("meta"):
        model = build(config.model, load_backbone_weights=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.parameters()) == total
    assert (config.schedule.epochs, config.run.batch_size, learning_rate(config.optimizer, 32)) == (50, 32, 2e-4)
    assert (config.preprocessing.short_side, config.preprocessing.max_side) == (800, 1333)


def test_the_largest_model_is_the_two_stage_one_on_another_backbone():
    config = RECIPES["paper_x101_dcn_two_stage"]()
    with torch.device("meta"):
        model = build(config.model, load_backbone_weights=False)
    # Blocks of layer2, layer3 and layer4: 4, 23 and 3.
    assert sum(name.endswith("offsets_and_mask.weight") for name, _ in model.named_parameters()) == 4 + 23 + 3
    plain = replace(config.model, backbone="resnet50.tv_in1k", deformable_stages=0)
    assert replace(config, name="paper_r50_two_stage", model=plain) == RECIPES["paper_r50_two_stage"]()


@pytest.mark.parametrize("name", ["detr_r50", "detr_r50_dc5"])
def test_the_recipes_of_detr_are_its_authors_models_and_settings(name):
    config = RECIPES[name]()
    with torch.device("meta"):
        model = MODELS.build(config.model, load_backbone_weights=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368
    assert config.model.dilation == name.endswith("dc5")
    assert (config.schedule.epochs, config.schedule.drop_at, config.run.batch_size) == (500, 400 / 500, 64)
    rate = learning_rate(config.optimizer, 64)
    assert (rate, rate * config.optimizer.backbone_lr_factor) == (1e-4, pytest.approx(1e-5))
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (1e-4, 0.1)
    assert model.make_criterion(config.criterion).weights == {"class": 1.0, "l1": 5.0, "giou": 2.0}
    assert (config.preprocessing.short_side, config.preprocessing.max_side) == (800, 1333)


def test_small_starts_from_trained_weights_and_fits_its_epochs():
    config = small()
    assert config.model.backbone_weights == "hub"
    assert config.schedule.epochs == "auto"


def test_another_image_size_scales_everything_in_proportion():
    config = with_image_size(TrainConfig(), 400)
    assert (config.preprocessing.short_side, config.preprocessing.max_side) == (400, 666)
    assert (max(config.augmentation.short_sides), config.augmentation.crop_min) == (400, 192)
    with pytest.raises(ConfigError, match="image size is 0"):
        with_image_size(TrainConfig(), 0)
    with pytest.raises(ConfigError, match="the image size is 100000; it must be at most 12003"):
        with_image_size(TrainConfig(), 100_000)
    assert with_image_size(TrainConfig(), 12_003).preprocessing.max_side == 20_000


def test_a_backbone_from_nothing_is_not_frozen():
    config = with_backbone(small(), name="resnet18", weights="none")
    assert (config.model.backbone, config.model.frozen_stages, config.model.frozen_batch_norm) == ("resnet18", 0, False)
    config = with_backbone(small(), name=None, weights="some.pth")
    assert (config.model.backbone, config.model.backbone_weights) == (small().model.backbone, "some.pth")
    assert with_backbone(small(), name=None, weights=None) == small()


def test_recipes_are_found_by_name_or_file(tmp_path):
    assert find_recipe("small") == small()
    config = small().with_settings(seed=5)
    (tmp_path / "run.json").write_text(json.dumps(to_json(config)))
    assert find_recipe(str(tmp_path / "run.json")) == config
    with pytest.raises(ConfigError, match="did you mean small"):
        find_recipe("smal")
    with pytest.raises(ConfigError, match=r"cannot read .*nope\.json"):
        find_recipe(str(tmp_path / "nope.json"))
    (tmp_path / "cut.json").write_text('{"epochs": 3')
    with pytest.raises(ConfigError, match=r"cut.json is not valid JSON"):
        find_recipe(str(tmp_path / "cut.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="JSON list"):
        find_recipe(str(tmp_path / "list.json"))


def test_another_augmentation_is_brought_to_the_size_of_the_images():
    config = with_augmentation(with_image_size(small(), 400), "strong")
    assert config.augmentation == find_preset("strong").scaled(400)
    assert (config.augmentation.min_side, max(config.augmentation.short_sides)) == (2.0, 400)
    assert config == with_image_size(with_augmentation(small(), "strong"), 400)


def test_finetune_is_gentler_than_small():
    assert finetune().schedule.epochs == "auto"
    assert learning_rate(finetune().optimizer, 4) < learning_rate(small().optimizer, 4) / 2
    assert finetune().schedule.warmup_steps == "auto"  # left to the data, as in small
