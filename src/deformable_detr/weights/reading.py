"""Any published weights, whatever their layout, as a Checkpoint."""

from pathlib import Path

from deformable_detr import checkpoint
from deformable_detr.checkpoint import Checkpoint


def read(source: str | Path) -> Checkpoint:
    """The weights in a file, with what gives them meaning.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint.
    """
    return checkpoint.load(Path(source))
