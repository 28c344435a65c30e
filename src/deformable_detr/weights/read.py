"""Any published weights, whatever their layout and wherever they are, as a Checkpoint."""

from pathlib import Path

from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.weights import checkpoint
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.huggingface.reader import read_transformers
from deformable_detr.weights.locate import locate
from deformable_detr.weights.official.reader import read_official
from deformable_detr.weights.recognise import Recognised, recognise


def read(source: str | Path, *, sha256: str | None = None, reporter: Reporter | None = None) -> Checkpoint:
    """The weights, with what gives them meaning.

    Args:
        source: a file of ours, an official .pth, a folder of transformers or a run's; as a path, an https address or
            a name on huggingface.co (owner/name, owner/name@revision).
        sha256: what the weights file must hash to, in hex.
        reporter: told how far a download is, and which file of a folder is taken.

    Raises:
        CheckpointError: missing, not to be fetched, damaged, or not a checkpoint of this model.
        OutputError: a download cannot be kept.
    """
    path = locate(source, sha256=sha256, reporter=reporter).path
    found = recognise(path)
    if found.path != path:
        (reporter or Silence()).say(f"weights: {found.path}")
    return read_recognised(found)


def read_recognised(found: Recognised) -> Checkpoint:
    """What `recognise` found, by the reader of its layout.

    Raises:
        CheckpointError: damaged, or not what it looks like.
    """
    if found.layout == "ours":
        return checkpoint.load(found.path)
    if found.layout == "official":
        return read_official(found.path)
    return read_transformers(found.path)
