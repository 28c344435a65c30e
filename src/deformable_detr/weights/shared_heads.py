"""Class heads and box heads in the published layouts, which hold each of them several times under different names.

The official code and transformers agree here. In the base model all layers share one head of each kind, and the files
hold one copy per layer. With refinement each layer has its own box head, and the files hold them a second time below
the decoder. In two-stage the files hold the class heads a second time, too, and one more head of each kind, numbered
after the last layer, for the proposals.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig

# Groups: kind, number and parameter of a head.
_HEAD = re.compile(r"(class_embed|bbox_embed)\.([0-9]{1,6})\.(.+)")
_CLASS_HEAD = re.compile(r"(?:model\.decoder\.|transformer\.decoder\.)?class_embed\.")
CLASS_HEADS_REMOVED = (
    "its class heads (class_embed.*) have been removed; take the file as published, --weights fits other classes by "
    "itself"
)
"""Words for a published file whose class heads somebody has taken out, as other programs want it for fine-tuning."""
# Our prefix of the heads of the proposals, by kind.
_PROPOSAL_HEADS = {"class_embed": "query_source.class_head", "bbox_embed": "query_source.box_head"}


def with_copies(weights: Mapping[str, Tensor], config: DeformableDETRConfig, decoder: str) -> dict[str, Tensor]:
    """Weights by published names with all copies of the heads that such files hold. Copies share memory.

    Args:
        weights: weights by published names, with each head once.
        config: settings of the model.
        decoder: prefix of the decoder's parameters in that layout.
    """
    copied = dict(weights)
    for name, tensor in weights.items():
        head = _HEAD.fullmatch(name)
        if head is None:
            continue
        kind, _, rest = head.groups()
        if config.variant == "base":
            copied |= {f"{kind}.{layer}.{rest}": tensor for layer in range(config.decoder_layers)}
        elif kind == "bbox_embed" or config.variant == "two_stage":
            copied[decoder + name] = tensor
    return copied


def without_copies(theirs: Mapping[str, Tensor], config: DeformableDETRConfig, decoder: str) -> dict[str, Tensor]:
    """Weights by published names with each head once: the opposite of `with_copies`.

    Args:
        theirs: weights of a published file.
        config: settings of the model.
        decoder: prefix of the decoder's parameters in that layout.

    Raises:
        CheckpointError: copies of a shared head differ.
    """
    single: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in theirs.items():
        head = _HEAD.fullmatch(name.removeprefix(decoder))
        first = name
        if head is not None:
            kind, number, rest = head.groups()
            first = f"{kind}.{0 if config.variant == 'base' else number}.{rest}"
        if first in single and not is_equal(single[first], tensor):
            raise CheckpointError(
                f"{name} should be a copy of {origin[first]}, and is not; is this of another variant?"
            )
        single.setdefault(first, tensor)
        origin.setdefault(first, name)
    return single


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one type and shape and have the same numbers."""
    return one.dtype == other.dtype and torch.equal(one, other)


def is_class_head(name: str) -> bool:
    """Whether a published name is that of a parameter of a class head."""
    return _CLASS_HEAD.match(name) is not None


def proposal_head_there(name: str, config: DeformableDETRConfig) -> str | None:
    """Published name of a parameter of the proposals' heads, from our name; None for all other parameters."""
    for theirs, ours in _PROPOSAL_HEADS.items():
        if name.startswith(ours + "."):
            return f"{theirs}.{config.decoder_layers}.{name.removeprefix(ours + '.')}"
    return None


def proposal_head_here(name: str, config: DeformableDETRConfig) -> str | None:
    """Name in our layout of a parameter of the proposals' heads; None for all other published names."""
    head = _HEAD.fullmatch(name)
    if head is None or int(head[2]) != config.decoder_layers:
        return None
    return f"{_PROPOSAL_HEADS[head[1]]}.{head[3]}"
