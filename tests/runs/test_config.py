import math
from dataclasses import replace

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models.interface import GivenModelConfig
from deformable_detr.runs.config import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, idle_remarks
from deformable_detr.runs.recipes import detr_small, finetune, small, with_image_size


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule.epochs": 0},
        {"run.batch_size": 0},
        {"run.eval_every": 0},
        {"run.log_every": 0},
        {"run.seed": -1},
        {"data.num_workers": -1},
        {"data.val_share": 1.0},
        {"data.image_cache_gb": -1.0},
        {"data.image_cache_gb": math.nan},
        {"data.image_cache_gb": math.inf},
        {"optimizer.lr": 0.0},
        {"optimizer.lr": -1.0},
        {"optimizer.lr": math.nan},
        {"optimizer.base_lr": 0.0},
        {"optimizer.clip_norm": -0.1},
        {"optimizer.weight_decay": math.inf},
        {"optimizer.base_batch_size": 0},
        {"optimizer.heads_lr_factor": -0.5},
        {"optimizer.ema_decay": 1.0},
        {"schedule.warmup_steps": -1},
        {"schedule.drop_at": 0.0},
        {"schedule.drop_at": 1.5},
        {"schedule.final_factor": 1.5},
        {"compute.accumulate": 0},
        {"checkpoints.save_every": -1.0},
        {"checkpoints.keep_last": 0},
        {"stopping.patience": -1},
    ],
    ids=str,
)
def test_values_no_run_could_mean_are_refused(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is"):
        TrainConfig().with_settings(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 5, "batch_size": 4}, "accumulate is 5 and run.batch_size 4"),
        ({"best_by": "map"}, "no metric 'map'; there are ap, ap50"),
        ({"best_by": "cat/ap_small"}, "CLASS/ap, CLASS/ap50"),
        ({"preprocessing": "weights"}, "preprocessing is 'weights', but run.start is 'backbone'"),
        ({"ema_decay": "half"}, "setting optimizer.ema_decay is 'half'; it must be a number or one of 'auto'"),
        ({"epochs": "many"}, "setting schedule.epochs is 'many'; it must be an integer or one of 'auto'"),
        ({"max_side": 900}, "several settings are called max_side: preprocessing.max_side, augmentation.max_side"),
        ({"epoch": 3}, "unknown setting epoch; did you mean schedule.epochs"),
        ({"model.name": "detr"}, "unknown setting model.name"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig().with_settings(settings)


def test_what_is_left_to_the_data_cannot_be_set_as_well():
    with pytest.raises(ConfigError, match=r"preprocessing.max_side is set, but preprocessing is 'auto'.*--image-size"):
        small().with_settings({"preprocessing.max_side": 300})
    with pytest.raises(ConfigError, match=r"preprocessing.short_side is set, but preprocessing is 'weights'"):
        finetune().with_settings({"preprocessing.short_side": 900})
    with pytest.raises(ConfigError, match=r"hflip is set, but augmentation is 'auto'.*--augment"):
        small().with_settings(hflip=0.0)
    with pytest.raises(ConfigError, match=r"augmentation is set, but augmentation is 'auto'.*--augment"):
        small().with_settings(augmentation={"hflip": 0.0})
    assert small().with_settings(augmentation=Augmentation(hflip=0.0)).augmentation == Augmentation(hflip=0.0)
    assert isinstance(with_image_size(finetune(), 300).preprocessing, Preprocessing)


def test_settings_change_by_full_names_last_parts_and_groups():
    config = small().with_settings({"schedule.epochs": 7}, batch_size="auto", model={"num_queries": 50}, seed=3)
    assert (config.schedule.epochs, config.run.batch_size, config.run.seed) == (7, "auto", 3)
    assert config.model == replace(small().model, num_queries=50)
    assert config.optimizer == small().optimizer
    optimizer = OptimizerConfig(lr=1e-3)
    assert small().with_settings(optimizer=optimizer) == replace(small(), optimizer=optimizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule.shape": "cosine", "schedule.drop_at": 0.5}, "schedule.drop_at has no effect: schedule.shape is"),
        ({"final_factor": 0.5}, "schedule.final_factor has no effect: schedule.shape is 'step'"),
        ({"crop_probability": 0.0, "crop_min": 100}, "augmentation.crop_min has no effect: .*crop_probability is 0"),
        ({"zoom_out_most": 2.0}, "augmentation.zoom_out_most has no effect: augmentation.zoom_out is 0"),
        ({"mosaic_scale": [0.6, 0.9]}, "augmentation.mosaic_scale has no effect"),
        ({"mixing_off": 0.5}, "augmentation.mixing_off has no effect: augmentation.mosaic and mixup are 0"),
        ({"mosaic": 0.5, "until": 0.8, "mixing_off": 0.2}, "augmentation.mixing_off has no effect: .*until is 0.8"),
        ({"crop_probability": 0.0, "until": 0.8}, "augmentation.until has no effect: images are only flipped"),
        ({"lr": 1e-3, "base_lr": 1e-4}, "optimizer.base_lr has no effect: optimizer.lr is 0.001"),
        ({"freeze": ["encoder"], "encoder_lr_factor": 0.5}, "optimizer.encoder_lr_factor has no effect"),
        ({"freeze": ["all_but_heads"], "backbone_lr_factor": 0.5}, "optimizer.backbone_lr_factor has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused_to_who_chooses_it(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig().with_settings(settings)


def test_an_end_of_variation_and_a_later_end_of_mixing_go_together():
    config = TrainConfig().with_settings(mosaic=0.5, until=0.8, mixing_off=0.3)
    assert (config.augmentation.until, config.augmentation.mixing_off) == (0.8, 0.3)
    assert idle_remarks(TrainConfig().with_settings(mosaic=0.5, until=0.8)) == []
    assert idle_remarks(TrainConfig().with_settings(mosaic=0.5, until=0.8, hflip=0.0)) == []


def test_a_setting_without_effect_that_came_from_elsewhere_is_remarked():
    assert idle_remarks(small()) == idle_remarks(TrainConfig()) == []
    without_crops = replace(Augmentation(crop_probability=0.0), crop_min=100)
    config = replace(TrainConfig(), augmentation=without_crops, schedule=ScheduleConfig(final_factor=0.5))
    first, second = idle_remarks(config)
    assert first == "schedule.final_factor is 0.5 and has no effect: schedule.shape is 'step', which falls to a tenth"
    assert second.startswith("augmentation.crop_min is 100 and has no effect")
    # A smaller image size is no choice of windows.
    assert idle_remarks(with_image_size(TrainConfig(augmentation=Augmentation(crop_probability=0.0)), 96)) == []


def test_a_number_of_queries_that_somebody_sets_is_left_alone():
    assert small().run.fit_queries
    for settings in (
        {"num_queries": 50},
        {"model.num_queries": 50},
        {"model": {"num_queries": 50}},
        {"model": replace(small().model, num_queries=50)},
    ):
        config = small().with_settings(settings)
        assert (config.model.num_queries, config.run.fit_queries) == (50, False)
    assert small().with_settings(dropout=0.2, epochs=3, model={"proposals": "valid"}).run.fit_queries
    # Its own number, when it is named; not when the rest of the model is new, as with `replace`.
    for settings in ({"num_queries": 100}, {"model": {"num_queries": 100, "dropout": 0.2}}):
        assert not small().with_settings(settings).run.fit_queries
    model = replace(small().model, dropout=0.2)
    assert small().with_settings(model=model) == replace(small(), model=model)
    assert small().with_settings(model=model).run.fit_queries
    assert not small().with_settings({"model": model, "model.num_queries": 100}).run.fit_queries
    assert not small().with_settings(model=model, run=RunConfig(batch_size=4)).run.fit_queries
    assert replace(small(), model=replace(model, num_queries=50)).run.fit_queries
    both = small().with_settings(num_queries=50, fit_queries=True)
    assert (both.model.num_queries, both.run.fit_queries) == (50, True)
    assert not TrainConfig().run.fit_queries


def test_queries_of_a_network_of_ones_own_cannot_be_fitted():
    config = replace(TrainConfig(), model=GivenModelConfig(class_name="Mine", num_classes=3))
    with pytest.raises(ConfigError, match=r"run.fit_queries has no effect: the network is one of your own"):
        config.with_settings(fit_queries=True)


@pytest.mark.parametrize("name", ["ap@queries", "ar_100@queries", "cat/ap50@queries"])
def test_metrics_with_more_detections_may_decide(name):
    assert TrainConfig().with_settings(best_by=name).checkpoints.best_by == name
    with pytest.raises(ConfigError, match="no metric 'xap@queries'; there are ap, ap50"):
        TrainConfig().with_settings(best_by="xap@queries")


def test_settings_of_another_kind_of_model_are_idle():
    for config, name, why in (
        (detr_small(), "criterion.focal_gamma", "cross-entropy in place of the focal loss"),
        (detr_small(), "optimizer.offsets_lr_factor", "no sampling offsets"),
        (small(), "criterion.no_object_weight", "no class for 'no object'"),
    ):
        with pytest.raises(ConfigError, match=f"{name} has no effect: .*{why}"):
            config.with_settings({name: 0.5})
    assert idle_remarks(detr_small()) == []
    assert detr_small().with_settings(no_object_weight=0.2).criterion.no_object_weight == 0.2
    assert small().with_settings(focal_alpha=0.3).criterion.focal_alpha == 0.3
