"""Settings of a DETR from and to the config.json of transformers' `DetrForObjectDetection`."""

from collections.abc import Mapping, Sequence
from typing import Any

from deformable_detr.core.config import from_dict
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models import DETRConfig
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

DETR_TYPE = "detr"
"""Value of "model_type" in config.json."""
DETR_ARCHITECTURE = "DetrForObjectDetection"
"""Class name in "architectures" of config.json."""
# Our setting -> their setting and its default.
_SIZES: dict[str, tuple[str, Any]] = {
    "position": ("position_embedding_type", "sine"),
    "hidden_dim": ("d_model", 256),
    "num_heads": ("encoder_attention_heads", 8),
    "encoder_layers": ("encoder_layers", 6),
    "decoder_layers": ("decoder_layers", 6),
    "ffn_dim": ("encoder_ffn_dim", 2048),
    "dropout": ("dropout", 0.1),
    "num_queries": ("num_queries", 100),
}
# Pairs of their settings that are one of ours, with their default.
_EQUAL = {
    "encoder_attention_heads": ("decoder_attention_heads", 8),
    "encoder_ffn_dim": ("decoder_ffn_dim", 2048),
}
# Settings of ours that their DETR has not.
_OWN = ("auxiliary_losses",)
# What there is besides, and does not change the results of a trained network.
_IGNORED = ("decoder_layerdrop", "classifier_dropout")
# Maps that transformers takes of a backbone that is only named; the network uses the last of them.
_TIMM_MAPS = [1, 2, 3, 4]


def detr_from(settings: Mapping[str, Any]) -> tuple[DETRConfig, list[str]]:
    """Settings of the DETR that a config.json describes, and the names of its settings that are left aside.

    Those are the unknown ones, and "auxiliary_loss" where it is true: see `detr_settings`.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: the file is of another model, or of one that this package cannot build.
    """
    settings = checked(settings, model_type=DETR_TYPE, architecture=DETR_ARCHITECTURE, fixed=FIXED, equal=_EQUAL)
    try:
        model = from_dict(DETRConfig, common_settings(settings, _SIZES, _OWN))
        body = body_of(model.backbone, model.dilation, 1)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    (last,) = maps_of(body)
    there = maps_there(settings, _TIMM_MAPS, last + 1)
    if there[-1:] != [last]:
        raise CheckpointError(f"the backbone gives maps {shown(there)}; DETR takes its last map, which is {last} here")
    check_norms(body, model.backbone, settings)
    known = [theirs for theirs, _ in (*_SIZES.values(), *_EQUAL.values())]
    aside = ["auxiliary_loss"] if settings.get("auxiliary_loss") else []
    return model, [*aside, *unknown_settings(settings, [*known, *FIXED, *_IGNORED])]


def detr_settings(model: DETRConfig, classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """Content of transformers' config.json for a DETR.

    Args:
        model: settings of the model.
        classes: class names by class id.
        category_ids: category ids of the data set, by class id.

    Raises:
        CheckpointError: their model cannot compute the same; the message names the setting.
    """
    if model.pre_norm:
        raise CheckpointError("pre_norm is true; the models of transformers have their norms after each block alone")
    return {
        **written_settings(
            model,
            model_type=DETR_TYPE,
            architecture=DETR_ARCHITECTURE,
            fixed=FIXED,
            equal=_EQUAL,
            sizes=_SIZES,
        ),
        # With auxiliary losses, version 5.24 computes another network: each layer goes on with what was normalised.
        "auxiliary_loss": False,
        **backbone_settings(model.backbone, model.dilation, 1, _TIMM_MAPS),
        **class_entries(model, classes, category_ids, _OWN),
    }
