"""Key map between our parameter names and those of the official code (its `checkpoint["model"]`).

The official code is github.com/fundamentalvision/Deformable-DETR at 11169a60. Its files hold some heads several times:
copies of the one shared head in the base model, and aliases below `transformer.decoder` with refinement.
"""

from collections.abc import Mapping

from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.key_map import COUNTERS, KeyMap
from deformable_detr.weights.shared_heads import proposal_head_here, proposal_head_there, with_copies, without_copies

LAYERS = (
    ("pyramid.backbone.body.", "backbone.0.body."),
    ("pyramid.projections.#.", "input_proj.#."),
    ("pyramid.level_embed", "transformer.level_embed"),
    ("encoder.layers.#.self_attention.", "transformer.encoder.layers.#.self_attn."),
    ("encoder.layers.#.norm_attention.", "transformer.encoder.layers.#.norm1."),
    ("encoder.layers.#.norm_ffn.", "transformer.encoder.layers.#.norm2."),
    ("encoder.layers.#.ffn.linear#.", "transformer.encoder.layers.#.linear#."),
    ("decoder.layers.#.self_attention.", "transformer.decoder.layers.#.self_attn."),
    ("decoder.layers.#.cross_attention.", "transformer.decoder.layers.#.cross_attn."),
    ("decoder.layers.#.norm_cross.", "transformer.decoder.layers.#.norm1."),
    ("decoder.layers.#.norm_self.", "transformer.decoder.layers.#.norm2."),
    ("decoder.layers.#.norm_ffn.", "transformer.decoder.layers.#.norm3."),
    ("decoder.layers.#.ffn.linear#.", "transformer.decoder.layers.#.linear#."),
)
"""Names of what the official code and that of DINO have in common: our prefix, their prefix."""
_NAMES = KeyMap(
    (
        *LAYERS,
        ("decoder.class_heads.#.", "class_embed.#."),
        ("decoder.box_heads.#.", "bbox_embed.#."),
        ("query_source.embedding.", "query_embed."),
        ("query_source.reference_points.", "transformer.reference_points."),
        ("query_source.memory_proj.", "transformer.enc_output."),
        ("query_source.memory_norm.", "transformer.enc_output_norm."),
        ("query_source.position_proj.", "transformer.pos_trans."),
        ("query_source.position_norm.", "transformer.pos_trans_norm."),
    )
)
_ALIAS = "transformer.decoder."


def to_official_keys(weights: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    """Weights by the official code's names, with copies and aliases of the heads.

    Args:
        weights: weights by our names.
        config: settings of the model.
    """
    official: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.endswith(COUNTERS):
            official[_official_name(name, config)] = tensor
    return with_copies(official, config, _ALIAS)


def from_official_keys(official: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    """Weights by our names, from those of an official checkpoint.

    Args:
        official: the entry "model" of an official checkpoint.
        config: settings of the model.

    Raises:
        CheckpointError: a name is not official, or copies of a shared head differ.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in without_copies(official, config, _ALIAS).items():
        if not name.endswith(COUNTERS):
            weights[_our_name(name, config)] = tensor
    return weights


def _official_name(name: str, config: DeformableDETRConfig) -> str:
    official = proposal_head_there(name, config) or _NAMES.to_theirs(name)
    assert official is not None, f"no official name for {name}"
    return official


def _our_name(name: str, config: DeformableDETRConfig) -> str:
    ours = proposal_head_here(name, config) or _NAMES.to_ours(name)
    if ours is None:
        raise CheckpointError(f"{name!r} is not a parameter of the official Deformable DETR")
    return ours
