"""Backbone of a model from and to the config.json of transformers; each version keeps it in another place."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deformable_detr.core.errors import CheckpointError, listed
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.models.layers.backbone import Backbone

_NATIVE_RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_NATIVE_SIZES = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
_NATIVE_FIXED = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_BATCH_NORM_EPS = 1e-5
BACKBONE_TYPES: dict[str, Any] = {
    "model_type": str | None,
    "backbone": str | None,
    "output_stride": int | None,
    "num_channels": int,
    "in_chans": int,
    "layer_type": str,
    "depths": tuple[int, ...],
    "hidden_sizes": tuple[int, ...],
    "out_indices": tuple[int, ...] | None,
    "out_features": tuple[str, ...] | None,
    "freeze_batch_norm_2d": bool | None,
}
"""Types of the entries of "backbone_config" and "backbone_kwargs" that are read here."""


def backbone_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name and dilation of the backbone that a config.json describes, by the names of our settings.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: timm has no such network, or two settings contradict each other.
    """
    described = settings.get("backbone_config")
    dilation = bool(settings.get("dilation", False))
    if described is None and settings.get("use_timm_backbone", True):
        described = {"model_type": "timm_backbone", "backbone": settings.get("backbone") or "resnet50"}
        described |= _timm_settings(settings.get("backbone_kwargs"), dilation)
    elif described is None:
        described = {"model_type": "resnet"}
    kind = described.get("model_type")
    if kind == "resnet":
        found = {"backbone": _native_name(described), "dilation": False}
    elif kind == "timm_backbone":
        found = {"backbone": described.get("backbone"), "dilation": _is_dilated(described)}
    else:
        raise CheckpointError(f"backbone_config is of type {shown(kind)}; a timm_backbone or resnet can be built here")
    if found["dilation"] != dilation:
        raise CheckpointError(f"dilation is {dilation}, but the backbone's own settings say {found['dilation']}")
    return found


def maps_there(settings: Mapping[str, Any], flat: list[int], count: int) -> list[int]:
    """Maps of the backbone that a config.json asks for, counted from the finest; `count` is how many there are.

    Args:
        settings: content of the file.
        flat: maps of a backbone of timm that is only named.
        count: number of maps that the backbone has.
    """
    described = settings.get("backbone_config") or settings.get("backbone_kwargs") or {}
    maps = described.get("out_indices")
    if maps is None and described.get("out_features"):
        names = ["stem", *(f"stage{number}" for number in range(1, 5))]
        maps = [names.index(name) for name in described["out_features"] if name in names]
    if maps is None:
        maps = flat if not described and settings.get("use_timm_backbone", True) else [-1]
    return [index if index >= 0 else index + count for index in maps]


def body_of(backbone: str, dilation: bool, num_maps: int) -> nn.Module:
    """Backbone on the meta device, without memory for its weights.

    Raises:
        ConfigError: timm does not know the name, or the network cannot give these maps.
    """
    with torch.device("meta"):
        return Backbone(backbone, num_maps=num_maps, dilation=dilation, frozen_stages=0, frozen_batch_norm=False).body


def maps_of(body: Any) -> list[int]:
    """Maps that a backbone gives, counted from the finest."""
    return list(body.feature_info.out_indices)


def check_norms(body: nn.Module, backbone: str, settings: Mapping[str, Any]) -> None:
    """Refuse models in which transformers puts another batch norm in the place of the backbone's.

    Args:
        body: the backbone.
        backbone: its name.
        settings: content of the config.json.

    Raises:
        CheckpointError: it does so here.
    """
    described = settings.get("backbone_config") or settings.get("backbone_kwargs") or {}
    if not _is_plain(body) and not described.get("freeze_batch_norm_2d"):
        raise CheckpointError(
            f"backbone {backbone}: transformers puts its own batch norm in the place of this network's, without "
            "the activation or the epsilon that belong to it; such a model cannot be built here"
        )


def backbone_settings(backbone: str, dilation: bool, num_maps: int, flat: list[int] | None) -> dict[str, Any]:
    """Entries of config.json for a backbone.

    Args:
        backbone: name in timm.
        dilation: whether its last stage is dilated.
        num_maps: number of maps that the network takes of it.
        flat: maps that transformers takes where a backbone of timm is only named; None if it would take others.
    """
    body = body_of(backbone, dilation, num_maps)
    maps = maps_of(body)
    common = {"backbone": backbone, "use_pretrained_backbone": False}
    if _is_plain(body) and flat is not None and maps == flat[-num_maps:]:
        # Versions 4 and 5 both understand this.
        return {"use_timm_backbone": True, "dilation": dilation, **common}
    described = {"model_type": "timm_backbone", "num_channels": 3, "features_only": True, "out_indices": maps, **common}
    if dilation:
        described["output_stride"] = 16
    if not _is_plain(body):
        described["freeze_batch_norm_2d"] = True
    return {"backbone_config": described, "dilation": dilation}


def _is_plain(body: nn.Module) -> bool:
    """Whether their models can replace every batch norm by their own without changing a result."""
    from timm.layers.norm_act import BatchNormAct2d

    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    return all(norm.eps == _BATCH_NORM_EPS and not isinstance(norm, BatchNormAct2d) for norm in norms)


def _timm_settings(arguments: Mapping[str, Any] | None, dilation: bool) -> dict[str, Any]:
    if not arguments:
        return {"output_stride": 16 if dilation else None}
    known = {"out_indices": "out_indices", "output_stride": "output_stride", "in_chans": "num_channels"}
    foreign = sorted(set(arguments) - known.keys() - {"features_only"})
    if foreign:
        raise CheckpointError(f"backbone_kwargs has {one_line(listed(foreign))}; such a backbone cannot be built here")
    return {known[name]: value for name, value in arguments.items() if name in known}


def _is_dilated(described: Mapping[str, Any]) -> bool:
    stride, channels = described.get("output_stride"), described.get("num_channels", 3)
    if stride not in (None, 32, 16):
        raise CheckpointError(f"the backbone's output_stride is {stride}; 32 and 16 (dilation) can be built here")
    if channels != 3:
        raise CheckpointError(f"the backbone takes images of {channels} channels; here they have 3")
    return stride == 16


def _native_name(described: Mapping[str, Any]) -> str:
    layer = described.get("layer_type", "bottleneck")
    depths = tuple(described.get("depths", (3, 4, 6, 3)))
    name = _NATIVE_RESNETS.get((layer, depths))
    unlike = [key for key, value in _NATIVE_FIXED.items() if described.get(key, value) != value]
    if name is None or list(described.get("hidden_sizes", _NATIVE_SIZES["bottleneck"])) != _NATIVE_SIZES[layer]:
        raise CheckpointError(
            f"backbone_config is a ResNet of {one_line(layer)} layers {shown(list(depths))} that timm has no name for"
        )
    if unlike:
        raise CheckpointError(f"backbone_config.{unlike[0]} is {shown(described[unlike[0]])}; timm's {name} differs")
    return name
