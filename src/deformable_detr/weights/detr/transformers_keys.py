"""Key map between our parameter names of DETR and those of transformers' `DetrForObjectDetection`.

The library is github.com/huggingface/transformers at 5.24. Its models name some parameters differently from its files,
which have the names of version 4, as those on the hub. Both are read; those of files are written, which all versions
know.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.models import DETRConfig
from deformable_detr.weights.huggingface.keys import BackboneNames, native_here, native_there
from deformable_detr.weights.key_map import COUNTERS, KeyMap
from deformable_detr.weights.shared_heads import is_equal

# Our prefix, their prefix. The projections of queries, keys and values are one tensor in ours and three in theirs.
_NAMES = KeyMap(
    (
        ("features.position.rows.", "model.position_embedding.row_embeddings."),
        ("features.position.columns.", "model.position_embedding.column_embeddings."),
        ("features.projection.", "model.input_projection."),
        ("encoder.layers.#.self_attention.out_proj.", "model.encoder.layers.#.self_attn.o_proj."),
        ("encoder.layers.#.norm_attention.", "model.encoder.layers.#.self_attn_layer_norm."),
        ("encoder.layers.#.ffn.linear#.", "model.encoder.layers.#.mlp.fc#."),
        ("encoder.layers.#.norm_ffn.", "model.encoder.layers.#.final_layer_norm."),
        ("queries.", "model.query_position_embeddings."),
        ("decoder.layers.#.self_attention.out_proj.", "model.decoder.layers.#.self_attn.o_proj."),
        ("decoder.layers.#.norm_self.", "model.decoder.layers.#.self_attn_layer_norm."),
        ("decoder.layers.#.cross_attention.out_proj.", "model.decoder.layers.#.encoder_attn.o_proj."),
        ("decoder.layers.#.norm_cross.", "model.decoder.layers.#.encoder_attn_layer_norm."),
        ("decoder.layers.#.ffn.linear#.", "model.decoder.layers.#.mlp.fc#."),
        ("decoder.layers.#.norm_ffn.", "model.decoder.layers.#.final_layer_norm."),
        ("decoder.norm.", "model.decoder.layernorm."),
        ("decoder.class_head.", "class_labels_classifier."),
        ("decoder.box_head.", "bbox_predictor."),
    )
)
_OUR_BACKBONE, _THEIR_BACKBONE = "features.backbone.body.", "model.backbone.model."
_ATTENTIONS = KeyMap(
    (
        ("encoder.layers.#.self_attention", "model.encoder.layers.#.self_attn"),
        ("decoder.layers.#.self_attention", "model.decoder.layers.#.self_attn"),
        ("decoder.layers.#.cross_attention", "model.decoder.layers.#.encoder_attn"),
    )
)
_OUR_JOINED = re.compile(r"(.+attention)\.in_proj_(weight|bias)")
_THEIR_PARTS = re.compile(r"(model\..+attn)\.([qkv])_proj\.(weight|bias)")
_PARTS = ("q", "k", "v")
# Names in files -> names in models.
_IN_FILES = (
    (re.compile(r"^model\.backbone\.conv_encoder\."), "model.backbone."),
    (re.compile(r"^model\.backbone\.position_embedding\."), "model.position_embedding."),
    (re.compile(r"_attn\.out_proj\."), "_attn.o_proj."),
    (re.compile(r"(coder\.layers\.\d+)\.fc"), r"\1.mlp.fc"),
)
_TO_FILES = (
    (re.compile(r"^model\.backbone\."), "model.backbone.conv_encoder."),
    (re.compile(r"_attn\.o_proj\."), "_attn.out_proj."),
    (re.compile(r"(coder\.layers\.\d+)\.mlp\.fc"), r"\1.fc"),
)


def to_transformers_detr_keys(
    weights: Mapping[str, Tensor], config: DETRConfig, *, backbone: BackboneNames = "timm"
) -> dict[str, Tensor]:
    """Weights of DETR by transformers' names, from ours.

    Args:
        weights: weights by our names.
        config: settings of the model.
        backbone: "timm" if their model has its backbone from timm, as by default; "native" if it has their ResNet.

    Raises:
        ValueError: native names are asked for, but the backbone is no plain ResNet.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        joined = _OUR_JOINED.fullmatch(name)
        if name.endswith(COUNTERS):
            continue
        if joined is not None:
            attention = _ATTENTIONS.to_theirs(joined[1])
            for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                theirs[f"{attention}.{part}_proj.{joined[2]}"] = piece.clone()
        elif name.startswith(_OUR_BACKBONE):
            inner = name.removeprefix(_OUR_BACKBONE)
            theirs[_THEIR_BACKBONE + (inner if backbone == "timm" else native_there(inner, config.backbone))] = tensor
        else:
            found = _NAMES.to_theirs(name)
            assert found is not None, f"no name in transformers for {name}"
            theirs[found] = tensor
    return theirs


def from_transformers_detr_keys(theirs: Mapping[str, Tensor], config: DETRConfig) -> dict[str, Tensor]:
    """Weights of DETR by our names, from those of a model or a file of transformers, of version 4 or 5.

    The backbone may have timm's names or those of transformers' own ResNet.

    Args:
        theirs: state of their model, or tensors of their file.
        config: settings of the model; the names do not depend on them.

    Raises:
        CheckpointError: a name is none of theirs, a parameter is there twice and differs, or the projections of an
            attention are incomplete.
    """
    weights: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    foreign: list[str] = []
    for name, tensor in theirs.items():
        plain = _in_models(name)
        part = _THEIR_PARTS.fullmatch(plain)
        attention = None if part is None else _ATTENTIONS.to_ours(part[1])
        if name.endswith(COUNTERS):
            continue
        if part is not None and attention is not None:
            parts.setdefault(f"{attention}.in_proj_{part[3]}", {})[part[2]] = tensor
            continue
        ours = _ours(plain)
        if ours is None:
            foreign.append(name)
            continue
        if ours in weights and not is_equal(weights[ours], tensor):
            raise CheckpointError(f"{ours} is there twice, as {name} and under another name, and differs")
        weights[ours] = tensor
    if foreign:
        others = f", nor are {len(foreign) - 1} more, such as {one_line(foreign[1])}" if len(foreign) > 1 else ""
        raise CheckpointError(f"'{one_line(foreign[0])}' is not a parameter of DETR in transformers{others}")
    # Three projections become one tensor.
    for ours, pieces in parts.items():
        missing = [part for part in _PARTS if part not in pieces]
        if missing:
            raise CheckpointError(f"{ours} needs the projections of q, k and v; {', '.join(missing)} is not there")
        shapes = {part: list(piece.shape) for part, piece in pieces.items()}
        if not shapes["q"] == shapes["k"] == shapes["v"] or not shapes["q"]:
            raise CheckpointError(f"{ours} needs projections of q, k and v of one shape, not of {shown(shapes)}")
        weights[ours] = torch.cat([pieces[part] for part in _PARTS])
    return weights


def detr_file_key(name: str) -> str:
    """Name of a parameter in files of transformers, of all versions, from its name in the models."""
    for pattern, replacement in _TO_FILES:
        name = pattern.sub(replacement, name)
    return name


def _in_models(name: str) -> str:
    for pattern, replacement in _IN_FILES:
        name = pattern.sub(replacement, name)
    return name


def _ours(plain: str) -> str | None:
    inner = plain.removeprefix(_THEIR_BACKBONE)
    if inner == plain:
        return _NAMES.to_ours(plain)
    ours = native_here(inner)
    return None if ours is None else _OUR_BACKBONE + ours
