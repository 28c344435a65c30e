"""Settings of a published DINO: from the arguments in its file, and from the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deformable_detr.core.config import from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models.dino import DINOConfig
from deformable_detr.weights.dino.keys import Source
from deformable_detr.weights.official.document import FoundSettings
from deformable_detr.weights.official.settings import points_of
from deformable_detr.weights.resnets import BODY, OF_BOTTLENECKS, TAG, resnet_of

# Our setting -> argument of the authors' code.
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
    "position_temperature": "pe_temperatureH",
    "denoising_queries": "dn_number",
    "box_noise": "dn_box_noise_scale",
    "label_noise": "dn_label_noise_ratio",
}
# Arguments that make another network of the same tensors, with the values that are here.
_FIXED: dict[str, Any] = {
    "two_stage_type": "standard",
    "embed_init_tgt": True,
    "pre_norm": False,
    "transformer_activation": "relu",
    "decoder_sa_type": "sa",
    "num_patterns": 0,
    "query_dim": 4,
    "use_deformable_box_attn": False,
    "dec_layer_number": None,
}
# Backbones and numbers of levels that the authors' code builds.
_BACKBONES = ("resnet50", "resnet101")
_LEVELS = (3, 4, 5)
# Position embedding (temperature, offset) and distance of boxes from 0 and 1, where nothing in a file tells.
_POSITIONS = {"authors": (20.0, 0.0), "detrex": (10_000.0, -0.5), "openmmlab": (20.0, 0.0)}
_HEAD_EPS = {"authors": 1e-3, "detrex": 1e-3, "openmmlab": 1e-5}
_NUMBER = r"\s*=\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)(?![\w.])"
_LAYER = re.compile(r"(encoder|decoder)\.layers\.([0-9]{1,6})\.")
_TABLE = "denoising.label_embed.weight"
_SIZES = {
    "pyramid.level_embed": 2,
    "decoder.class_heads.0.bias": 1,
    "decoder.layers.0.ffn.linear1.weight": 2,
    "query_source.content.weight": 2,
    "pyramid.backbone.body.layer1.0.conv2.weight": 4,
}
_ATTENTION = {"encoder_points": "encoder.layers.0.self_attention", "decoder_points": "decoder.layers.0.cross_attention"}


def dino_settings(
    weights: Mapping[str, Tensor], source: Source, told: Mapping[str, Any], *, shared_heads: bool
) -> FoundSettings:
    """Settings of a published DINO.

    Args:
        weights: tensors by our names.
        source: code that the file is of.
        told: settings that the file tells, from `told_by_authors` or `told_by_openmmlab`.
        shared_heads: whether all decoder layers share their heads.

    Raises:
        CheckpointError: tensors are missing that show a size, tensors and settings disagree, or there is no such model.
    """
    missing = [name for name, axes in _SIZES.items() if name not in weights or weights[name].dim() != axes]
    if missing:
        raise CheckpointError(f"no such DINO can be: {', '.join(missing)} (by our names) missing or of other axes")
    # Settings from the tensors (seen) and from the rest of the file (told). Both must be valid.
    seen = _seen(weights) | {"heads": "shared" if shared_heads else "separate"}
    temperature, offset = _POSITIONS[source]
    # As published: these rank invalid proposals, too.
    given = {"position_temperature": temperature, "position_offset": offset, "head_eps": _HEAD_EPS[source]}
    given |= {"proposals": "paper"} | dict(told)
    if _TABLE not in weights:
        given = {name: value for name, value in given.items() if name not in ("box_noise", "label_noise")}
        given["denoising_queries"] = 0
    elif given.get("denoising_queries") == 0:
        del given["denoising_queries"]  # the table is there all the same
    try:
        from_dict(DINOConfig, seen | dict(told))  # what the file tells may be invalid
        config = from_dict(DINOConfig, given | seen)
        seen |= _points(weights, config)
        config = from_dict(DINOConfig, given | seen)
    except ConfigError as error:
        raise CheckpointError(f"no such DINO can be: {error}") from error
    apart = [
        f"{name} is {shown(given[name])} and {value!r}"
        for name, value in seen.items()
        if given.get(name, value) != value
    ]
    if apart:
        raise CheckpointError(f"its settings and its tensors disagree: {'; '.join(apart)}")
    wanted = ["num_heads", "dilation", "position_temperature"]
    if source != "authors":  # whose code has no other offset
        wanted.append("position_offset")
    return FoundSettings(config, tuple(name for name in wanted if name not in told))


def told_by_authors(args: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the arguments in a file of the authors tell.

    Raises:
        CheckpointError: they are of a network that is not here; the message names the argument.
    """
    for flag in (*_FLAGS.values(), *_FIXED, "pe_temperatureW", "backbone"):
        if not _is_simple(args.get(flag)):
            raise CheckpointError(f"its {flag} is {shown(args[flag])}; it must be a number, a text, or a list of them")
    for flag, value in _FIXED.items():
        if args.get(flag, value) != value:
            raise CheckpointError(f"its {flag} is {shown(args[flag])}; here there is {value!r} alone")
    temperatures = [args[flag] for flag in ("pe_temperatureH", "pe_temperatureW") if flag in args]
    if temperatures[1:] != temperatures[:-1]:
        raise CheckpointError("its pe_temperatureH and pe_temperatureW differ; here there is one for both")
    told = {name: args[flag] for name, flag in _FLAGS.items() if flag in args}
    if "backbone" in args:
        if args["backbone"] not in OF_BOTTLENECKS:
            raise CheckpointError(
                f"its backbone is {shown(args['backbone'])}; here there are {', '.join(OF_BOTTLENECKS)}"
            )
        told["backbone"] = f"{args['backbone']}{TAG}"
    return told


def shares_told_by_authors(args: Mapping[str, Any]) -> bool | None:
    """Whether the arguments in a file of the authors say that all decoder layers share their heads; None if not at all.

    Raises:
        CheckpointError: an argument is neither true nor false; the message names it.
    """
    flags = [f"dec_pred_{kind}_embed_share" for kind in ("class", "bbox")]
    for flag in flags:
        if not isinstance(args.get(flag), bool | None):
            raise CheckpointError(f"its {flag} is {shown(args[flag])}; it must be true or false")
    shares = [args.get(flag) for flag in flags]
    return None if None in shares else all(shares)


def _is_simple(value: object) -> bool:
    """Whether a value is one of JSON or a flat list of them: all others may compare in ways of their own."""
    kinds = (bool, int, float, str, type(None))
    return type(value) in kinds or (type(value) is list and all(type(one) in kinds for one in value))


def told_by_openmmlab(meta: object) -> dict[str, Any]:
    """Settings that the entry "meta" of a file of OpenMMLab tells, whose "cfg" is the text of its configuration."""
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        return {}
    position = re.search(r"positional_encoding\s*=\s*dict\(([^()]*)\)", text)
    told: dict[str, Any] = {}
    for name, word in (("position_temperature", "temperature"), ("position_offset", "offset")):
        found = re.search(word + _NUMBER, position[1]) if position else None
        if found is not None:
            told[name] = float(found[1])
    noise = re.search(r"num_dn_queries\s*=\s*([0-9]{1,5})\b", text)
    return told | ({"denoising_queries": int(noise[1])} if noise else {})


def to_authors_args(config: DINOConfig) -> dict[str, Any]:
    """Arguments of the authors' code for this model, as plain values.

    Raises:
        CheckpointError: the authors' code has no such model; the message names the setting.
    """
    backbone = config.backbone.removesuffix(TAG).split(".")[0]
    if backbone not in _BACKBONES:
        raise CheckpointError(f"the authors' code has no backbone {config.backbone}; it has {', '.join(_BACKBONES)}")
    fixed = {"features": "padded", "position_offset": 0.0, "head_eps": 1e-3, "proposals": "paper"}
    for name, value in fixed.items():
        # A choice of proposals that leaves out invalid ones finds the same, but for images with hardly any others.
        if getattr(config, name) != value and (name, getattr(config, name)) != ("proposals", "valid"):
            raise CheckpointError(
                f"the authors' code has no {name}={getattr(config, name)!r}, and would find something else without it"
            )
    if config.denoising_queries == 0:
        raise CheckpointError("the authors' code has no denoising_queries=0: a label table is missing")
    if config.hybrid_queries or config.query_groups > 1:
        raise CheckpointError(
            f"the authors' code has no hybrid_queries={config.hybrid_queries} and query_groups={config.query_groups}, "
            "and no place for their tensors, which training alone needs; write a .safetensors file"
        )
    if config.num_levels not in _LEVELS:
        raise CheckpointError(f"the authors' code has no two-stage num_levels={config.num_levels}; it has 3, 4 and 5")
    share = config.heads == "shared"
    return {flag: getattr(config, name) for name, flag in _FLAGS.items()} | {
        "pe_temperatureW": config.position_temperature,
        "backbone": backbone,
        "num_classes": config.num_classes,
        "dn_labelbook_size": config.num_classes,
        "use_dn": True,
        "dec_pred_class_embed_share": share,
        "dec_pred_bbox_embed_share": share,
        "return_interm_indices": [0, 1, 2, 3][-config.num_maps :],
        "two_stage_type": "standard",
        "embed_init_tgt": True,
    }


def _seen(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    num_levels, hidden_dim = weights["pyramid.level_embed"].shape
    layers = {(match[1], match[2]) for name in weights if (match := _LAYER.match(name))}
    kinds = [kind for kind, _ in layers]
    start = "pyramid.backbone.body."
    body = {f"{BODY}{name.removeprefix(start)}": one for name, one in weights.items() if start in name}
    return {
        "num_levels": num_levels,
        "hidden_dim": hidden_dim,
        "encoder_layers": kinds.count("encoder"),
        "decoder_layers": kinds.count("decoder"),
        "ffn_dim": len(weights["decoder.layers.0.ffn.linear1.weight"]),
        "num_classes": len(weights["decoder.class_heads.0.bias"]),
        "num_queries": len(weights["query_source.content.weight"]),
        "backbone": resnet_of(body, OF_BOTTLENECKS) + TAG,
    }


def _points(weights: Mapping[str, Tensor], config: DINOConfig) -> dict[str, int]:
    biases = {name: weights.get(f"{one}.attention_weights.bias") for name, one in _ATTENTION.items()}
    return points_of(biases, config.num_heads, config.num_levels)
