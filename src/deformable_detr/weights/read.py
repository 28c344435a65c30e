"""Reading of checkpoints in every layout from a path, an address or a name on huggingface.co."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.core.torch_files import read_torch_file
from deformable_detr.weights import checkpoint
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.detr.folder import read_detr_folder
from deformable_detr.weights.detr.reader import detr_from_document
from deformable_detr.weights.dino.reader import dino_from_document
from deformable_detr.weights.huggingface.reader import read_transformers
from deformable_detr.weights.locate import locate
from deformable_detr.weights.official.document import parameter_names
from deformable_detr.weights.official.reader import from_document
from deformable_detr.weights.recognise import (
    PublishedModel,
    Recognised,
    published_model,
    recognise,
    transformers_type,
)

# Files of the published codes, by the model that their parameter names tell.
_OFFICIAL: dict[PublishedModel, Callable[[Path, Any], Checkpoint]] = {
    "DETR": detr_from_document,
    "DINO": dino_from_document,
    "Deformable DETR": from_document,
}
# Folders of transformers, by "model_type" in their config.json.
_TRANSFORMERS: dict[str, Callable[[Path], Checkpoint]] = {
    "deformable_detr": read_transformers,
    "detr": read_detr_folder,
}


def read(source: str | Path, *, sha256: str | None = None, reporter: Reporter | None = None) -> Checkpoint:
    """Checkpoint from a file, a folder, an https address or a name on huggingface.co.

    Args:
        source: path of a .safetensors file of this package, of an official .pth file, of a run folder or of a folder
            of transformers; or an https address of such a file; or a name on huggingface.co (owner/name,
            owner/name@revision).
        sha256: SHA-256 that the weights file must have, in hexadecimal digits.
        reporter: receives the progress of a download and the name of the file that is taken from a folder.

    Raises:
        CheckpointError: the source is missing, cannot be downloaded, is damaged, or is no checkpoint of a known model.
        OutputError: a download cannot be stored.
    """
    path = locate(source, sha256=sha256, reporter=reporter).path
    found = recognise(path)
    if found.path != path:
        (reporter or Silence()).say(f"weights: {found.path}")
    return read_recognised(found)


def read_recognised(found: Recognised) -> Checkpoint:
    """Checkpoint from a file or folder of known layout.

    Args:
        found: result of `recognise`.

    Raises:
        CheckpointError: the file is damaged, or is not of this layout after all.
    """
    if found.layout == "ours":
        return checkpoint.load(found.path)
    if found.layout == "official":
        document = read_torch_file(found.path)
        # Where the names are those of no model, the reader of Deformable DETR says what else it is.
        model = published_model(parameter_names(document)) or "Deformable DETR"
        return _OFFICIAL[model](found.path, document)
    return _TRANSFORMERS.get(transformers_type(found.path), read_transformers)(found.path)
