"""Parameter names that the detectors of transformers have in common, in its models and in its files.

Models of version 5 name some parameters differently from files, which have the names of version 4, as those on the hub.
Both are read. The projections of queries, keys and values of an attention are one tensor in ours and three in theirs.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.weights.key_map import COUNTERS, KeyMap
from deformable_detr.weights.shared_heads import is_equal

BackboneNames = Literal["timm", "native"]
"""Names of the backbone's parameters: those of timm, or those of the ResNet in transformers."""

_BACKBONE = "model.backbone.model."
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


class DetectorNames(NamedTuple):
    """Parameter names of one detector: how ours become those of its model in transformers, and the reverse."""

    title: str
    """Name of the detector, for messages."""
    backbone: str
    """Our prefix of the backbone's parameters."""
    attentions: KeyMap
    """Attentions whose three projections are one tensor in ours."""
    to_theirs: Callable[[str], str | None]
    """Name in their model of any other parameter; None if it has none."""
    to_ours: Callable[[str], str | None]
    """Name in ours of any other parameter of their model; None if it has none."""


def their_weights(
    weights: Mapping[str, Tensor], names: DetectorNames, *, timm_name: str, backbone: BackboneNames
) -> dict[str, Tensor]:
    """Weights by the names of a model of transformers, from ours; counters of batch norm are left out.

    Args:
        weights: weights by our names.
        names: names of the detector.
        timm_name: name of the backbone in timm, for messages.
        backbone: names that the backbone's parameters get.

    Raises:
        ValueError: native names are asked for, but the backbone is no plain ResNet.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        joined = _OUR_JOINED.fullmatch(name)
        if name.endswith(COUNTERS):
            continue
        if joined is not None:
            attention = names.attentions.to_theirs(joined[1])
            for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                theirs[f"{attention}.{part}_proj.{joined[2]}"] = piece.clone()
        elif name.startswith(names.backbone):
            inner = name.removeprefix(names.backbone)
            theirs[_BACKBONE + (inner if backbone == "timm" else _native(inner, timm_name))] = tensor
        else:
            found = names.to_theirs(name)
            assert found is not None, f"no name in transformers for {name}"
            theirs[found] = tensor
    return theirs


def our_weights(theirs: Mapping[str, Tensor], names: DetectorNames) -> dict[str, Tensor]:
    """Weights by our names, from those of a model or a file of transformers; counters of batch norm are left out.

    The backbone may have timm's names or those of transformers' own ResNet.

    Args:
        theirs: state of their model, or tensors of their file.
        names: names of the detector.

    Raises:
        CheckpointError: a name is none of theirs, a parameter is there twice and differs, or the projections of an
            attention are incomplete.
    """
    # Each tensor gets our name. Projections of q, k and v are collected, unknown names are reported together.
    weights: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    foreign: list[str] = []
    for name, tensor in theirs.items():
        plain = _in_models(name)
        part = _THEIR_PARTS.fullmatch(plain)
        attention = None if part is None else names.attentions.to_ours(part[1])
        if name.endswith(COUNTERS):
            continue
        if part is not None and attention is not None:
            parts.setdefault(f"{attention}.in_proj_{part[3]}", {})[part[2]] = tensor
            continue
        ours = _our_name(plain, names)
        if ours is None:
            foreign.append(name)
            continue
        if ours in weights and not is_equal(weights[ours], tensor):
            raise CheckpointError(f"{ours} is there twice, as {name} and under another name, and differs")
        weights[ours] = tensor
    if foreign:
        others = f", nor are {len(foreign) - 1} more, such as {one_line(foreign[1])}" if len(foreign) > 1 else ""
        raise CheckpointError(f"'{one_line(foreign[0])}' is not a parameter of {names.title} in transformers{others}")
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


def file_key(name: str) -> str:
    """Name of a parameter in files of transformers, of all versions, from its name in the models."""
    for pattern, replacement in _TO_FILES:
        name = pattern.sub(replacement, name)
    return name


def _in_models(name: str) -> str:
    """Name of a parameter in their models, from its name in a file or in a model."""
    for pattern, replacement in _IN_FILES:
        name = pattern.sub(replacement, name)
    return name


def _our_name(plain: str, names: DetectorNames) -> str | None:
    inner = plain.removeprefix(_BACKBONE)
    if inner == plain:
        return names.to_ours(plain)
    ours = _NATIVE_RESNET.to_ours(inner) if inner.startswith(_NATIVE_START) else inner
    return None if ours is None else names.backbone + ours


def _native(inner: str, timm_name: str) -> str:
    theirs = _NATIVE_RESNET.to_theirs(inner)
    if theirs is None:
        raise ValueError(f"backbone {timm_name} has no native name for {inner}; only plain ResNets have")
    return theirs
