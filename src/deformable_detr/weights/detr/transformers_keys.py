"""Key map between our parameter names of DETR and those of transformers' `DetrForObjectDetection`.

The library is github.com/huggingface/transformers at 5.24. The names of its models and those of its files, as on the
hub, are both read.
"""

from collections.abc import Mapping

from torch import Tensor

from deformable_detr.models import DETRConfig
from deformable_detr.weights.huggingface.names import BackboneNames, DetectorNames, our_weights, their_weights
from deformable_detr.weights.key_map import KeyMap

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
_ATTENTIONS = KeyMap(
    (
        ("encoder.layers.#.self_attention", "model.encoder.layers.#.self_attn"),
        ("decoder.layers.#.self_attention", "model.decoder.layers.#.self_attn"),
        ("decoder.layers.#.cross_attention", "model.decoder.layers.#.encoder_attn"),
    )
)
_DETR = DetectorNames("DETR", "features.backbone.body.", _ATTENTIONS, _NAMES.to_theirs, _NAMES.to_ours)


def to_transformers_detr_keys(
    weights: Mapping[str, Tensor], config: DETRConfig, *, backbone: BackboneNames = "timm"
) -> dict[str, Tensor]:
    """Weights of DETR by the names of transformers' models, from ours.

    Args:
        weights: weights by our names.
        config: settings of the model.
        backbone: "timm" if their model has its backbone from timm, as by default; "native" if it has their ResNet.

    Raises:
        ValueError: native names are asked for, but the backbone is no plain ResNet.
    """
    return their_weights(weights, _DETR, timm_name=config.backbone, backbone=backbone)


def from_transformers_detr_keys(theirs: Mapping[str, Tensor], config: DETRConfig) -> dict[str, Tensor]:
    """Weights of DETR by our names, from those of a model or a file of transformers, of version 4 or 5.

    Args:
        theirs: state of their model, or tensors of their file.
        config: settings of the model; the names do not depend on them.

    Raises:
        CheckpointError: a name is none of theirs, a parameter is there twice and differs, or the projections of an
            attention are incomplete.
    """
    return our_weights(theirs, _DETR)
