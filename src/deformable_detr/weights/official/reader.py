"""Reading and writing of checkpoints of the official code of Deformable DETR (`.pth`).

The official code is github.com/fundamentalvision/Deformable-DETR at 11169a60.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.torch_files import check_memory, check_numbers, read_torch_file
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.checkpoint import Checkpoint, deformable_config, from_header, sketch
from deformable_detr.weights.official.document import (
    arguments_for,
    arguments_of,
    assumed_values,
    counted,
    description,
    official_tensors,
    owned,
    unlike,
    warn_of_what_changes,
    write_document,
)
from deformable_detr.weights.official.keys import from_official_keys, to_official_keys
from deformable_detr.weights.official.settings import has_size_tensors, most_like, settings_of, to_args
from deformable_detr.weights.recognise import foreign_model
from deformable_detr.weights.shared_heads import CLASS_HEADS_REMOVED, is_class_head


def read_official(path: Path) -> Checkpoint:
    """Checkpoint from an official file; no code in the file is run.

    If another file of `torch.save` is given, the error says what it is, as far as that is known.

    Raises:
        CheckpointError: the file does not exist, is damaged, is of another kind or another model, or its settings and
            its tensors disagree.
    """
    return from_document(path, read_torch_file(path))


def from_document(path: Path, document: Any) -> Checkpoint:
    """Checkpoint from the content of an official file, see `read_official`.

    Args:
        path: path of the file, for messages.
        document: content of the file.

    Raises:
        CheckpointError: it is of another model, or its settings and its tensors disagree.
    """
    # Tensors and settings of the file.
    official = official_tensors(path, document)
    args = arguments_of(document)
    if not has_size_tensors(official):
        raise CheckpointError(_not_this_model(path, official, _names_and_shapes(path, most_like(official, args))))
    try:
        config, assumed = settings_of(official, args)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # The tensors must be exactly those of a model with these settings.
    expected = _names_and_shapes(path, config)
    if {name: tensor.shape for name, tensor in official.items()} != expected:
        raise CheckpointError(_not_this_model(path, official, expected))
    # The description of the checkpoint, with every setting that had to be assumed.
    check_memory(official, path)
    check_numbers(official, path)
    weights = _renamed(path, official, config)
    values = assumed_values(path, config, assumed)
    header = description(path, document, config, source=f"official checkpoint {path.name}", assumed=values)
    return from_header(path, header, weights)


def write_official(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint for the official code (`main.py --resume FILE --eval`); `read_official` reads it, too.

    The file holds tensors and plain values only, so PyTorch loads it with `weights_only=True`. The official code uses
    channel i of the class heads for category id i, and has 91 channels unless its source is changed.

    Raises:
        CheckpointError: the official code has no such model; the message names the setting.
        OutputError: the file cannot be written.
    """
    model = deformable_config(checkpoint, "the official code")
    args = arguments_for(path, model, to_args)
    warn_of_what_changes(checkpoint, path, DeformableDETRConfig())
    write_document(checkpoint, to_official_keys(owned(checkpoint.weights), model), args, path)


def _names_and_shapes(path: Path, config: DeformableDETRConfig) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in an official file of this model."""
    own = sketch(config, path).state_dict()
    return {name: tensor.shape for name, tensor in to_official_keys(own, config).items()}


def _not_this_model(path: Path, official: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str:
    found = unlike(official, expected)
    if all(is_class_head(name) for name in found["missing"]) and not found["unexpected"] + found["of another shape"]:
        return f"{path}: {CLASS_HEADS_REMOVED}"
    kind = foreign_model(official)
    looks = f"; it looks like {kind}" if kind else ""
    return (
        f"{path} is not an official Deformable DETR{looks}; "
        f"of the {len(expected)} tensors of such a model, {counted(found)}"
    )


def _renamed(path: Path, official: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    try:
        weights = from_official_keys(official, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return owned(weights)
