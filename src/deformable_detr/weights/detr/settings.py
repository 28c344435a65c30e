"""Settings of an official DETR: from the arguments in its file, and from the names and shapes of its tensors."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from deformable_detr.core.config import from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models import DETRConfig
from deformable_detr.weights.official.document import FoundSettings
from deformable_detr.weights.resnets import ALL, MIDDLE, OF_BOTTLENECKS, TAG, resnet_of

# Our setting -> official argument.
_FLAGS = {
    "hidden_dim": "hidden_dim",
    "num_heads": "nheads",
    "encoder_layers": "enc_layers",
    "decoder_layers": "dec_layers",
    "ffn_dim": "dim_feedforward",
    "num_queries": "num_queries",
    "dropout": "dropout",
    "dilation": "dilation",
    "pre_norm": "pre_norm",
    "auxiliary_losses": "aux_loss",
}
_CLASS_BIAS = "class_embed.bias"
_FFN = "transformer.decoder.layers.0.linear1.weight"
_QUERIES = "query_embed.weight"
_PROJECTION = "input_proj.weight"
_DIMS = {_FFN: 2, _QUERIES: 2, _PROJECTION: 4, MIDDLE: 4, _CLASS_BIAS: 1}
_CROSS_ATTENTION = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"
_ENCODER_NORM = "transformer.encoder.norm.weight"
_LEARNED = "backbone.1.row_embed.weight"
_POSITIONS = ("sine", "learned")
_LAYER = re.compile(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.")
# The published files hold no arguments; those of DC5 say so in their names alone.
_PUBLISHED_DC5 = re.compile(r"detr-r\d+-dc5-[0-9a-f]{8}\.pth$")


def looks_like_detr(names: Collection[str]) -> bool:
    """Whether these parameter names are those of the official DETR, perhaps without some of them."""
    return _CROSS_ATTENTION in names and _PROJECTION in names


def detr_settings_of(official: Mapping[str, Tensor], args: Mapping[str, Any] | None, file_name: str) -> FoundSettings:
    """Settings of an official DETR, from its tensors and, where the file has them, from its arguments.

    Args:
        official: tensors by official names, for which `looks_like_detr` is true.
        args: the entry "args" of the file; None if it has none.
        file_name: name of the file, which tells the dilated models of the authors from the others.

    Raises:
        CheckpointError: tensors are missing, tensors and arguments disagree, or such a model cannot be built.
    """
    for name, dims in _DIMS.items():
        if name not in official:
            raise CheckpointError(f"its tensor {name} is missing, without which the size of the model is not known")
        if official[name].dim() != dims:
            raise CheckpointError(f"no such model can be: {name} is {list(official[name].shape)}, not of {dims} axes")
    # Settings from the arguments (told) and from the tensors (seen). Both must be valid, each with the other's help.
    told = {} if args is None else _told_by(args)
    seen = _seen_in(official)
    named = {"dilation": True} if args is None and _PUBLISHED_DC5.search(file_name) else {}
    try:
        from_dict(DETRConfig, named | seen | told)  # the arguments may be invalid
        config = from_dict(DETRConfig, named | told | seen)
    except ConfigError as error:
        raise CheckpointError(f"no such model can be: {error}") from error
    apart = [
        f"{name} is {shown(told[name])} and {value!r}" for name, value in seen.items() if told.get(name, value) != value
    ]
    if apart:
        raise CheckpointError(f"its settings and its tensors disagree: {'; '.join(apart)}")
    assumed = tuple(name for name in ("num_heads", "dilation") if name not in told | seen)
    return FoundSettings(config, assumed)


def to_detr_args(config: DETRConfig) -> dict[str, Any]:
    """Arguments of the official code for this model, as plain values.

    Raises:
        CheckpointError: the official code has no such model; the message names the setting.
    """
    backbone = config.backbone.split(".")[0]
    if backbone not in ALL:
        raise CheckpointError(f"the official code has no backbone {config.backbone}; it has {', '.join(ALL)}")
    if config.dilation and backbone not in OF_BOTTLENECKS:
        raise CheckpointError(
            f"the official code has no dilation=true with the backbone {backbone}; it has it with "
            f"{', '.join(OF_BOTTLENECKS)}"
        )
    return {flag: getattr(config, name) for name, flag in _FLAGS.items()} | {
        "backbone": backbone,
        "position_embedding": config.position,
        "masks": False,
    }


def _told_by(args: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: args[flag] for name, flag in _FLAGS.items() if flag in args}
    if "backbone" in args:
        if args["backbone"] not in ALL:
            raise CheckpointError(f"its backbone is {shown(args['backbone'])}; known are {', '.join(ALL)}")
        told["backbone"] = f"{args['backbone']}{TAG}"
    if "position_embedding" in args:
        # The official code has two words for the same sines.
        position = {"v2": "sine", "v3": "learned"}.get(str(args["position_embedding"]), args["position_embedding"])
        if position not in _POSITIONS:
            raise CheckpointError(f"its position_embedding is {shown(position)}; known are {', '.join(_POSITIONS)}")
        told["position"] = position
    return told


def _seen_in(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings that the tensors show."""
    layers = {(match[1], match[2]) for name in official if (match := _LAYER.match(name))}
    kinds = [kind for kind, _ in layers]
    num_queries, hidden_dim = official[_QUERIES].shape
    return {
        "num_classes": len(official[_CLASS_BIAS]) - 1,
        "backbone": resnet_of(official, ALL) + TAG,
        "position": "learned" if _LEARNED in official else "sine",
        "hidden_dim": hidden_dim,
        "encoder_layers": kinds.count("encoder"),
        "decoder_layers": kinds.count("decoder"),
        "ffn_dim": len(official[_FFN]),
        "pre_norm": _ENCODER_NORM in official,
        "num_queries": num_queries,
    }
