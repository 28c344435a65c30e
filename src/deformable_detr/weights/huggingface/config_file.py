"""Parts of transformers' config.json that all detectors have in common: what it is of, its classes, its types."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from deformable_detr.core.config import fits
from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.weights.coco_classes import UNUSED
from deformable_detr.weights.huggingface.backbone_config import BACKBONE_TYPES, backbone_from

OWN_ENTRY = "deformable_detr"
"""Entry of this package in config.json, for settings that transformers does not have; its models keep it unread."""
OWN_SETTINGS = ("backbone_weights", "frozen_stages", "frozen_batch_norm")
"""Settings of all our networks that `OWN_ENTRY` holds."""
FIXED = {"activation_function": "relu", "num_channels": 3}
"""Settings that must have one value to be built by this package."""
SYNONYMS = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
"""Other names of settings."""
IGNORED = (
    "activation_dropout attention_dropout encoder_layerdrop init_std init_xavier_std auxiliary_loss class_cost "
    "bbox_cost giou_cost mask_loss_coefficient dice_loss_coefficient bbox_loss_coefficient giou_loss_coefficient "
    "eos_coefficient max_position_embeddings is_encoder_decoder tie_word_embeddings scale_embedding "
    "use_pretrained_backbone label2id dtype torch_dtype transformers_version _name_or_path return_dict "
    "output_attentions output_hidden_states problem_type chunk_size_feed_forward attn_implementation "
    "_attn_implementation num_hidden_layers"
)
"""Names of settings that do not change the results of a trained network, with spaces between them."""
READ = (
    "model_type architectures id2label num_labels num_queries dilation use_timm_backbone backbone backbone_config "
    "backbone_kwargs"
)
"""Names of settings that are read, beside those of sizes, with spaces between them."""
TYPES: dict[str, Any] = {
    "model_type": str | None,
    "architectures": tuple[str, ...] | None,
    "id2label": dict | None,
    "num_labels": int,
    "two_stage": bool | None,
    "with_box_refine": bool | None,
    "dilation": bool | None,
    "use_timm_backbone": bool | None,
    "backbone": str | None,
    "backbone_config": dict | None,
    "backbone_kwargs": dict | None,
    OWN_ENTRY: dict | None,
}
"""Types of what is read; sizes are checked where they become our settings."""


def check_types(settings: Mapping[str, Any], types: Mapping[str, Any], prefix: str) -> None:
    """Refuse values that are not of their types.

    Args:
        settings: part of a config.json.
        types: types by name.
        prefix: words before the names in messages, such as "backbone_config.".

    Raises:
        CheckpointError: a value is of another type.
    """
    for name, kind in types.items():
        if name in settings and not fits(settings[name], kind):
            raise CheckpointError(f"{prefix}{name} is {shown(settings[name])}, which it cannot be in a config.json")


def check_kind(settings: Mapping[str, Any], model_type: str, architecture: str) -> None:
    """Refuse files of other models, and of this one without heads.

    Args:
        settings: content of a config.json.
        model_type: the only "model_type" that is right.
        architecture: the only class in "architectures" that is right.

    Raises:
        CheckpointError: it is another one.
    """
    kind = settings.get("model_type")
    if kind is None:
        raise CheckpointError("there is no model_type in it; this is not a model of transformers")
    if kind != model_type:
        raise CheckpointError(
            f"it is a model of type {shown(kind)}, not {model_type!r}; transformers' AutoModelForObjectDetection "
            "reads it, this package does not"
        )
    architectures = settings.get("architectures") or [architecture]
    if architecture not in architectures:
        raise CheckpointError(
            f"it holds {one_line(', '.join(architectures))}, which has no class and box heads; not {architecture}"
        )


def checked(
    settings: Mapping[str, Any],
    *,
    model_type: str,
    architecture: str,
    fixed: Mapping[str, Any],
    equal: Mapping[str, tuple[str, Any]],
) -> dict[str, Any]:
    """Settings of a config.json by their usual names, of the right model, and such as our networks can have.

    Args:
        settings: content of the file.
        model_type: the only "model_type" that is right.
        architecture: the only class in "architectures" that is right.
        fixed: the only values that are right, by name.
        equal: for the first of each pair of settings that are one of ours, the second and the default of both.

    Raises:
        CheckpointError: it is of another model, a value is of another type, or no network of ours can be so.
    """
    check_types(settings, TYPES, "")
    check_kind(settings, model_type, architecture)
    for name in ("backbone_config", "backbone_kwargs"):
        check_types(settings.get(name) or {}, BACKBONE_TYPES, f"{name}.")
    usual = {SYNONYMS.get(name, name): value for name, value in settings.items()}
    check_fixed(usual, fixed)
    check_equal(usual, equal)
    return usual


def common_settings(
    settings: Mapping[str, Any], sizes: Mapping[str, tuple[str, Any]], own_too: Collection[str] = ()
) -> dict[str, Any]:
    """Settings of our network that all detectors have: sizes, backbone, classes, and what this package has added.

    Args:
        settings: content of a config.json, as `checked` gives it.
        sizes: for each setting of ours, theirs and its default.
        own_too: settings of ours that `OWN_ENTRY` holds beside `OWN_SETTINGS`.

    Raises:
        CheckpointError: timm has no such backbone, or names of classes are missing.
    """
    own = settings.get(OWN_ENTRY) or {}
    return (
        {ours: settings.get(theirs, default) for ours, (theirs, default) in sizes.items()}
        | {name: own[name] for name in (*OWN_SETTINGS, *own_too) if name in own}
        | backbone_from(settings)
        | {"num_classes": num_labels_of(settings)}
    )


def unknown_settings(settings: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Names of settings that are neither read nor known to change nothing.

    Args:
        settings: content of a config.json, as `checked` gives it.
        known: names that are known beside those of all detectors.
    """
    return sorted(set(settings) - {*known, *READ.split(), *IGNORED.split(), OWN_ENTRY})


def written_settings(
    model: Any,
    *,
    model_type: str,
    architecture: str,
    fixed: Mapping[str, Any],
    equal: Mapping[str, tuple[str, Any]],
    sizes: Mapping[str, tuple[str, Any]],
) -> dict[str, Any]:
    """Entries of a config.json for the kind of model, its sizes and its dropout.

    Args:
        model: settings of our network.
        model_type: value of "model_type".
        architecture: class in "architectures".
        fixed: settings that have one value, by name.
        equal: as for `checked`; the second of each pair gets the value of the first.
        sizes: as for `common_settings`.
    """
    written = {theirs: getattr(model, ours) for ours, (theirs, _) in sizes.items()}
    return {
        "model_type": model_type,
        "architectures": [architecture],
        **written,
        **{second: written[first] for first, (second, _) in equal.items()},
        **fixed,
        "attention_dropout": model.dropout,
        "activation_dropout": model.dropout,
    }


def check_fixed(settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse settings that our networks cannot have.

    Args:
        settings: content of a config.json.
        fixed: the only values that are right, by name.

    Raises:
        CheckpointError: one has another value.
    """
    for name, expected in fixed.items():
        if settings.get(name, expected) != expected:
            raise CheckpointError(f"{name} is {shown(settings[name])}; only {expected!r} can be built here")


def check_equal(settings: Mapping[str, Any], equal: Mapping[str, tuple[str, Any]]) -> None:
    """Refuse pairs of settings that are one of ours and differ.

    Args:
        settings: content of a config.json.
        equal: for the first of each pair, the second and the default of both.

    Raises:
        CheckpointError: two differ.
    """
    for first, (second, default) in equal.items():
        one, other = settings.get(first, default), settings.get(second, default)
        if one != other:
            raise CheckpointError(f"{first} is {shown(one)} and {second} is {shown(other)}; here both must be equal")


def num_labels_of(settings: Mapping[str, Any]) -> int:
    """Number of classes: that of the names, or that which the file says without names."""
    number = settings.get("num_labels", 2) if settings.get("id2label") is None else len(_labels(settings))
    assert isinstance(number, int)
    return number


def classes_from(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by channel, all different.

    Channels named "N/A" or without a name have no class. If several channels share another name, the later ones get the
    number of the channel added.

    Args:
        settings: content of the file.

    Raises:
        CheckpointError: the numbers do not count the channels from 0, or a name is not a text.
    """
    labels = _labels(settings)
    taken, names = set(labels), dict[str, None]()
    for channel, label in enumerate(labels):
        name = f"{UNUSED}{channel}" if label in ("N/A", "") else label
        while name in names or (name != label and name in taken):
            name = f"{name} ({channel})"
        names[name] = None
    return tuple(names)


def category_ids_from(settings: Mapping[str, Any], classes: Sequence[str]) -> tuple[Any, ...]:
    """Category ids of the data set if this package wrote the file and its classes are unchanged; else 0, 1, 2, ...

    They are as they stand there, and not checked to be numbers.
    """
    own = settings.get(OWN_ENTRY) or {}
    ids = own.get("category_ids")
    if own.get("classes") == list(classes) and isinstance(ids, list) and len(ids) == len(classes):
        return tuple(ids)
    return tuple(range(len(classes)))


def class_entries(
    model: object, classes: Sequence[str], category_ids: Sequence[int], own_too: Collection[str] = ()
) -> dict[str, Any]:
    """Entries of config.json for the classes, and our own.

    Args:
        model: settings of the network.
        classes: class names by class id.
        category_ids: category ids of the data set, by class id.
        own_too: as for `common_settings`.
    """
    return {
        "id2label": {str(channel): name for channel, name in enumerate(classes)},
        "label2id": {name: channel for channel, name in enumerate(classes)},
        "dtype": "float32",
        OWN_ENTRY: {name: getattr(model, name) for name in (*OWN_SETTINGS, *own_too)}
        | {"classes": list(classes), "category_ids": list(category_ids)},
    }


def _labels(settings: Mapping[str, Any]) -> list[str]:
    labels = settings.get("id2label")
    if labels is None:
        return [f"LABEL_{channel}" for channel in range(settings.get("num_labels", 2))]
    if not all(isinstance(name, str) for name in labels.values()):
        raise CheckpointError("id2label must give each channel's number a name")
    by_number = {str(number): name for number, name in labels.items()}
    missing = [channel for channel in range(len(labels)) if str(channel) not in by_number]
    if missing:
        raise CheckpointError(
            f"id2label has {len(labels)} names, but none for channel {missing[0]}; it must count from 0"
        )
    return [by_number[str(channel)] for channel in range(len(labels))]
