"""Conversion of settings files of version 1, in which most settings were not in groups."""

from collections.abc import Mapping
from typing import Any

_GROUPS = {
    "data": ("val_share", "skip_bad_images", "num_workers", "image_cache_gb"),
    "run": ("seed", "batch_size", "start", "freeze", "eval_every", "log_every"),
    "compute": ("precision", "accumulate", "activation_checkpointing", "compile", "sharded"),
    "checkpoints": ("best_by", "save_every", "keep_last"),
    "stopping": ("patience", "on_non_finite"),
    "schedule": ("epochs",),
    "optimizer": ("ema_decay",),
}
_NOW = {name: (group, name) for group, names in _GROUPS.items() for name in names}
_NOW_OF_OPTIMIZER = {
    "schedule": ("schedule", "shape"),
    **{name: ("schedule", name) for name in ("warmup_steps", "drop_at", "final_factor")},
}
# Settings of version 1 that said who decides on another setting; now that setting is "auto" itself.
_DECIDERS = ("batch_size_by", "size_by", "augmentation_by")
_LR, _LR_BATCH_SIZE = 2e-4, 32


def is_version_1(data: Mapping[str, Any]) -> bool:
    """Whether settings that do not say their version are of version 1."""
    optimizer = data.get("optimizer")
    return not {*_NOW, *_DECIDERS}.isdisjoint(data) or (isinstance(optimizer, Mapping) and "schedule" in optimizer)


def from_version_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of version 2 for those of a file of version 1.

    What is no setting of version 1, or a group that is none, stays as it is: reading the settings refuses it.
    """
    new: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in old.items()
        if name not in (*_NOW, *_DECIDERS, "optimizer")
    }
    optimizer = old.get("optimizer", {})
    if not isinstance(optimizer, Mapping):
        return {**new, "optimizer": optimizer}
    # Into groups.
    places = {_NOW_OF_OPTIMIZER.get(name, ("optimizer", name)): value for name, value in optimizer.items()}
    places |= {_NOW[name]: value for name, value in old.items() if name in _NOW}
    for group in {"optimizer": None} | {group: None for group, _ in places}:
        moved = {setting: value for (name, setting), value in places.items() if name == group}
        if isinstance(new.setdefault(group, {}), dict):
            new[group] |= moved
    # A missing value, or another setting that named who decides, is "auto" now.
    for group, setting in (("schedule", "epochs"), ("schedule", "warmup_steps"), ("run", "eval_every")):
        if places.get((group, setting), 0) is None:
            _set(new, group, setting, "auto")
    if old.get("batch_size_by") == "memory":
        _set(new, "run", "batch_size", "auto")
    if old.get("size_by") in ("objects", "weights"):
        new["preprocessing"] = "auto" if old["size_by"] == "objects" else "weights"
    if old.get("augmentation_by") == "data":
        new["augmentation"] = "auto"
    # A rate that followed the batch size is the base rate now.
    rate, batch_size = new["optimizer"].pop("lr", _LR), new["optimizer"].pop("lr_batch_size", _LR_BATCH_SIZE)
    new["optimizer"] |= {"lr": rate} if batch_size is None else {"base_lr": rate, "base_batch_size": batch_size}
    # Patience counted epochs; now it counts evaluations.
    interval, patience = places.get(("run", "eval_every"), 1), places.get(("stopping", "patience"))
    if isinstance(interval, int) and isinstance(patience, int) and interval > 0:
        _set(new, "stopping", "patience", -(-patience // interval))
    return new


def _set(settings: dict[str, Any], group: str, setting: str, value: object) -> None:
    if isinstance(settings.setdefault(group, {}), dict):
        settings[group][setting] = value
