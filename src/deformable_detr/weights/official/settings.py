"""Settings of an official model: from the arguments in its file, and from the names and shapes of its tensors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from deformable_detr.core.config import from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.official.document import FoundSettings
from deformable_detr.weights.resnets import MIDDLE, OF_BOTTLENECKS, TAG, resnet_of

# Our setting -> official argument.
_FLAGS = {
    "num_levels": "num_feature_levels",
    "hidden_dim": "hidden_dim",
    "num_heads": "nheads",
    "encoder_layers": "enc_layers",
    "decoder_layers": "dec_layers",
    "encoder_points": "enc_n_points",
    "decoder_points": "dec_n_points",
    "ffn_dim": "dim_feedforward",
    "num_queries": "num_queries",
    "dropout": "dropout",
    "dilation": "dilation",
}
# The official embedding of proposals has 128 features per coordinate, whatever hidden_dim is.
_TWO_STAGE_DIM = 256
_LEVEL_EMBED = "transformer.level_embed"
_CLASS_BIAS = "class_embed.0.bias"
_FFN = "transformer.decoder.layers.0.linear1.weight"
_QUERIES = "query_embed.weight"
_TWO_STAGE = "transformer.enc_output.weight"
_DIMS = {_LEVEL_EMBED: 2, _CLASS_BIAS: 1, _FFN: 2, MIDDLE: 4}
_LAYER = re.compile(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.")
_ATTENTION = {"encoder_points": "encoder.layers.0.self_attn", "decoder_points": "decoder.layers.0.cross_attn"}


def has_size_tensors(names: Collection[str]) -> bool:
    """Whether these names include the tensors that show a model's sizes; without them it is another model."""
    return set(_DIMS) <= set(names) and (_QUERIES in names or _TWO_STAGE in names)


def most_like(official: Mapping[str, Tensor], args: Mapping[str, Any] | None) -> DeformableDETRConfig:
    """Settings of the model that an incomplete file is most like; of the paper's where nothing in it tells.

    Args:
        official: tensors by official names.
        args: the entry "args" of the file; None if it has none.
    """
    if not set(official) >= set(_DIMS) - {_CLASS_BIAS}:
        return DeformableDETRConfig()
    try:
        told = {} if args is None else _told(args)
        _check_axes(official)
        seen = told | _shown(official)
        return from_dict(DeformableDETRConfig, seen | _points(official, from_dict(DeformableDETRConfig, seen)))
    except (CheckpointError, ConfigError):  # to compare with it would explain nothing
        return DeformableDETRConfig()


def settings_of(official: Mapping[str, Tensor], args: Mapping[str, Any] | None) -> FoundSettings:
    """Settings of an official model, from its tensors and, where the file has them, from its arguments.

    Args:
        official: tensors by official names, for which `has_size_tensors` is true.
        args: the entry "args" of the file; None if it has none.

    Raises:
        CheckpointError: tensors and arguments disagree, or such a model cannot be built by this package.
    """
    _check_axes(official)
    # Settings from the arguments (told) and from the tensors (seen). Both must be valid, each with the other's help.
    told = {} if args is None else _told(args)
    seen = _shown(official)
    try:
        from_dict(DeformableDETRConfig, seen | told)  # the arguments may be invalid
        config = from_dict(DeformableDETRConfig, told | seen)
    except ConfigError as error:
        raise CheckpointError(f"no such model can be: {error}") from error
    # The number of points follows from the number of heads, which only the arguments tell.
    seen |= _points(official, config)
    apart = [
        f"{name} is {shown(told[name])} and {value!r}" for name, value in seen.items() if told.get(name, value) != value
    ]
    if apart:
        raise CheckpointError(f"its settings and its tensors disagree: {'; '.join(apart)}")
    assumed = [name for name in ("num_heads", "num_queries", "dilation") if name not in told | seen]
    return FoundSettings(replace(config, **seen), tuple(assumed))


def to_args(config: DeformableDETRConfig) -> dict[str, Any]:
    """Arguments of the official code for this model, as plain values.

    Raises:
        CheckpointError: the official code has no such model; the message names the setting.
    """
    backbone = config.backbone.split(".")[0]
    if backbone not in OF_BOTTLENECKS:
        raise CheckpointError(
            f"the official code has no backbone {config.backbone}; it has {', '.join(OF_BOTTLENECKS)}"
        )
    if config.deformable_stages:
        raise CheckpointError(
            f"the official code has no deformable convolutions, and deformable_stages is {config.deformable_stages}"
        )
    if config.features != "padded" or config.proposals != "paper":
        setting = f"features={config.features!r}" if config.features != "padded" else f"proposals={config.proposals!r}"
        raise CheckpointError(f"the official code has no {setting}, and would find something else without it")
    if config.num_levels == 2:
        raise CheckpointError("the official code has no num_levels=2; it has 1, or 3 and more")
    if config.variant == "two_stage" and config.hidden_dim != _TWO_STAGE_DIM:
        raise CheckpointError(
            f"the official code has no two-stage model of hidden_dim={config.hidden_dim}; it has {_TWO_STAGE_DIM} only"
        )
    return {flag: getattr(config, name) for name, flag in _FLAGS.items()} | {
        "backbone": backbone,
        "with_box_refine": config.variant != "base",
        "two_stage": config.variant == "two_stage",
        "position_embedding": "sine",
        "masks": False,
    }


def _told(args: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: args[flag] for name, flag in _FLAGS.items() if flag in args}
    if "backbone" in args:
        if args["backbone"] not in OF_BOTTLENECKS:
            raise CheckpointError(f"its backbone is {shown(args['backbone'])}; known are {', '.join(OF_BOTTLENECKS)}")
        told["backbone"] = f"{args['backbone']}{TAG}"
    if "with_box_refine" in args or "two_stage" in args:
        refine = "refine" if args.get("with_box_refine") is True else "base"
        told["variant"] = "two_stage" if args.get("two_stage") is True else refine
    return told


def _check_axes(official: Mapping[str, Tensor]) -> None:
    for name, dims in (_DIMS | {_QUERIES: 2}).items():
        if name in official and official[name].dim() != dims:
            raise CheckpointError(f"no such model can be: {name} is {list(official[name].shape)}, not of {dims} axes")


def _shown(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings that the tensors show; heads and queries may be missing."""
    num_levels, hidden_dim = official[_LEVEL_EMBED].shape
    layers = {(match[1], match[2]) for name in official if (match := _LAYER.match(name))}
    kinds = [kind for kind, _ in layers]
    seen: dict[str, Any] = {
        "num_levels": num_levels,
        "hidden_dim": hidden_dim,
        "encoder_layers": kinds.count("encoder"),
        "decoder_layers": kinds.count("decoder"),
        "ffn_dim": len(official[_FFN]),
        "variant": _variant(official),
        "backbone": resnet_of(official, OF_BOTTLENECKS) + TAG,
    }
    if _CLASS_BIAS in official:
        seen["num_classes"] = len(official[_CLASS_BIAS])
    if seen["variant"] != "two_stage" and _QUERIES in official:
        seen["num_queries"] = len(official[_QUERIES])
    return seen


def _variant(official: Mapping[str, Tensor]) -> str:
    if _TWO_STAGE in official:
        return "two_stage"
    return "refine" if any(name.startswith("transformer.decoder.bbox_embed.") for name in official) else "base"


def points_of(biases: Mapping[str, Tensor | None], num_heads: int, num_levels: int) -> dict[str, int]:
    """Sampling points per head and level, by setting; tensors only show the product of heads, levels and points.

    Args:
        biases: bias of the attention weights by the setting that it shows; None where a file has none, for lack of
            layers, or because it is incomplete, which is said elsewhere.
        num_heads: number of attention heads.
        num_levels: number of levels.

    Raises:
        CheckpointError: so many attention weights cannot be shared by these heads and levels.
    """
    found = {}
    for name, bias in biases.items():
        if bias is None:
            continue
        found[name], rest = divmod(bias.numel(), num_heads * num_levels)
        if rest or not found[name]:
            raise CheckpointError(
                f"its {bias.numel()} attention weights cannot be those of {num_heads} heads and {num_levels} levels"
            )
    return found


def _points(official: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, int]:
    biases = {name: official.get(f"transformer.{one}.attention_weights.bias") for name, one in _ATTENTION.items()}
    return points_of(biases, config.num_heads, config.num_levels)
