"""Reading and writing of checkpoints of the official code of DETR (`.pth`).

The official code is github.com/facebookresearch/detr at 29901c51.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.torch_files import check_memory, check_numbers
from deformable_detr.models import DETRConfig
from deformable_detr.weights.checkpoint import Checkpoint, from_header, sketch
from deformable_detr.weights.detr.keys import from_official_detr_keys, to_official_detr_keys
from deformable_detr.weights.detr.settings import detr_settings_of, to_detr_args
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
from deformable_detr.weights.shared_heads import CLASS_HEADS_REMOVED

_CLASS_HEAD = {"class_embed.weight", "class_embed.bias"}


def detr_from_document(path: Path, document: Any) -> Checkpoint:
    """Checkpoint from the content of an official file of DETR.

    Args:
        path: path of the file, for messages and for what the names of the published files tell.
        document: content of the file, as `read_torch_file` gives it.

    Raises:
        CheckpointError: it is of another model, or its settings and its tensors disagree.
    """
    official = official_tensors(path, document)
    if not _CLASS_HEAD & official.keys():
        raise CheckpointError(f"{path}: {CLASS_HEADS_REMOVED}")
    try:
        config, assumed = detr_settings_of(official, arguments_of(document), path.name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # The tensors must be exactly those of a model with these settings.
    expected = _official_shapes(path, config)
    if {name: tensor.shape for name, tensor in official.items()} != expected:
        raise CheckpointError(
            f"{path} is not an official DETR; of the {len(expected)} tensors of such a model, "
            f"{counted(unlike(official, expected))}"
        )
    # The description of the checkpoint, with every setting that had to be assumed.
    check_memory(official, path)
    check_numbers(official, path)
    values = assumed_values(path, config, assumed)
    weights = owned(from_official_detr_keys(official))
    header = description(path, document, config, source=f"official checkpoint {path.name}", assumed=values)
    return from_header(path, header, weights)


def write_official_detr(checkpoint: Checkpoint, path: Path) -> None:
    """Write a DETR for the official code (`main.py --resume FILE --eval`); it is read here, too.

    The file holds tensors and plain values only, so PyTorch loads it with `weights_only=True`. The official code uses
    channel i of the class head for category id i, and has 92 channels unless its source is changed.

    Raises:
        CheckpointError: the official code has no such model; the message names the setting.
        OutputError: the file cannot be written.
    """
    model = checkpoint.model
    assert isinstance(model, DETRConfig)
    args = arguments_for(path, model, to_detr_args)
    warn_of_what_changes(checkpoint, path, DETRConfig())
    write_document(checkpoint, to_official_detr_keys(owned(checkpoint.weights)), args, path)


def _official_shapes(path: Path, config: DETRConfig) -> Mapping[str, torch.Size]:
    """Names and shapes of the tensors in an official file of this model."""
    own = sketch(config, path).state_dict()
    return {name: tensor.shape for name, tensor in to_official_detr_keys(own).items()}
