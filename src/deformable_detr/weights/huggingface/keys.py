"""Key map between our parameter names and those of `DeformableDetrForObjectDetection` of the library transformers.

The library is github.com/huggingface/transformers at 5.23. Its models and the files it writes name some parameters
differently. Both are read; the names of the models are written, and such a model loads them strictly.
"""

from collections.abc import Mapping

from torch import Tensor

from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.huggingface.names import BackboneNames, DetectorNames, our_weights, their_weights
from deformable_detr.weights.key_map import KeyMap
from deformable_detr.weights.shared_heads import (
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
_ATTENTIONS = KeyMap((("decoder.layers.#.self_attention", "model.decoder.layers.#.self_attn"),))
_ALIAS = "model.decoder."


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
    theirs = their_weights(weights, _names(config), timm_name=config.backbone, backbone=backbone)
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
    weights = our_weights(without_copies(theirs, config, _ALIAS), _names(config))
    # A class head that their layers share is copied to every layer.
    if config.variant == "refine" and not any(name.startswith("decoder.class_heads.1.") for name in weights):
        for name in [name for name in weights if name.startswith("decoder.class_heads.0.")]:
            for layer in range(1, config.decoder_layers):
                weights[name.replace(".0.", f".{layer}.", 1)] = weights[name]
    return weights


def _names(config: DeformableDETRConfig) -> DetectorNames:
    return DetectorNames(
        "Deformable DETR",
        "pyramid.backbone.body.",
        _ATTENTIONS,
        lambda name: proposal_head_there(name, config) or _NAMES.to_theirs(name),
        lambda name: proposal_head_here(name, config) or _NAMES.to_ours(name),
    )
