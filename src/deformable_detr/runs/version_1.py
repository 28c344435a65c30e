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
    return not {*_NOW, *_DECIDERS}.isdisjoint(data) or "schedule" in data.get("optimizer", {})


def from_version_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of version 2 for those of a file of version 1."""
    # Into groups. Settings that version 2 does not know stay, so that reading them fails with their names.
    new: dict[str, Any] = {}
    for name, value in old.items():
        if name in _NOW:
            group, setting = _NOW[name]
            new.setdefault(group, {})[setting] = value
        elif name not in ("optimizer", *_DECIDERS):
            new[name] = value
    for name, value in old.get("optimizer", {}).items():
        group, setting = _NOW_OF_OPTIMIZER.get(name, ("optimizer", name))
        new.setdefault(group, {})[setting] = value
    # A missing value, or another setting that named who decides, is "auto" now.
    for group, setting in (("schedule", "epochs"), ("schedule", "warmup_steps"), ("run", "eval_every")):
        if setting in new.get(group, {}) and new[group][setting] is None:
            new[group][setting] = "auto"
    if old.get("batch_size_by") == "memory":
        new.setdefault("run", {})["batch_size"] = "auto"
    if old.get("size_by") in ("objects", "weights"):
        new["preprocessing"] = "auto" if old["size_by"] == "objects" else "weights"
    if old.get("augmentation_by") == "data":
        new["augmentation"] = "auto"
    # A rate that followed the batch size is the base rate now.
    optimizer = new.setdefault("optimizer", {})
    rate, batch_size = optimizer.pop("lr", _LR), optimizer.pop("lr_batch_size", _LR_BATCH_SIZE)
    optimizer |= {"lr": rate} if batch_size is None else {"base_lr": rate, "base_batch_size": batch_size}
    # Patience counted epochs; now it counts evaluations.
    interval, patience = new.get("run", {}).get("eval_every", 1), new.get("stopping", {}).get("patience")
    if isinstance(interval, int) and isinstance(patience, int):
        new["stopping"]["patience"] = -(-patience // interval)
    return new
