"""Settings of a published DINO: from the arguments in its file, and from the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from deformable_detr.core.config import from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models.dino import DINOConfig
from deformable_detr.weights.dino.keys import Source
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
# Position embedding (temperature, offset) and distance of boxes from 0 and 1, where nothing in a file tells.
_POSITIONS = {"authors": (20.0, 0.0), "detrex": (10_000.0, -0.5), "openmmlab": (20.0, 0.0)}
_HEAD_EPS = {"authors": 1e-3, "detrex": 1e-3, "openmmlab": 1e-5}
_NUMBER = r"\s*=\s*(-?[0-9.]+(?:e[0-9]+)?)"
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


class FoundSettings(NamedTuple):
    """Settings of the model in a published file, and which of them are assumed."""

    config: DINOConfig
    """Settings of the model."""
    assumed: tuple[str, ...]
    """Names of settings that the file does not tell; they have the values of the published models."""


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
    seen = _seen(weights) | {"heads": "shared" if shared_heads else "separate"}
    temperature, offset = _POSITIONS[source]
    # As published: these rank invalid proposals, too.
    given = {"position_temperature": temperature, "position_offset": offset, "head_eps": _HEAD_EPS[source]}
    given |= {"proposals": "paper"} | dict(told)
    if _TABLE not in weights:
        given = {name: value for name, value in given.items() if name not in ("box_noise", "label_noise")}
        given["denoising_queries"] = 0
    elif given.get("denoising_queries") in (0, None):
        given.pop("denoising_queries", None)  # the table is there all the same
    try:
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
    wanted = ("num_heads", "dilation", "position_temperature")
    return FoundSettings(config, tuple(name for name in wanted if name not in told) if source != "detrex" else ())


def told_by_authors(args: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the arguments in a file of the authors tell.

    Raises:
        CheckpointError: they are of a network that is not here; the message names the argument.
    """
    for flag, value in _FIXED.items():
        if args.get(flag, value) != value:
            raise CheckpointError(f"its {flag} is {shown(args[flag])}; here there is {value!r} alone")
    if args.get("pe_temperatureH") != args.get("pe_temperatureW", args.get("pe_temperatureH")):
        raise CheckpointError("its pe_temperatureH and pe_temperatureW differ; here there is one for both")
    told = {name: args[flag] for name, flag in _FLAGS.items() if flag in args}
    if "backbone" in args:
        if args["backbone"] not in OF_BOTTLENECKS:
            raise CheckpointError(
                f"its backbone is {shown(args['backbone'])}; here there are {', '.join(OF_BOTTLENECKS)}"
            )
        told["backbone"] = f"{args['backbone']}{TAG}"
    if isinstance(told.get("position_temperature"), int):
        told["position_temperature"] = float(told["position_temperature"])
    return told


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
    if backbone not in OF_BOTTLENECKS:
        raise CheckpointError(
            f"the authors' code has no backbone {config.backbone}; it has {', '.join(OF_BOTTLENECKS)}"
        )
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
    if config.num_levels == 2 or config.num_levels > 5:
        raise CheckpointError(f"the authors' code has no num_levels={config.num_levels}; it has 1, 3, 4 and 5")
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
    """Sampling points per head and level; the tensors only show the product of heads, levels and points."""
    found = {}
    for name, attention in _ATTENTION.items():
        bias = weights.get(f"{attention}.attention_weights.bias")
        if bias is None:  # no encoder layers, or missing, which is said elsewhere
            continue
        found[name], rest = divmod(bias.numel(), config.num_heads * config.num_levels)
        if rest or not found[name]:
            raise CheckpointError(
                f"its {bias.numel()} attention weights cannot be those of {config.num_heads} heads and "
                f"{config.num_levels} levels"
            )
    return found
