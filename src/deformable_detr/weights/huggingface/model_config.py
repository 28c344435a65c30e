"""Settings of a model from and to the config.json of transformers' `DeformableDetrForObjectDetection`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deformable_detr.core.config import fits, from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError, listed
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.weights.coco_classes import UNUSED

MODEL_TYPE = "deformable_detr"
"""Value of "model_type" in config.json."""
ARCHITECTURE = "DeformableDetrForObjectDetection"
"""Class name in "architectures" of config.json."""
OWN_ENTRY = "deformable_detr"
"""Entry of this package in config.json, for settings that transformers does not have; its models keep it unread."""

# Our setting -> their setting and its default.
_SIZES: dict[str, tuple[str, Any]] = {
    "num_levels": ("num_feature_levels", 4),
    "hidden_dim": ("d_model", 256),
    "num_heads": ("encoder_attention_heads", 8),
    "encoder_layers": ("encoder_layers", 6),
    "decoder_layers": ("decoder_layers", 6),
    "encoder_points": ("encoder_n_points", 4),
    "decoder_points": ("decoder_n_points", 4),
    "ffn_dim": ("encoder_ffn_dim", 1024),
    "dropout": ("dropout", 0.1),
}
# Pairs of their settings that are one of ours, with their default.
_EQUAL = {
    "encoder_attention_heads": ("decoder_attention_heads", 8),
    "encoder_ffn_dim": ("decoder_ffn_dim", 1024),
}
# Their settings that must have one value to be built by this package.
_FIXED = {"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3}
_SYNONYMS = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
# Settings that do not change the results of a trained network.
_IGNORED = (
    "activation_dropout attention_dropout encoder_layerdrop init_std init_xavier_std auxiliary_loss class_cost "
    "bbox_cost giou_cost mask_loss_coefficient dice_loss_coefficient bbox_loss_coefficient giou_loss_coefficient "
    "eos_coefficient focal_alpha disable_custom_kernels return_intermediate max_position_embeddings is_encoder_decoder "
    "tie_word_embeddings scale_embedding use_pretrained_backbone label2id dtype torch_dtype transformers_version "
    "_name_or_path return_dict output_attentions output_hidden_states problem_type chunk_size_feed_forward "
    "attn_implementation _attn_implementation num_hidden_layers"
)
_READ = (
    "model_type architectures id2label num_labels num_queries two_stage two_stage_num_proposals with_box_refine "
    "dilation use_timm_backbone backbone backbone_config backbone_kwargs"
)
# Settings of ours that `OWN_ENTRY` holds.
_OWN_SETTINGS = ("backbone_weights", "frozen_stages", "frozen_batch_norm")
_TIMM_STAGES = {1: [4], 3: [2, 3, 4]}
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
# Types of what is read here; sizes are checked where they become our settings.
_TYPES: dict[str, Any] = {
    "model_type": str | None,
    "architectures": tuple[str, ...] | None,
    "id2label": dict | None,
    "num_labels": int,
    "two_stage": bool | None,
    "with_box_refine": bool | None,
    "dilation": bool | None,
    "use_timm_backbone": bool | None,
    "backbone": str | None,
    "backbone_config": dict | None,
    "backbone_kwargs": dict | None,
    OWN_ENTRY: dict | None,
}
_BACKBONE_TYPES: dict[str, Any] = {
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


def model_from(settings: Mapping[str, Any]) -> tuple[DeformableDETRConfig, list[str]]:
    """Settings of the model that a config.json describes, and the names of its settings that are ignored as unknown.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: the file is of another model, or of one that this package cannot build.
    """
    # Refuse other models, and settings that our network cannot have.
    _check_types(settings, _TYPES, "")
    _check_kind(settings)
    for name in ("backbone_config", "backbone_kwargs"):
        _check_types(settings.get(name) or {}, _BACKBONE_TYPES, f"{name}.")
    settings = {_SYNONYMS.get(name, name): value for name, value in settings.items()}
    for name, expected in _FIXED.items():
        if settings.get(name, expected) != expected:
            raise CheckpointError(f"{name} is {shown(settings[name])}; only {expected!r} can be built here")
    for first, (second, default) in _EQUAL.items():
        one, other = settings.get(first, default), settings.get(second, default)
        if one != other:
            raise CheckpointError(f"{first} is {shown(one)} and {second} is {shown(other)}; here both must be equal")
    refine, two_stage = settings.get("with_box_refine", False), settings.get("two_stage", False)
    if two_stage and not refine:
        raise CheckpointError("two_stage is true and with_box_refine is false; two stages need refinement")
    # Our settings. Unknown values are refused by the settings class.
    queries = "two_stage_num_proposals" if two_stage else "num_queries"
    own = settings.get(OWN_ENTRY) or {}
    try:
        model: DeformableDETRConfig = from_dict(
            DeformableDETRConfig,
            {ours: settings.get(theirs, default) for ours, (theirs, default) in _SIZES.items()}
            | {name: own[name] for name in _OWN_SETTINGS if name in own}
            | _backbone_from(settings)
            | {
                "num_classes": _num_labels(settings),
                "variant": "two_stage" if two_stage else "refine" if refine else "base",
                "num_queries": settings.get(queries, 300),
            },
        )
        _check_maps(model, settings)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    known = {theirs for theirs, _ in (*_SIZES.values(), *_EQUAL.values())} | {OWN_ENTRY}
    return model, sorted(set(settings) - known - {*_READ.split(), *_IGNORED.split()} - _FIXED.keys())


def classes_from(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by channel, all different.

    Channels named "N/A" or without a name have no class. If several channels share another name, the later ones get the
    number of the channel added.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: the numbers do not count the channels from 0, or a name is not a text.
    """
    labels = _labels(settings)
    taken, names = set(labels), dict[str, None]()
    for channel, label in enumerate(labels):
        name = f"{UNUSED}{channel}" if label in ("N/A", "") else label
        while name in names or (name != label and name in taken):
            name = f"{name} ({channel})"
        names[name] = None
    return tuple(names)


def category_ids_from(settings: Mapping[str, Any], classes: Sequence[str]) -> tuple[Any, ...]:
    """Category ids of the data set if this package wrote the file and its classes are unchanged; else 0, 1, 2, ...

    They are as they stand there, and not checked to be numbers.
    """
    own = settings.get(OWN_ENTRY) or {}
    ids = own.get("category_ids")
    if own.get("classes") == list(classes) and isinstance(ids, list) and len(ids) == len(classes):
        return tuple(ids)
    return tuple(range(len(classes)))


def model_settings(model: DeformableDETRConfig, classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """Content of transformers' config.json for a Deformable DETR.

    Args:
        model: settings of the model.
        classes: class names by class id.
        category_ids: category ids of the data set, by class id.

    Raises:
        CheckpointError: their model cannot compute the same; the message names the setting.
    """
    if model.features != "padded":
        raise CheckpointError(
            f"features is {model.features!r}: models of transformers always see the padded batch and would find "
            "something else in images of unequal sizes; set features to 'padded' if images will come one at a time, "
            "nothing differs then"
        )
    if model.proposals != "paper":
        raise CheckpointError(
            f"proposals is {model.proposals!r}: models of transformers let proposals in the padding compete and would "
            "choose others; only what was trained with --set model.proposals=paper can be written"
        )
    if model.deformable_stages:
        raise CheckpointError(
            f"deformable_stages is {model.deformable_stages}: models of transformers have no deformable convolutions "
            "in their backbones"
        )
    if training_only := model.training_tensors:
        raise CheckpointError(f"{training_only}: models of transformers have no queries for training alone")
    equal = {second: getattr(model, "num_heads" if "heads" in second else "ffn_dim") for second, _ in _EQUAL.values()}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        **{theirs: getattr(model, ours) for ours, (theirs, _) in _SIZES.items()},
        **equal,
        **_FIXED,
        "attention_dropout": model.dropout,
        "activation_dropout": model.dropout,
        "num_queries": model.num_queries,
        "two_stage_num_proposals": model.num_queries,
        "with_box_refine": model.variant != "base",
        "two_stage": model.variant == "two_stage",
        # The published weights; their defaults are others.
        "class_cost": 2,
        "auxiliary_loss": True,
        # Else they would share one class head among all layers, also with refinement.
        "tie_word_embeddings": model.variant != "refine",
        **_backbone_of(model),
        "id2label": {str(channel): name for channel, name in enumerate(classes)},
        "label2id": {name: channel for channel, name in enumerate(classes)},
        "dtype": "float32",
        OWN_ENTRY: {name: getattr(model, name) for name in _OWN_SETTINGS}
        | {"classes": list(classes), "category_ids": list(category_ids)},
    }


def _check_types(settings: Mapping[str, Any], types: Mapping[str, Any], prefix: str) -> None:
    for name, kind in types.items():
        if name in settings and not fits(settings[name], kind):
            raise CheckpointError(f"{prefix}{name} is {shown(settings[name])}, which it cannot be in a config.json")


def _check_kind(settings: Mapping[str, Any]) -> None:
    kind = settings.get("model_type")
    if kind is None:
        raise CheckpointError("there is no model_type in it; this is not a model of transformers")
    if kind != MODEL_TYPE:
        raise CheckpointError(
            f"it is a model of type {shown(kind)}, not {MODEL_TYPE!r}; transformers' AutoModelForObjectDetection "
            "reads it, this package does not"
        )
    architectures = settings.get("architectures") or [ARCHITECTURE]
    if ARCHITECTURE not in architectures:
        raise CheckpointError(
            f"it holds {one_line(', '.join(architectures))}, which has no class and box heads; not {ARCHITECTURE}"
        )


def _num_labels(settings: Mapping[str, Any]) -> int:
    number = settings.get("num_labels", 2) if settings.get("id2label") is None else len(_labels(settings))
    assert isinstance(number, int)
    return number


def _labels(settings: Mapping[str, Any]) -> list[str]:
    labels = settings.get("id2label")
    if labels is None:
        return [f"LABEL_{channel}" for channel in range(settings.get("num_labels", 2))]
    if not all(isinstance(name, str) for name in labels.values()):
        raise CheckpointError("id2label must give each channel's number a name")
    by_number = {str(number): name for number, name in labels.items()}
    missing = [channel for channel in range(len(labels)) if str(channel) not in by_number]
    if missing:
        raise CheckpointError(
            f"id2label has {len(labels)} names, but none for channel {missing[0]}; it must count from 0"
        )
    return [by_number[str(channel)] for channel in range(len(labels))]


def _backbone_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name and dilation of the backbone; each version of transformers keeps them in another place."""
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


def _body(model: DeformableDETRConfig) -> nn.Module:
    """Backbone on the meta device, without memory for its weights."""
    maps = min(model.num_levels, 3)
    with torch.device("meta"):
        return Backbone(
            model.backbone, num_maps=maps, dilation=model.dilation, frozen_stages=0, frozen_batch_norm=False
        ).body


def _maps(body: Any) -> list[int]:
    return list(body.feature_info.out_indices)


def _is_plain(body: nn.Module) -> bool:
    """Whether their models can replace every batch norm by their own without changing a result."""
    from timm.layers.norm_act import BatchNormAct2d

    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    return all(norm.eps == _BATCH_NORM_EPS and not isinstance(norm, BatchNormAct2d) for norm in norms)


def _check_maps(model: DeformableDETRConfig, settings: Mapping[str, Any]) -> None:
    body = _body(model)
    described = settings.get("backbone_config") or settings.get("backbone_kwargs") or {}
    maps = described.get("out_indices")
    if maps is None and described.get("out_features"):
        names = ["stem", *(f"stage{number}" for number in range(1, 5))]
        maps = [names.index(name) for name in described["out_features"] if name in names]
    if maps is None:
        flat = not described and settings.get("use_timm_backbone", True)
        maps = _TIMM_STAGES[3 if model.num_levels > 1 else 1] if flat else [-1]
    ours = _maps(body)
    theirs = [index if index >= 0 else index + ours[-1] + 1 for index in maps]
    if theirs != ours:
        raise CheckpointError(
            f"the backbone gives maps {shown(theirs)} for num_feature_levels {model.num_levels}; "
            f"here it would give {ours}"
        )
    if not _is_plain(body) and not described.get("freeze_batch_norm_2d"):
        raise CheckpointError(
            f"backbone {model.backbone}: transformers puts its own batch norm in the place of this network's, without "
            "the activation or the epsilon that belong to it; such a model cannot be built here"
        )


def _backbone_of(model: DeformableDETRConfig) -> dict[str, Any]:
    body = _body(model)
    maps = _maps(body)
    common = {"backbone": model.backbone, "use_pretrained_backbone": False}
    if _is_plain(body) and maps == _TIMM_STAGES.get(min(model.num_levels, 3)):
        # Versions 4 and 5 both understand this.
        return {"use_timm_backbone": True, "dilation": model.dilation, **common}
    described = {"model_type": "timm_backbone", "num_channels": 3, "features_only": True, "out_indices": maps, **common}
    if model.dilation:
        described["output_stride"] = 16
    if not _is_plain(body):
        described["freeze_batch_norm_2d"] = True
    return {"backbone_config": described, "dilation": model.dilation}
