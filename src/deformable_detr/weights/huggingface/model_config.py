"""Settings of a model from and to the config.json of transformers' `DeformableDetrForObjectDetection`."""

from collections.abc import Mapping, Sequence
from typing import Any

from deformable_detr.core.config import from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.huggingface.backbone_config import (
    backbone_settings,
    body_of,
    check_norms,
    maps_of,
    maps_there,
)
from deformable_detr.weights.huggingface.config_file import (
    FIXED,
    checked,
    class_entries,
    common_settings,
    unknown_settings,
    written_settings,
)

MODEL_TYPE = "deformable_detr"
"""Value of "model_type" in config.json."""
ARCHITECTURE = "DeformableDetrForObjectDetection"
"""Class name in "architectures" of config.json."""

# Our setting -> their setting and its default.
_SIZES: dict[str, tuple[str, Any]] = {
    "num_levels": ("num_feature_levels", 4),
    "hidden_dim": ("d_model", 256),
    "num_heads": ("encoder_attention_heads", 8),
    "encoder_layers": ("encoder_layers", 6),
    "decoder_layers": ("decoder_layers", 6),
    "encoder_points": ("encoder_n_points", 4),
    "decoder_points": ("decoder_n_points", 4),
    "ffn_dim": ("encoder_ffn_dim", 1024),
    "dropout": ("dropout", 0.1),
}
# Pairs of their settings that are one of ours, with their default.
_EQUAL = {
    "encoder_attention_heads": ("decoder_attention_heads", 8),
    "encoder_ffn_dim": ("decoder_ffn_dim", 1024),
}
# Their settings that must have one value to be built by this package.
_FIXED = FIXED | {"position_embedding_type": "sine"}
# What there is besides, and does not change the results of a trained network.
_IGNORED = ("disable_custom_kernels", "focal_alpha", "return_intermediate")
_READ = ("two_stage", "two_stage_num_proposals", "with_box_refine")
# Maps that transformers takes of a backbone that is only named, by the number of maps.
_TIMM_MAPS = {1: [4], 3: [2, 3, 4]}


def model_from(settings: Mapping[str, Any]) -> tuple[DeformableDETRConfig, list[str]]:
    """Settings of the model that a config.json describes, and the names of its settings that are ignored as unknown.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: the file is of another model, or of one that this package cannot build.
    """
    settings = checked(settings, model_type=MODEL_TYPE, architecture=ARCHITECTURE, fixed=_FIXED, equal=_EQUAL)
    refine, two_stage = settings.get("with_box_refine", False), settings.get("two_stage", False)
    if two_stage and not refine:
        raise CheckpointError("two_stage is true and with_box_refine is false; two stages need refinement")
    # Our settings. Unknown values are refused by the settings class.
    queries = "two_stage_num_proposals" if two_stage else "num_queries"
    try:
        model: DeformableDETRConfig = from_dict(
            DeformableDETRConfig,
            common_settings(settings, _SIZES)
            | {
                "variant": "two_stage" if two_stage else "refine" if refine else "base",
                "num_queries": settings.get(queries, 300),
            },
        )
        _check_maps(model, settings)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    known = [theirs for theirs, _ in (*_SIZES.values(), *_EQUAL.values())]
    return model, unknown_settings(settings, [*known, *_FIXED, *_IGNORED, *_READ])


def model_settings(model: DeformableDETRConfig, classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """Content of transformers' config.json for a Deformable DETR.

    Args:
        model: settings of the model.
        classes: class names by class id.
        category_ids: category ids of the data set, by class id.

    Raises:
        CheckpointError: their model cannot compute the same; the message names the setting.
    """
    if model.features != "padded":
        raise CheckpointError(
            f"features is {model.features!r}: models of transformers always see the padded batch and would find "
            "something else in images of unequal sizes; set features to 'padded' if images will come one at a time, "
            "nothing differs then"
        )
    if model.proposals != "paper":
        raise CheckpointError(
            f"proposals is {model.proposals!r}: models of transformers let proposals in the padding compete and would "
            "choose others; only what was trained with --set model.proposals=paper can be written"
        )
    if model.deformable_stages:
        raise CheckpointError(
            f"deformable_stages is {model.deformable_stages}: models of transformers have no deformable convolutions "
            "in their backbones"
        )
    return {
        **written_settings(
            model,
            model_type=MODEL_TYPE,
            architecture=ARCHITECTURE,
            fixed=_FIXED,
            equal=_EQUAL,
            sizes=_SIZES,
        ),
        "num_queries": model.num_queries,
        "two_stage_num_proposals": model.num_queries,
        "with_box_refine": model.variant != "base",
        "two_stage": model.variant == "two_stage",
        # The published weights; their defaults are others.
        "class_cost": 2,
        "auxiliary_loss": True,
        # Else they would share one class head among all layers, also with refinement.
        "tie_word_embeddings": model.variant != "refine",
        **backbone_settings(
            model.backbone,
            model.dilation,
            min(model.num_levels, 3),
            _TIMM_MAPS.get(min(model.num_levels, 3)),
        ),
        **class_entries(model, classes, category_ids),
    }


def _check_maps(model: DeformableDETRConfig, settings: Mapping[str, Any]) -> None:
    body = body_of(model.backbone, model.dilation, min(model.num_levels, 3))
    ours = maps_of(body)
    theirs = maps_there(settings, _TIMM_MAPS[3 if model.num_levels > 1 else 1], ours[-1] + 1)
    if theirs != ours:
        raise CheckpointError(
            f"the backbone gives maps {shown(theirs)} for num_feature_levels {model.num_levels}; "
            f"here it would give {ours}"
        )
    check_norms(body, model.backbone, settings)
