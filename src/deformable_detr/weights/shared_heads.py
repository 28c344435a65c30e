"""Class and box heads in files of others: named alike in the official code and in transformers, and held several times.

In the base model all layers share one head, and the files hold a copy for each. With refinement each layer has its own
box head, and the files hold them again as the decoder's; in two stages the class heads, too, and one more of each kind,
numbered after the last layer, for the proposals.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig

# Kind, number and parameter of a head.
_HEAD = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.+)")
# What we call those of the proposals, by kind.
_PROPOSAL_HEADS = {"class_embed": "query_source.class_head", "bbox_embed": "query_source.box_head"}


def with_copies(weights: Mapping[str, Tensor], config: DeformableDETRConfig, decoder: str) -> dict[str, Tensor]:
    """Weights under the others' names, their heads as often as the others' files hold them. Copies share memory.

    Args:
        weights: each head once.
        config: of the model they are of.
        decoder: how names of the decoder's parameters start there.
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
    """The others' weights, their heads once: what `with_copies` added is compared and left out.

    Args:
        theirs: what their file holds.
        config: of the model they are for.
        decoder: how names of the decoder's parameters start there.

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
        if first in single and not torch.equal(single[first], tensor):
            raise CheckpointError(
                f"{name} should be a copy of {origin[first]}, and is not; is this of another variant?"
            )
        single.setdefault(first, tensor)
        origin.setdefault(first, name)
    return single


def proposal_head_there(name: str, config: DeformableDETRConfig) -> str | None:
    """The others' name of a parameter of the proposals' heads; None if it is one of something else."""
    for theirs, ours in _PROPOSAL_HEADS.items():
        if name.startswith(ours + "."):
            return f"{theirs}.{config.decoder_layers}.{name.removeprefix(ours + '.')}"
    return None


def proposal_head_here(name: str, config: DeformableDETRConfig) -> str | None:
    """Our name of a parameter of the proposals' heads, which come after the last layer's; None if it is another."""
    head = _HEAD.fullmatch(name)
    if head is None or int(head[2]) != config.decoder_layers:
        return None
    return f"{_PROPOSAL_HEADS[head[1]]}.{head[3]}"
