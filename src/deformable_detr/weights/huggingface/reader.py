"""Reading and writing of folders that hold transformers' `DeformableDetrForObjectDetection`."""

import re
from pathlib import Path

from deformable_detr.weights.checkpoint import Checkpoint, deformable_config
from deformable_detr.weights.huggingface.folder import FolderFormat, read_folder, write_folder
from deformable_detr.weights.huggingface.keys import from_transformers_keys, to_transformers_keys
from deformable_detr.weights.huggingface.model_config import model_from, model_settings
from deformable_detr.weights.huggingface.names import file_key
from deformable_detr.weights.shared_heads import is_class_head

_FORMAT = FolderFormat(model_from, from_transformers_keys, is_class_head)
_COPY = re.compile(r"(class|bbox)_embed\.[1-9]")


def read_transformers(folder: Path) -> Checkpoint:
    """Checkpoint from a folder of transformers that holds a Deformable DETR, see `read_folder`.

    Raises:
        CheckpointError: files are missing or damaged, are of another model, do not fit each other, or describe a model
            that this package cannot build.
    """
    return read_folder(folder, _FORMAT)


def write_transformers(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a Deformable DETR as a folder of transformers, see `write_folder`.

    Args:
        checkpoint: the checkpoint to write; its training state is left out.
        folder: a folder that does not exist or is empty.

    Raises:
        CheckpointError: transformers has no model that computes the same.
        OutputError: the folder is not empty, or cannot be written.
    """
    model = deformable_config(checkpoint, "transformers")
    named = to_transformers_keys(checkpoint.weights, model)
    weights = {
        file_key(name): tensor
        for name, tensor in named.items()
        # The one head of the base model is written once, as transformers does. Of the other variants all aliases are
        # written, because versions differ in which of them they read.
        if model.variant != "base" or not _COPY.match(name)
    }
    settings = model_settings(model, checkpoint.classes, checkpoint.category_ids)
    write_folder(
        checkpoint,
        folder,
        title="Deformable DETR",
        processor="DeformableDetrImageProcessor",
        settings=settings,
        weights=weights,
    )
