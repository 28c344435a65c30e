"""Reading and writing of folders that hold transformers' `DetrForObjectDetection`, such as facebook/detr-resnet-50."""

from pathlib import Path

from deformable_detr.models import DETRConfig
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.detr.transformers_config import detr_from, detr_settings
from deformable_detr.weights.detr.transformers_keys import (
    from_transformers_detr_keys,
    to_transformers_detr_keys,
)
from deformable_detr.weights.huggingface.folder import FolderFormat, read_folder, write_folder
from deformable_detr.weights.huggingface.names import file_key


def read_detr_folder(folder: Path) -> Checkpoint:
    """Checkpoint from a folder of transformers that holds a DETR, see `read_folder`.

    Raises:
        CheckpointError: files are missing or damaged, are of another model, do not fit each other, or describe a model
            that this package cannot build.
    """
    return read_folder(folder, _FORMAT)


def write_detr_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a DETR as a folder of transformers, see `write_folder`.

    Args:
        checkpoint: the checkpoint to write; its training state is left out.
        folder: a folder that does not exist or is empty.

    Raises:
        CheckpointError: transformers has no model that computes the same.
        OutputError: the folder is not empty, or cannot be written.
    """
    model = checkpoint.model
    assert isinstance(model, DETRConfig)
    settings = detr_settings(model, checkpoint.classes, checkpoint.category_ids)
    named = to_transformers_detr_keys(checkpoint.weights, model)
    weights = {file_key(name): tensor for name, tensor in named.items()}
    write_folder(checkpoint, folder, title="DETR", processor="DetrImageProcessor", settings=settings, weights=weights)


def _is_class_head(name: str) -> bool:
    return name.startswith("class_labels_classifier.")


_FORMAT = FolderFormat(detr_from, from_transformers_detr_keys, _is_class_head)
