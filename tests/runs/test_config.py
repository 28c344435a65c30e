import math
from dataclasses import replace

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.runs.config import OptimizerConfig, TrainConfig
from deformable_detr.runs.recipes import (
    finetune,
    small,
    with_image_size,
)


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"batch_size": 0}, {"eval_every": 0}, {"log_every": 0}, {"num_workers": -1}, {"val_share": 1.0}],
)
def test_values_no_run_could_mean_are_refused(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is"):
        TrainConfig(**settings)


def test_what_is_left_to_the_data_cannot_be_set_as_well():
    with pytest.raises(ConfigError, match=r"preprocessing.short_side is 300, but size_by is 'objects'.*--image-size"):
        replace(small(), preprocessing=Preprocessing(short_side=300))
    with pytest.raises(ConfigError, match=r"preprocessing.max_side is 900, but size_by is 'weights'"):
        replace(finetune(), preprocessing=Preprocessing(max_side=900))
    with pytest.raises(ConfigError, match=r"augmentation is set, but augmentation_by is 'data'.*--augment"):
        replace(small(), augmentation=Augmentation(hflip=0.0))
    assert replace(small(), preprocessing=Preprocessing(mean=(0.0, 0.1, 0.2))).size_by == "objects"


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_impossible_caches(size):
    with pytest.raises(ConfigError, match="image_cache_gb"):
        TrainConfig(image_cache_gb=size)


def test_what_weights_bring_needs_weights_and_parts_must_exist():
    with pytest.raises(ConfigError, match="size_by is 'weights', but start is 'backbone'"):
        TrainConfig(size_by="weights")
    with pytest.raises(ConfigError, match="freeze holds 'spine'; there are backbone, projections, encoder"):
        TrainConfig(freeze=("encoder", "spine"))
    assert with_image_size(finetune(), 300).size_by == "settings"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"save_every": -1.0}, "save_every is -1.0"),
        ({"keep_last": 0}, "keep_last is 0"),
        ({"patience": -1}, "patience is -1"),
        ({"accumulate": 5, "batch_size": 4}, "accumulate is 5 and batch_size 4"),
        ({"best_by": "map"}, "no metric 'map'; there are ap, ap50"),
        ({"best_by": "cat/ap_small"}, "CLASS/ap, CLASS/ap50"),
    ],
)
def test_settings_of_a_run_no_run_could_mean_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        replace(TrainConfig(), **settings)


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
        {"final_factor": 1.5},
        {"heads_lr_factor": -0.5},
    ],
)
def test_optimizer_settings_no_run_could_mean_are_refused(settings):
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(settings))} is"):
        OptimizerConfig(**settings)
