"""Checkpoints in our layout: one safetensors file with the weights and, as JSON in its header, their description.

The header's entry "deformable_detr" holds the schema version, the model's name and settings, class names, category ids,
preprocessing, metrics, provenance and licence. A file to resume from also holds the optimizer's tensors, with names
that start with "training/".
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from deformable_detr.core.config import from_dict, to_dict
from deformable_detr.core.errors import CheckpointError, ConfigError, listed
from deformable_detr.core.file_kinds import kind_of
from deformable_detr.core.files import write_atomically
from deformable_detr.core.reading import settings_value
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.core.torch_files import FLOATS, check_numbers, reading_safetensors, type_name, write_tensors
from deformable_detr.core.version import __version__
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS, DeformableDETRConfig, ModelConfig
from deformable_detr.models.interface import GivenModelConfig, class_name_of
from deformable_detr.weights.description import check_classes, check_facts, short_fact, short_facts

SCHEMA_VERSION = 1
"""Version of the header's structure that is written; newer versions are refused."""
BEST_NAME = "best.safetensors"
"""File name of a run's best weights, for use."""
LAST_NAME = "last.safetensors"
"""File name of a run's newest weights, with the training state to resume from."""
HEADER_ENTRY = "deformable_detr"
"""Entry of the header that describes the weights; other layouts use this name for it, too."""
TRAINING_PREFIX = "training/"
"""Prefix of the names of tensors that are needed only to resume."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Training state: everything a run needs to resume as if it had never stopped."""

    progress: dict[str, Any]
    """Counters and settings, as plain JSON values."""
    tensors: dict[str, Tensor]
    """State of the optimizer and of the random generators, by name."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights with their description: model, classes, preprocessing, metrics and provenance."""

    weights: dict[str, Tensor]
    """Parameters and buffers by our names, as `state_dict` of the network gives them."""
    model: ModelConfig
    """Settings of the network."""
    classes: tuple[str, ...]
    """Class names by class id."""
    category_ids: tuple[int, ...]
    """Category ids of the data set, by class id."""
    preprocessing: Preprocessing
    """Preprocessing that the network was trained with."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics measured with these weights, by name, for instance "ap50"."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Provenance for readers: recipe, data set, versions, date."""
    licence: str = ""
    """Licence of the weights as their author states it; empty if unknown."""
    training: TrainingState | None = None
    """Training state to resume from; None if the weights are for use only."""

    def __post_init__(self) -> None:
        """Refuse a description that cannot be, whatever it was read from.

        Raises:
            CheckpointError: class names, category ids, metrics, provenance or licence cannot be used.
        """
        check_classes(self.classes, self.category_ids, self.model.num_classes)
        check_facts(self.metrics, self.provenance, self.licence)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; an older file at this path is replaced only when the new one is complete.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, writer(checkpoint))


def writer(checkpoint: Checkpoint, *, copy: bool = True) -> Callable[[Path], None]:
    """Function that writes the checkpoint to a path, from a copy of the tensors that is made now.

    Args:
        checkpoint: the checkpoint to write.
        copy: False where the tensors are copies already and none shares memory with another.
    """
    tensors = dict(checkpoint.weights)
    header = to_header(checkpoint)
    if checkpoint.training is not None:
        header["training"] = checkpoint.training.progress
        tensors |= {TRAINING_PREFIX + name: tensor for name, tensor in checkpoint.training.tensors.items()}
    # Copies: the format does not allow tensors that share memory.
    owned = {name: tensor.detach().to("cpu", copy=copy).contiguous() for name, tensor in tensors.items()}
    return partial(write_tensors, owned, metadata={HEADER_ENTRY: json.dumps(header)})


def load(path: Path, *, training: bool = False) -> Checkpoint:
    """Checkpoint from a file that `save` wrote.

    Args:
        path: path of the file.
        training: read the training state, too.

    Raises:
        CheckpointError: the file does not exist, is incomplete, is no checkpoint of this package or one of a newer
            version of it, has no training state though `training` asks for it, describes another model than it has
            tensors for, or has weights that are not finite.
    """
    if path.is_dir():
        raise CheckpointError(f"no such checkpoint file: {path}; a run folder has best.safetensors in it")
    kind_of(path)  # refuses what is no file
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        header = _header(path, file.metadata())
        if training and "training" not in header:
            raise CheckpointError(f"{path} holds weights only; resume from the run's last.safetensors instead")
        names = [name for name in file.keys() if training or not name.startswith(TRAINING_PREFIX)]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_PREFIX)}
    checkpoint = from_header(path, header, weights)
    # The sizes that the header asks for are those of the tensors; only then may anything be built of that size.
    if not isinstance(checkpoint.model, GivenModelConfig):
        check_fit(sketch(checkpoint.model, path), weights, str(path))
    check_numbers(tensors, path)
    return replace(checkpoint, training=_training_state(path, header, tensors)) if training else checkpoint


def to_header(checkpoint: Checkpoint) -> dict[str, Any]:
    """Description of a checkpoint as plain JSON values, without the training state."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": MODELS.name_of(checkpoint.model), "config": to_dict(checkpoint.model)},
        "classes": list(checkpoint.classes),
        "category_ids": list(checkpoint.category_ids),
        "preprocessing": to_dict(checkpoint.preprocessing),
        "metrics": dict(checkpoint.metrics),
        "provenance": {
            "deformable_detr": __version__,
            "torch": str(torch.__version__),
            **checkpoint.provenance,
        },
        "licence": checkpoint.licence,
    }


def parse_header(path: Path, text: str) -> dict[str, Any]:
    """Header from its JSON text.

    Args:
        path: path of the file, for messages.
        text: JSON text of the entry `HEADER_ENTRY`.

    Raises:
        CheckpointError: the text is not JSON, is no header, or is of a newer version of this package.
    """
    try:
        header = settings_value(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its description is not valid JSON: {error}") from error
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path}: its description has no schema version that ever was")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {shown(version)}, this deformable-detr {__version__} reads up to "
            f"{SCHEMA_VERSION}; a newer release will read it"
        )
    return header


def from_header(path: Path, header: Mapping[str, Any], weights: dict[str, Tensor]) -> Checkpoint:
    """Checkpoint from a description that `to_header` made, and its weights.

    Args:
        path: path of the file, for messages.
        header: the description.
        weights: tensors by our names; they are not compared with the model.

    Raises:
        CheckpointError: the description is incomplete, contradicts itself, holds values of another kind, or names a
            model that is not known.
    """
    try:
        name = header["model"]["name"]
        kinds = MODELS.config_classes()
        if not isinstance(name, str) or name not in kinds:
            raise CheckpointError(f"it is of a model {shown(name)}; this version knows {', '.join(MODELS)}")
        model: ModelConfig = from_dict(kinds[name], header["model"]["config"])
        classes, category_ids = _list_in(header, "classes"), _list_in(header, "category_ids")
        check_classes(classes, category_ids, model.num_classes)
        check_facts(header["metrics"], header["provenance"], header["licence"])
        return Checkpoint(
            weights=weights,
            model=model.portable(),  # where the initial weights were on another machine says nothing on this one
            classes=classes,
            category_ids=category_ids,
            preprocessing=from_dict(Preprocessing, header["preprocessing"]),
            metrics=dict(header["metrics"]),
            provenance=short_facts(header["provenance"]),
            licence=short_fact(header["licence"]),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its description is incomplete: {one_line(error)}") from error
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def deformable_config(checkpoint: Checkpoint, layout: str) -> DeformableDETRConfig:
    """Settings of a checkpoint whose model is a Deformable DETR.

    Args:
        checkpoint: the checkpoint.
        layout: name of a layout that is for this model, for messages.

    Raises:
        CheckpointError: the checkpoint is of another model, or has tensors that training alone needs.
    """
    if not isinstance(checkpoint.model, DeformableDETRConfig):
        raise no_such_model(checkpoint, layout)
    beyond = [name for name in checkpoint.weights if name.startswith(MODELS.training_tensors(checkpoint.model))]
    if beyond:
        raise CheckpointError(
            f"{layout} has no place for tensors that training alone needs, {one_line(listed(beyond), 1000)}; write a "
            ".safetensors file, which holds every model"
        )
    return checkpoint.model


def no_such_model(checkpoint: Checkpoint, layout: str) -> CheckpointError:
    """Error of a layout that has no model like that of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        layout: name of the layout.
    """
    return CheckpointError(
        f"{layout} has no model like this one, a {MODELS.name_of(checkpoint.model)} ({checkpoint.model.describe()}); "
        "write a .safetensors file, which holds every model"
    )


def build_model(checkpoint: Checkpoint, source: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Network with the checkpoint's weights.

    Args:
        checkpoint: weights with their description.
        source: where the checkpoint is from, for messages.
        model: network that receives the weights; needed only if its class is not of this package, and then of the
            class that the weights were trained with.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; or `model` is missing, not needed, or of
            another class.
    """
    check_given(checkpoint, source, model)
    if model is None:
        model = MODELS.build(checkpoint.model, load_backbone_weights=False)
    load_weights(model, checkpoint.weights, str(source))
    return model


def check_given(checkpoint: Checkpoint, source: str | Path, model: nn.Module | None) -> None:
    """Check that a network is passed exactly where the checkpoint needs one, and that its class is right.

    Args:
        checkpoint: weights with their description.
        source: where the checkpoint is from, for messages.
        model: network that was passed, or None.

    Raises:
        CheckpointError: a network is missing, not needed, or of another class; the message names the classes.
    """
    config = checkpoint.model
    if not isinstance(config, GivenModelConfig):
        if model is not None:
            raise CheckpointError(f"{source} holds a {MODELS.name_of(config)}, which is built from it: leave model out")
    elif model is None:
        raise CheckpointError(
            f"{source} holds weights of {config.class_name}, a class that is not of this package, and only that "
            "class can load them: build one and hand it over with model=..."
        )
    elif class_name_of(model) != config.class_name:
        raise CheckpointError(f"{source} holds weights of {config.class_name}, not of {class_name_of(model)}")


def sketch(model: ModelConfig, source: str | Path) -> nn.Module:
    """Network without memory for its weights, to compare names, shapes and types with before anything is built.

    Args:
        model: settings of a model that the package knows by name.
        source: where they are from, for messages.

    Raises:
        CheckpointError: such a network cannot be built.
    """
    try:
        with torch.device("meta"):
            return MODELS.build(model, load_backbone_weights=False)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network, strictly.

    Args:
        model: network that receives the weights.
        weights: tensors by our names.
        source: where the weights are from, for messages.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape.
    """
    check_fit(model, weights, source)
    model.load_state_dict(dict(weights))


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Check that names, shapes and types of numbers of weights are those of a network.

    Where the network has floating-point numbers, the weights may have any usual format of them.

    Args:
        model: the network; it may be on the meta device.
        weights: tensors by our names.
        source: where the weights are from, for messages.

    Raises:
        CheckpointError: names the first keys that are missing, unexpected, or of another shape or type, and how many
            there are.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    misshapen = [
        f"{name} is {list(weights[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    mistyped = [
        f"{name} is {type_name(weights[name])} there and {type_name(tensor)} here"
        for name, tensor in own.items()
        if name in weights and weights[name].dtype != tensor.dtype
        if not (weights[name].dtype in FLOATS and tensor.dtype in FLOATS)
    ]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "of another type": mistyped,
    }
    problems = [f"{len(names)} {what}: {one_line(listed(names), 1000)}" for what, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}")


def _header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(HEADER_ENTRY)
    if text is None:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a checkpoint of deformable-detr: "
            "it does not say what model it is of; weights of a backbone go to --backbone-weights"
        )
    return parse_header(path, text)


def _list_in(header: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    if not isinstance(header[name], list | tuple):
        raise TypeError(f"{name} is {shown(header[name])}, not a list")
    return tuple(header[name])


def _training_state(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> TrainingState:
    if not isinstance(header["training"], dict):
        raise CheckpointError(f"{path} does not say how far the run was")
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(TRAINING_PREFIX)}
    moments = {name.removeprefix(TRAINING_PREFIX): tensor for name, tensor in own.items()}
    return TrainingState(progress=header["training"], tensors=moments)
