"""Key maps between our names of DINO's parameters and those of the authors' code, of detrex and of OpenMMLab.

The authors' code is github.com/IDEA-Research/DINO at faa8520f, and its map has been compared with a model that it
built. The other two maps were made from the code of detrex (e244e6c3) and of mmdet 3.3.0: no file of theirs could be
opened.
"""

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError, listed
from deformable_detr.core.short_text import one_line
from deformable_detr.models.dino import DINOConfig
from deformable_detr.weights.key_map import COUNTERS, KeyMap
from deformable_detr.weights.official.keys import LAYERS
from deformable_detr.weights.shared_heads import is_equal

Source = Literal["authors", "detrex", "openmmlab"]
"""Code whose names a file has."""

_ALIAS = re.compile(r"transformer\.decoder\.(?=(class|bbox)_embed\.)")
_SHARED = re.compile(r"(class_embed|bbox_embed)\.([0-9]{1,6})\.(.+)")
# Left by older versions of the codes; no network has weights there.
_NOT_USED = ("pixel_mean", "pixel_std", COUNTERS)
_RESNET = "pyramid.backbone.body."


class Sizes(NamedTuple):
    """Counts on which the names in a file depend."""

    decoder_layers: int
    """Number of decoder layers: the heads of the proposals are numbered after theirs."""
    num_maps: int
    """Number of levels that are maps of the backbone; further levels have names of their own."""
    shared_heads: bool = False
    """Whether all decoder layers share their heads, which the authors' files hold once per layer."""


def sizes_of(config: DINOConfig) -> Sizes:
    """Counts of a model on which names depend."""
    return Sizes(config.decoder_layers, config.num_maps, config.heads == "shared")


def source_of(names: Collection[str]) -> Source | None:
    """Code that writes files of such names; None if they are not those of a DINO."""
    if "query_embedding.weight" in names and "memory_trans_fc.weight" in names:
        return "openmmlab"
    if "transformer.tgt_embed.weight" not in names or "transformer.enc_output.weight" not in names:
        return None
    return "detrex" if "neck.convs.0.conv.weight" in names else "authors"


def looks_like_dino(names: Collection[str]) -> bool:
    """Whether these are the names of a DINO, as its authors, detrex or OpenMMLab have them."""
    return source_of(names) is not None


def to_authors_keys(weights: Mapping[str, Tensor], config: DINOConfig) -> dict[str, Tensor]:
    """Weights by the authors' names, with all names of the heads. Copies share memory.

    Args:
        weights: weights by our names.
        config: settings of the model.
    """
    names, found = key_map("authors", sizes_of(config)), dict[str, Tensor]()
    for name, tensor in weights.items():
        if name.endswith(COUNTERS):
            continue
        theirs = names.to_theirs(name)
        assert theirs is not None, f"the authors have no name for {name}"
        head = _SHARED.fullmatch(theirs)
        copies = [theirs]
        if head is not None and config.heads == "shared":
            copies = [f"{head[1]}.{layer}.{head[3]}" for layer in range(config.decoder_layers)]
        for copy in copies:
            found[copy] = tensor
            if head is not None:
                found[f"transformer.decoder.{copy}"] = tensor
    return found


def to_our_keys(theirs: Mapping[str, Tensor], source: Source, sizes: Sizes) -> dict[str, Tensor]:
    """Weights by our names, from those of a published file.

    Where a file has no biases of the projections (OpenMMLab), they are 0. A label table with one row for each class
    gets a last row of 0, which no query uses.

    Args:
        theirs: weights by the names of `source`.
        source: code whose names they are.
        sizes: counts on which the names depend.

    Raises:
        CheckpointError: names are not known, or copies of a shared head differ; the message names them.
    """
    names = key_map(source, sizes)
    weights: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    unknown = []
    for name, tensor in theirs.items():
        if name.endswith(_NOT_USED):
            continue
        plain = _ALIAS.sub("", name)
        head = _SHARED.fullmatch(plain) if sizes.shared_heads and source == "authors" else None
        ours = names.to_ours(f"{head[1]}.0.{head[3]}" if head is not None else plain)
        if ours is None or (head is not None and int(head[2]) >= sizes.decoder_layers):
            unknown.append(name)
        elif ours in weights and not is_equal(weights[ours], tensor):
            raise CheckpointError(f"{one_line(name)} should be a copy of {one_line(origin[ours])}, and is not")
        else:
            weights.setdefault(ours, tensor)
            origin.setdefault(ours, name)
    if unknown:
        names_of_file = one_line(listed(unknown, 8), 1000)
        raise CheckpointError(f"{len(unknown)} names are not of a DINO of {_NAME[source]}: {names_of_file}")
    return _completed(weights)


def shares_heads(theirs: Mapping[str, Tensor], decoder_layers: int) -> bool:
    """Whether the heads of all decoder layers in a file of the authors are equal, as copies of one are."""
    table = {_ALIAS.sub("", name): tensor for name, tensor in theirs.items()}
    heads = [(match, tensor) for name, tensor in table.items() if (match := _SHARED.fullmatch(name))]
    first = {(match[1], match[3]): tensor for match, tensor in heads if match[2] == "0"}
    return decoder_layers > 1 and all(
        is_equal(first[match[1], match[3]], tensor) for match, tensor in heads if (match[1], match[3]) in first
    )


_NAME = {"authors": "its authors", "detrex": "detrex", "openmmlab": "OpenMMLab"}


def key_map(source: Source, sizes: Sizes) -> KeyMap:
    """Key map of a published layout.

    Args:
        source: code whose names it knows.
        sizes: counts on which names depend.
    """
    return KeyMap({"authors": _authors, "detrex": _detrex, "openmmlab": _openmmlab}[source](sizes))


def _authors(sizes: Sizes) -> list[tuple[str, str]]:
    return [
        *LAYERS,
        ("decoder.norm.", "transformer.decoder.norm."),
        ("decoder.position_head.", "transformer.decoder.ref_point_head."),
        ("decoder.class_heads.#.", "class_embed.#."),
        ("decoder.box_heads.#.", "bbox_embed.#."),
        ("query_source.content.", "transformer.tgt_embed."),
        ("query_source.memory_proj.", "transformer.enc_output."),
        ("query_source.memory_norm.", "transformer.enc_output_norm."),
        ("query_source.class_head.", "transformer.enc_out_class_embed."),
        ("query_source.box_head.", "transformer.enc_out_bbox_embed."),
        ("denoising.label_embed.", "label_enc."),
    ]


def _detrex(sizes: Sizes) -> list[tuple[str, str]]:
    last, encoder, decoder = sizes.decoder_layers, "transformer.encoder.layers.#.", "transformer.decoder.layers.#."
    return [
        *_detectron2_resnet(),
        *_neck(sizes, norm="norm"),
        ("pyramid.level_embed", "transformer.level_embeds"),
        ("encoder.layers.#.self_attention.", f"{encoder}attentions.0."),
        ("decoder.layers.#.self_attention.", f"{decoder}attentions.0.attn."),
        ("decoder.layers.#.cross_attention.", f"{decoder}attentions.1."),
        *_layers(encoder, decoder, ffn="ffns.0.layers"),
        ("decoder.norm.", "transformer.decoder.norm."),
        ("decoder.position_head.", "transformer.decoder.ref_point_head."),
        ("query_source.class_head.", f"class_embed.{last}."),
        ("query_source.box_head.", f"bbox_embed.{last}."),
        ("decoder.class_heads.#.", "class_embed.#."),
        ("decoder.box_heads.#.", "bbox_embed.#."),
        ("query_source.content.", "transformer.tgt_embed."),
        ("query_source.memory_proj.", "transformer.enc_output."),
        ("query_source.memory_norm.", "transformer.enc_output_norm."),
        ("denoising.label_embed.", "label_enc."),
    ]


def _openmmlab(sizes: Sizes) -> list[tuple[str, str]]:
    last, encoder, decoder = sizes.decoder_layers, "encoder.layers.#.", "decoder.layers.#."
    # Linear layers and ReLUs are counted together there.
    layers = [(f"layers.{own}.", f"{own * 2}.") for own in range(3)]
    return [
        *_neck(sizes, norm="gn"),
        (_RESNET, "backbone."),
        ("pyramid.level_embed", "level_embed"),
        ("encoder.layers.#.self_attention.", f"{encoder}self_attn."),
        ("decoder.layers.#.self_attention.", f"{decoder}self_attn.attn."),
        ("decoder.layers.#.cross_attention.", f"{decoder}cross_attn."),
        *_layers(encoder, decoder, ffn="ffn.layers"),
        ("decoder.norm.", "decoder.norm."),
        ("decoder.position_head.", "decoder.ref_point_head."),
        ("query_source.class_head.", f"bbox_head.cls_branches.{last}."),
        *((f"query_source.box_head.{own}", f"bbox_head.reg_branches.{last}.{there}") for own, there in layers),
        ("decoder.class_heads.#.", "bbox_head.cls_branches.#."),
        *((f"decoder.box_heads.#.{own}", f"bbox_head.reg_branches.#.{there}") for own, there in layers),
        ("query_source.content.", "query_embedding."),
        ("query_source.memory_proj.", "memory_trans_fc."),
        ("query_source.memory_norm.", "memory_trans_norm."),
        ("denoising.label_embed.", "dn_query_generator.label_embedding."),
    ]


def _layers(encoder: str, decoder: str, *, ffn: str) -> list[tuple[str, str]]:
    return [
        ("encoder.layers.#.ffn.linear1.", f"{encoder}{ffn}.0.0."),
        ("encoder.layers.#.ffn.linear2.", f"{encoder}{ffn}.1."),
        ("encoder.layers.#.norm_attention.", f"{encoder}norms.0."),
        ("encoder.layers.#.norm_ffn.", f"{encoder}norms.1."),
        ("decoder.layers.#.ffn.linear1.", f"{decoder}{ffn}.0.0."),
        ("decoder.layers.#.ffn.linear2.", f"{decoder}{ffn}.1."),
        ("decoder.layers.#.norm_self.", f"{decoder}norms.0."),
        ("decoder.layers.#.norm_cross.", f"{decoder}norms.1."),
        ("decoder.layers.#.norm_ffn.", f"{decoder}norms.2."),
    ]


def _neck(sizes: Sizes, *, norm: str) -> list[tuple[str, str]]:
    rows = []
    for level in range(8):
        extra = level - sizes.num_maps
        there = f"neck.convs.{level}" if extra < 0 else f"neck.extra_convs.{extra}"
        rows += [(f"pyramid.projections.{level}.0.", f"{there}.conv.")]
        rows += [(f"pyramid.projections.{level}.1.", f"{there}.{norm}.")]
    return rows


def _detectron2_resnet() -> list[tuple[str, str]]:
    rows = [(f"{_RESNET}bn1.", "backbone.stem.conv1.norm."), (f"{_RESNET}conv1.", "backbone.stem.conv1.")]
    for layer in range(1, 5):
        ours, theirs = f"{_RESNET}layer{layer}.#.", f"backbone.res{layer + 1}.#."
        for number in range(1, 4):
            rows += [(f"{ours}bn{number}.", f"{theirs}conv{number}.norm.")]
            rows += [(f"{ours}conv{number}.", f"{theirs}conv{number}.")]
        rows += [(f"{ours}downsample.1.", f"{theirs}shortcut.norm."), (f"{ours}downsample.0.", f"{theirs}shortcut.")]
    return rows


def _completed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the zeros that a published file leaves out."""
    for name in [name for name in weights if re.fullmatch(r"pyramid\.projections\.\d+\.0\.weight", name)]:
        bias = name.removesuffix("weight") + "bias"
        if bias not in weights and weights[name].dim() == 4:
            weights[bias] = weights[name].new_zeros(len(weights[name]))
    table, head = (weights.get(name) for name in ("denoising.label_embed.weight", "query_source.class_head.bias"))
    if table is not None and head is not None and table.dim() == 2 and len(table) == len(head):
        weights["denoising.label_embed.weight"] = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return weights
