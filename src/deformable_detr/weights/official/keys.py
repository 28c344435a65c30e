"""Parameter names of the official code (its `checkpoint["model"]`) and ours, both ways.

github.com/fundamentalvision/Deformable-DETR at 11169a60. The official files hold some heads several times: copies of
the one shared head in the base model, and aliases below `transformer.decoder` with refinement.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.shared_heads import HEAD, PROPOSAL_HEADS, with_copies

# Ours -> official; the first that matches counts. "#" stands for a layer's number.
_RENAMED = (
    ("pyramid.backbone.body.", "backbone.0.body."),
    ("pyramid.projections.#.", "input_proj.#."),
    ("pyramid.level_embed", "transformer.level_embed"),
    ("encoder.layers.#.self_attention.", "transformer.encoder.layers.#.self_attn."),
    ("encoder.layers.#.norm_attention.", "transformer.encoder.layers.#.norm1."),
    ("encoder.layers.#.norm_ffn.", "transformer.encoder.layers.#.norm2."),
    ("encoder.layers.#.ffn.", "transformer.encoder.layers.#."),
    ("decoder.layers.#.self_attention.", "transformer.decoder.layers.#.self_attn."),
    ("decoder.layers.#.cross_attention.", "transformer.decoder.layers.#.cross_attn."),
    ("decoder.layers.#.norm_cross.", "transformer.decoder.layers.#.norm1."),
    ("decoder.layers.#.norm_self.", "transformer.decoder.layers.#.norm2."),
    ("decoder.layers.#.norm_ffn.", "transformer.decoder.layers.#.norm3."),
    ("decoder.layers.#.ffn.", "transformer.decoder.layers.#."),
    ("decoder.class_heads.#.", "class_embed.#."),
    ("decoder.box_heads.#.", "bbox_embed.#."),
    ("query_source.embedding.", "query_embed."),
    ("query_source.reference_points.", "transformer.reference_points."),
    ("query_source.memory_proj.", "transformer.enc_output."),
    ("query_source.memory_norm.", "transformer.enc_output_norm."),
    ("query_source.position_proj.", "transformer.pos_trans."),
    ("query_source.position_norm.", "transformer.pos_trans_norm."),
)
_ALIAS = "transformer.decoder."
# The running count of batch norm exists on neither side that matters: frozen norms have none.
_COUNTERS = "num_batches_tracked"


def to_official_keys(weights: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    """Our weights under the official names, copies and aliases included.

    Args:
        weights: of a model of ours.
        config: that model's.
    """
    official: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.endswith(_COUNTERS):
            official[_official_name(name, config)] = tensor
    return with_copies(official, config, _ALIAS)


def from_official_keys(official: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    """Official weights under our names.

    Args:
        official: the entry "model" of an official checkpoint.
        config: of the model they are for.

    Raises:
        CheckpointError: a name of no official model, or copies of a shared head that differ.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in official.items():
        plain = name.removeprefix(_ALIAS)
        head = HEAD.fullmatch(plain)
        if name != plain and head is not None:
            _check_equal(official, plain, name)
            continue
        if head is not None and config.variant == "base" and head[2] != "0":
            _check_equal(official, f"{head[1]}.0.{head[3]}", name)
            continue
        if not name.endswith(_COUNTERS):
            weights[_our_name(name, config)] = tensor
    return weights


def _check_equal(official: Mapping[str, Tensor], first: str, second: str) -> None:
    if first not in official or not torch.equal(official[first], official[second]):
        raise CheckpointError(f"{second} should be a copy of {first}, and is not; is this of another variant?")


def _official_name(name: str, config: DeformableDETRConfig) -> str:
    for theirs, ours in PROPOSAL_HEADS.items():
        if name.startswith(ours + "."):
            return f"{theirs}.{config.decoder_layers}.{name.removeprefix(ours + '.')}"
    for ours, theirs in _RENAMED:
        renamed = _rename(name, ours, theirs)
        if renamed is not None:
            return renamed
    raise AssertionError(f"no official name for {name}")


def _our_name(name: str, config: DeformableDETRConfig) -> str:
    head = HEAD.fullmatch(name)
    if head is not None and int(head[2]) == config.decoder_layers:
        return f"{PROPOSAL_HEADS[head[1]]}.{head[3]}"
    for ours, theirs in _RENAMED:
        # The official layers hold the feed-forward's two matrices themselves.
        if ours.endswith(".ffn.") and ".linear" not in name:
            continue
        renamed = _rename(name, theirs, ours)
        if renamed is not None:
            return renamed
    raise CheckpointError(f"{name!r} is not a parameter of the official Deformable DETR")


def _rename(name: str, old: str, new: str) -> str | None:
    match = re.match(re.escape(old).replace("\\#", r"(\d+)").replace("#", r"(\d+)"), name)
    if match is None:
        return None
    number = match[1] if match.groups() else ""
    return new.replace("#", number) + name[match.end() :]
