"""One safetensors file: weights under their parameter names, and in its header, as JSON, all that gives them meaning.

The header's entry "deformable_detr" holds the schema version, the model's name and settings, class names,
preprocessing, metrics and provenance. A file to resume from also holds the optimizer's tensors, under "training/".
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
from deformable_detr.core.files import write_atomically
from deformable_detr.core.torch_files import reading_safetensors, write_tensors
from deformable_detr.core.version import __version__
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS, DeformableDETRConfig, ModelConfig
from deformable_detr.models.interface import GivenModelConfig, class_name_of

SCHEMA_VERSION = 1
BEST_NAME = "best.safetensors"
"""What a run calls its best weights, for use."""
LAST_NAME = "last.safetensors"
"""What a run calls its newest weights, with all that is needed to go on."""
HEADER_ENTRY = "deformable_detr"
"""Where the header says what gives the weights meaning; other layouts keep it under this name, too."""
TRAINING_PREFIX = "training/"
"""How names of tensors begin that are needed to resume alone."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a run needs to go on as if it had never stopped."""

    progress: dict[str, Any]
    """Counters and settings, as JSON can hold them."""
    tensors: dict[str, Tensor]
    """The optimizer's moments and the random generators' states."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights and what they mean."""

    weights: dict[str, Tensor]
    model: ModelConfig
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The data set's own numbers for the classes."""
    preprocessing: Preprocessing
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured with these weights, e.g. "ap50"."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Recipe, data set, versions and date, for people."""
    licence: str = ""
    """Of the weights, as far as whoever made them has said."""
    training: TrainingState | None = None


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file; an older one at this place stays whole until the new one is.

    Raises:
        OutputError: it cannot be written.
    """
    write_atomically(path, writer(checkpoint))


def writer(checkpoint: Checkpoint, *, copy: bool = True) -> Callable[[Path], None]:
    """What writes the file to a path it is given, from a copy of the tensors made now.

    Args:
        checkpoint: what to write.
        copy: False where the tensors are copies already, of which none shares memory with another.
    """
    tensors = dict(checkpoint.weights)
    header = to_header(checkpoint)
    if checkpoint.training is not None:
        header["training"] = checkpoint.training.progress
        tensors |= {TRAINING_PREFIX + name: tensor for name, tensor in checkpoint.training.tensors.items()}
    # Copies, so that tensors which share memory become independent, as the format wants.
    owned = {name: tensor.detach().to("cpu", copy=copy).contiguous() for name, tensor in tensors.items()}
    return partial(write_tensors, owned, metadata={HEADER_ENTRY: json.dumps(header)})


def load(path: Path, *, training: bool = False) -> Checkpoint:
    """Read a file that `save` wrote.

    Args:
        path: the file.
        training: bring what is needed to resume, too.

    Raises:
        CheckpointError: no such file, cut off, not a checkpoint of this software, or of a newer version of it.
    """
    if not path.is_file():
        hint = "; a run folder has best.safetensors in it" if path.is_dir() else ""
        raise CheckpointError(f"no such checkpoint file: {path}{hint}")
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        header = _header(path, file.metadata())
        if training and "training" not in header:
            raise CheckpointError(f"{path} holds weights only; resume from the run's last.safetensors instead")
        names = [name for name in file.keys() if training or not name.startswith(TRAINING_PREFIX)]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_PREFIX)}
    checkpoint = from_header(path, header, weights)
    return replace(checkpoint, training=_training_state(header, tensors)) if training else checkpoint


def to_header(checkpoint: Checkpoint) -> dict[str, Any]:
    """What gives the weights meaning, as JSON can hold it; what is needed to resume is not in it."""
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
    """The header from its JSON; `path` is for messages.

    Raises:
        CheckpointError: not JSON, not a header, or of a newer version of this software.
    """
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its description is not valid JSON: {error}") from error
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path}: its description has no schema version that ever was")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this deformable-detr {__version__} reads up to {SCHEMA_VERSION}; "
            "a newer release will read it"
        )
    return header


def from_header(path: Path, header: Mapping[str, Any], weights: dict[str, Tensor]) -> Checkpoint:
    """The checkpoint that `to_header` described, with these weights; `path` is for messages.

    Raises:
        CheckpointError: the description is incomplete, contradicts itself or is of a model that is not known here.
    """
    try:
        name = header["model"]["name"]
        kinds = MODELS.config_classes()
        if name not in kinds:
            raise CheckpointError(f"{path} is of a model {name!r}; this version knows {', '.join(MODELS)}")
        model: ModelConfig = from_dict(kinds[name], header["model"]["config"])
        checkpoint = Checkpoint(
            weights=weights,
            model=model,
            classes=tuple(header["classes"]),
            category_ids=tuple(header["category_ids"]),
            preprocessing=from_dict(Preprocessing, header["preprocessing"]),
            metrics=header["metrics"],
            provenance=header["provenance"],
            licence=header["licence"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its description is incomplete: {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not len(checkpoint.classes) == len(checkpoint.category_ids) == model.num_classes:
        raise CheckpointError(
            f"{path}: {len(checkpoint.classes)} class names and {len(checkpoint.category_ids)} category ids "
            f"for a model of {model.num_classes} classes"
        )
    return checkpoint


def deformable_config(checkpoint: Checkpoint, layout: str) -> DeformableDETRConfig:
    """Settings of a Deformable DETR, the only model that the published layouts hold; `layout` is for messages.

    Raises:
        CheckpointError: it is another model.
    """
    if isinstance(checkpoint.model, DeformableDETRConfig):
        return checkpoint.model
    raise CheckpointError(
        f"{layout} has no model like this one, a {MODELS.name_of(checkpoint.model)} ({checkpoint.model.describe()}); "
        "write a .safetensors file, which holds every model"
    )


def build_model(checkpoint: Checkpoint, source: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Network with the checkpoint's weights.

    Args:
        checkpoint: what was read.
        source: for messages.
        model: the network to put them into, which must be of the class they were trained with; needed where that is
            a class of somebody's own.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape, or the class is not known here.
    """
    check_given(checkpoint, source, model)
    if model is None:
        model = MODELS.build(checkpoint.model, load_backbone_weights=False)
    load_weights(model, checkpoint.weights, str(source))
    return model


def check_given(checkpoint: Checkpoint, source: str | Path, model: nn.Module | None) -> None:
    """Refuse a network of one's own where none is needed, and weights of one without it; `source` is for messages.

    Raises:
        CheckpointError: names both classes.
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


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network of exactly this shape; `source` is for messages.

    Raises:
        CheckpointError: see `check_fit`.
    """
    check_fit(model, weights, source)
    model.load_state_dict(dict(weights))


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Whether weights are those of exactly this network, which may be without memory; `source` is for messages.

    Raises:
        CheckpointError: names the first keys that are missing, unexpected or of another shape, and how many there are.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    misshapen = [
        f"{name} is {list(weights[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    problems = [f"{len(names)} {what}: {listed(names)}" for what, names in found.items() if names]
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


def _training_state(header: dict[str, Any], tensors: dict[str, Tensor]) -> TrainingState:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(TRAINING_PREFIX)}
    moments = {name.removeprefix(TRAINING_PREFIX): tensor for name, tensor in own.items()}
    return TrainingState(progress=header["training"], tensors=moments)
