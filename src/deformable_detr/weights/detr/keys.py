"""Key map between our parameter names of DETR and those of the official code (its `checkpoint["model"]`).

The official code is github.com/facebookresearch/detr at 29901c51.
"""

from collections.abc import Mapping

from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import one_line
from deformable_detr.weights.key_map import COUNTERS, KeyMap

# Our prefix, official prefix.
_NAMES = KeyMap(
    (
        ("features.backbone.body.", "backbone.0.body."),
        ("features.position.rows.", "backbone.1.row_embed."),
        ("features.position.columns.", "backbone.1.col_embed."),
        ("features.projection.", "input_proj."),
        ("encoder.layers.#.self_attention.", "transformer.encoder.layers.#.self_attn."),
        ("encoder.layers.#.norm_attention.", "transformer.encoder.layers.#.norm1."),
        ("encoder.layers.#.norm_ffn.", "transformer.encoder.layers.#.norm2."),
        ("encoder.layers.#.ffn.linear#.", "transformer.encoder.layers.#.linear#."),
        ("encoder.norm.", "transformer.encoder.norm."),
        ("queries.", "query_embed."),
        ("decoder.layers.#.self_attention.", "transformer.decoder.layers.#.self_attn."),
        ("decoder.layers.#.cross_attention.", "transformer.decoder.layers.#.multihead_attn."),
        ("decoder.layers.#.norm_self.", "transformer.decoder.layers.#.norm1."),
        ("decoder.layers.#.norm_cross.", "transformer.decoder.layers.#.norm2."),
        ("decoder.layers.#.norm_ffn.", "transformer.decoder.layers.#.norm3."),
        ("decoder.layers.#.ffn.linear#.", "transformer.decoder.layers.#.linear#."),
        ("decoder.norm.", "transformer.decoder.norm."),
        ("decoder.class_head.", "class_embed."),
        ("decoder.box_head.", "bbox_embed."),
    )
)


def to_official_detr_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of DETR by the official code's names, from ours; counters of batch norm are left out."""
    official: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(COUNTERS):
            continue
        theirs = _NAMES.to_theirs(name)
        assert theirs is not None, f"no official name for {name}"
        official[theirs] = tensor
    return official


def from_official_detr_keys(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of DETR by our names, from the official code's; counters of batch norm are left out.

    Raises:
        CheckpointError: a name is not official.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if name.endswith(COUNTERS):
            continue
        ours = _NAMES.to_ours(name)
        if ours is None:
            raise CheckpointError(f"'{one_line(name)}' is not a parameter of the official DETR")
        weights[ours] = tensor
    return weights
