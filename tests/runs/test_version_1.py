import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.config_file import from_json, to_json

OLD = {
    "name": "old",
    "model": {"num_queries": 50},
    "optimizer": {"lr": 8e-4, "lr_batch_size": 4, "warmup_steps": None, "schedule": "cosine", "final_factor": 0.1},
    "preprocessing": {"short_side": 300},
    "epochs": None,
    "batch_size": 4,
    "batch_size_by": "settings",
    "eval_every": 3,
    "size_by": "settings",
    "augmentation_by": "data",
    "augmentation": {"hflip": 0.5},
    "patience": 7,
    "ema_decay": 0.5,
    "seed": 5,
}


def test_settings_of_the_first_version_are_brought_into_groups():
    config = from_json(OLD, "config.json")
    assert (config.name, config.model.num_queries, config.run.seed) == ("old", 50, 5)
    assert (config.optimizer.lr, config.optimizer.base_lr, config.optimizer.base_batch_size) == ("auto", 8e-4, 4)
    schedule = config.schedule
    assert (schedule.epochs, schedule.warmup_steps, schedule.shape, schedule.final_factor) == (
        "auto",
        "auto",
        "cosine",
        0.1,
    )
    assert (config.preprocessing.short_side, config.augmentation) == (300, "auto")
    assert (config.run.batch_size, config.run.eval_every, config.optimizer.ema_decay) == (4, 3, 0.5)
    assert config.stopping.patience == 3  # it counted epochs, of which every third was evaluated
    by_memory = {"batch_size_by": "memory", "size_by": "objects", "optimizer": {"lr": 1e-3, "lr_batch_size": None}}
    config = from_json({**OLD, **by_memory}, "config.json")
    assert (config.run.batch_size, config.preprocessing, config.optimizer.lr) == ("auto", "auto", 1e-3)
    with pytest.raises(ConfigError, match="unknown setting num_querys"):
        from_json({**OLD, "num_querys": 3}, "config.json")


def test_every_setting_of_the_first_version_has_a_place_now():
    """Names from a config.json that was written then."""
    names = [
        *("epochs", "batch_size", "seed", "num_workers", "image_cache_gb", "val_share", "eval_every", "log_every"),
        *("skip_bad_images", "start", "freeze", "accumulate", "activation_checkpointing", "compile", "precision"),
        *("sharded", "ema_decay", "best_by", "patience", "save_every", "keep_last", "on_non_finite"),
    ]
    default = to_json(TrainConfig())
    flat = {name: value for group in default.values() if isinstance(group, dict) for name, value in group.items()}
    assert from_json({name: flat[name] for name in names}, "config.json") == TrainConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": 5}, "setting optimizer is 5; it must be a group of settings"),
        ({"optimizer": None}, "setting optimizer is None; it must be a group"),
        ({"run": "x"}, "setting run is 'x'; it must be a group of settings"),
        ({"schedule": []}, r"setting schedule is \[\]; it must be a group"),
        ({"eval_every": 0}, r"run\.eval_every is 0; it must be at least 1"),
        ({"schema_version": "x" * 10**6}, r"has schema version 'xxx.*x'"),
    ],
)
def test_what_was_no_settings_then_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_json({**OLD, **changes}, "config.json")
    assert len(str(caught.value)) < 300
