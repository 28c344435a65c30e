"""Class and box heads in files of others: named alike in the official code and in transformers, and held several times.

In the base model all layers share one head, and the files hold a copy for each. With refinement each layer has its own
box head, and the files hold them again as the decoder's; in two stages the class heads, too, and one more of each kind,
numbered after the last layer, for the proposals.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from deformable_detr.models import DeformableDETRConfig

HEAD = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.+)")
"""Kind, number and parameter of a head."""
PROPOSAL_HEADS = {"class_embed": "query_source.class_head", "bbox_embed": "query_source.box_head"}
"""What we call those of the proposals, by kind."""


def with_copies(weights: Mapping[str, Tensor], config: DeformableDETRConfig, decoder: str) -> dict[str, Tensor]:
    """Weights under the others' names, their heads as often as the others' files hold them. Copies share memory.

    Args:
        weights: each head once.
        config: of the model they are of.
        decoder: how names of the decoder's parameters start there.
    """
    copied = dict(weights)
    for name, tensor in weights.items():
        head = HEAD.fullmatch(name)
        if head is None:
            continue
        kind, _, rest = head.groups()
        if config.variant == "base":
            copied |= {f"{kind}.{layer}.{rest}": tensor for layer in range(config.decoder_layers)}
        elif kind == "bbox_embed" or config.variant == "two_stage":
            copied[decoder + name] = tensor
    return copied
