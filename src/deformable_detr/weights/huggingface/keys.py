"""Key map between our parameter names and those of `DeformableDetrForObjectDetection` of the library transformers.

The library is github.com/huggingface/transformers at 5.23. Its models and the files it writes name some parameters
differently. Both are read; the names of the models are written, and such a model loads them strictly.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.key_map import COUNTERS, KeyMap
from deformable_detr.weights.shared_heads import (
    is_equal,
    proposal_head_here,
    proposal_head_there,
    with_copies,
    without_copies,
)

# Our prefix, their prefix.
_NAMES = KeyMap(
    (
        ("pyramid.projections.#.", "model.input_proj.#."),
        ("pyramid.level_embed", "model.level_embed"),
        ("encoder.layers.#.self_attention.", "model.encoder.layers.#.self_attn."),
        ("encoder.layers.#.norm_attention.", "model.encoder.layers.#.self_attn_layer_norm."),
        ("encoder.layers.#.ffn.linear#.", "model.encoder.layers.#.mlp.fc#."),
        ("encoder.layers.#.norm_ffn.", "model.encoder.layers.#.final_layer_norm."),
        ("decoder.layers.#.self_attention.out_proj.", "model.decoder.layers.#.self_attn.o_proj."),
        ("decoder.layers.#.norm_self.", "model.decoder.layers.#.self_attn_layer_norm."),
        ("decoder.layers.#.cross_attention.", "model.decoder.layers.#.encoder_attn."),
        ("decoder.layers.#.norm_cross.", "model.decoder.layers.#.encoder_attn_layer_norm."),
        ("decoder.layers.#.ffn.linear#.", "model.decoder.layers.#.mlp.fc#."),
        ("decoder.layers.#.norm_ffn.", "model.decoder.layers.#.final_layer_norm."),
        ("decoder.class_heads.#.", "class_embed.#."),
        ("decoder.box_heads.#.", "bbox_embed.#."),
        ("query_source.embedding.", "model.query_position_embeddings."),
        ("query_source.reference_points.", "model.reference_points."),
        ("query_source.memory_proj.", "model.enc_output."),
        ("query_source.memory_norm.", "model.enc_output_norm."),
        ("query_source.position_proj.", "model.pos_trans."),
        ("query_source.position_norm.", "model.pos_trans_norm."),
    )
)
_OUR_BACKBONE, _THEIR_BACKBONE = "pyramid.backbone.body.", "model.backbone.model."
# timm's names of a ResNet, native names. A stem of several convolutions has no native counterpart.
_NATIVE_RESNET = KeyMap(
    (
        ("conv1.*", "embedder.embedder.convolution.*"),
        ("bn1.*", "embedder.embedder.normalization.*"),
        ("layer%.#.conv%.*", "encoder.stages.%.layers.#.layer.%.convolution.*"),
        ("layer%.#.bn%.*", "encoder.stages.%.layers.#.layer.%.normalization.*"),
        ("layer%.#.downsample.0.*", "encoder.stages.%.layers.#.shortcut.convolution.*"),
        ("layer%.#.downsample.1.*", "encoder.stages.%.layers.#.shortcut.normalization.*"),
    )
)
_NATIVE_START = ("embedder.", "encoder.")
# Names in files -> names in models.
_IN_FILES = (
    (re.compile(r"^model\.backbone\.conv_encoder\."), "model.backbone."),
    (re.compile(r"\.self_attn\.out_proj\."), ".self_attn.o_proj."),
    (re.compile(r"(coder\.layers\.\d+)\.fc"), r"\1.mlp.fc"),
)
_TO_FILES = (
    (re.compile(r"^model\.backbone\."), "model.backbone.conv_encoder."),
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
    (re.compile(r"(coder\.layers\.\d+)\.mlp\.fc"), r"\1.fc"),
)
_ALIAS = "model.decoder."
# The projections of q, k and v in self-attention are one tensor in ours and three in theirs.
_OUR_JOINED = re.compile(r"decoder\.layers\.([0-9]{1,6})\.self_attention\.in_proj_(weight|bias)")
_THEIR_PARTS = re.compile(r"model\.decoder\.layers\.([0-9]{1,6})\.self_attn\.([qkv])_proj\.(weight|bias)")
_PARTS = ("q", "k", "v")

BackboneNames = Literal["timm", "native"]
"""Names of the backbone's parameters: those of timm, or those of the ResNet in transformers."""


def to_transformers_keys(
    weights: Mapping[str, Tensor], config: DeformableDETRConfig, *, backbone: BackboneNames = "timm"
) -> dict[str, Tensor]:
    """Weights by transformers' names, with copies and aliases of the heads.

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
        if joined is not None:
            for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                theirs[f"model.decoder.layers.{joined[1]}.self_attn.{part}_proj.{joined[2]}"] = piece.clone()
        elif not name.endswith(COUNTERS):
            theirs[_their_name(name, config, backbone)] = tensor
    return with_copies(theirs, config, _ALIAS)


def from_transformers_keys(theirs: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    """Weights by our names, from those of a model or a file of transformers.

    The backbone may have timm's names or those of transformers' own ResNet.

    With refinement in one stage, their models share one class head among all layers, unlike the official code, and
    their files hold only the first. Here every layer gets a copy of it.

    Args:
        theirs: state of their model, or tensors of their file.
        config: settings of the model.

    Raises:
        CheckpointError: a name is of none of their models, copies of a shared head differ, or the projections of a
            self-attention are incomplete.
    """
    # Each tensor gets our name. Projections of q, k and v are collected, unknown names are reported together.
    weights: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    foreign: list[str] = []
    for name, tensor in without_copies(theirs, config, _ALIAS).items():
        plain = _model_name(name)
        part = _THEIR_PARTS.fullmatch(plain)
        if part is not None:
            parts.setdefault(f"decoder.layers.{part[1]}.self_attention.in_proj_{part[3]}", {})[part[2]] = tensor
            continue
        if name.endswith(COUNTERS):
            continue
        ours = _our_name(plain, config)
        if ours is None:
            foreign.append(name)
            continue
        if ours in weights and not is_equal(weights[ours], tensor):
            raise CheckpointError(f"{ours} is there twice, as {name} and under another name, and differs")
        weights[ours] = tensor
    if foreign:
        others = f", nor are {len(foreign) - 1} more, such as {one_line(foreign[1])}" if len(foreign) > 1 else ""
        raise CheckpointError(f"'{one_line(foreign[0])}' is not a parameter of Deformable DETR in transformers{others}")
    # Three projections become one tensor.
    for ours, pieces in parts.items():
        missing = [part for part in _PARTS if part not in pieces]
        if missing:
            raise CheckpointError(f"{ours} needs the projections of q, k and v; {', '.join(missing)} is not there")
        shapes = {part: list(piece.shape) for part, piece in pieces.items()}
        if not shapes["q"] == shapes["k"] == shapes["v"] or not shapes["q"]:
            raise CheckpointError(f"{ours} needs projections of q, k and v of one shape, not of {shown(shapes)}")
        weights[ours] = torch.cat([pieces[part] for part in _PARTS])
    # A class head that their layers share is copied to every layer.
    if config.variant == "refine" and not any(name.startswith("decoder.class_heads.1.") for name in weights):
        for name in [name for name in weights if name.startswith("decoder.class_heads.0.")]:
            for layer in range(1, config.decoder_layers):
                weights[name.replace(".0.", f".{layer}.", 1)] = weights[name]
    return weights


def file_key(name: str) -> str:
    """Name of a parameter in files of transformers, of all versions, from its name in the models."""
    for pattern, replacement in _TO_FILES:
        name = pattern.sub(replacement, name)
    return name


def native_there(inner: str, backbone: str) -> str:
    """Name of a backbone's parameter in transformers' own ResNet, from its name in timm.

    Args:
        inner: name in timm, without a prefix.
        backbone: name of the backbone, for messages.

    Raises:
        ValueError: there is no such name; only plain ResNets have one.
    """
    theirs = _NATIVE_RESNET.to_theirs(inner)
    if theirs is None:
        raise ValueError(f"backbone {backbone} has no native name for {inner}; only plain ResNets have")
    return theirs


def native_here(inner: str) -> str | None:
    """Name in timm of a backbone's parameter that may have the name of transformers' own ResNet; None if unknown."""
    return _NATIVE_RESNET.to_ours(inner) if inner.startswith(_NATIVE_START) else inner


def _their_name(name: str, config: DeformableDETRConfig, backbone: BackboneNames) -> str:
    if name.startswith(_OUR_BACKBONE):
        inner = name.removeprefix(_OUR_BACKBONE)
        return _THEIR_BACKBONE + (inner if backbone == "timm" else native_there(inner, config.backbone))
    theirs = proposal_head_there(name, config) or _NAMES.to_theirs(name)
    assert theirs is not None, f"no name in transformers for {name}"
    return theirs


def _model_name(name: str) -> str:
    """Name of a parameter in their models, from its name in a file or in a model."""
    for pattern, replacement in _IN_FILES:
        name = pattern.sub(replacement, name)
    return name


def _our_name(plain: str, config: DeformableDETRConfig) -> str | None:
    inner = plain.removeprefix(_THEIR_BACKBONE)
    if inner == plain:
        return proposal_head_here(plain, config) or _NAMES.to_ours(plain)
    ours = native_here(inner)
    return None if ours is None else _OUR_BACKBONE + ours
