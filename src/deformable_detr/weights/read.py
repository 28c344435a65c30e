"""Reading of checkpoints in every layout from a path, an address or a name on huggingface.co."""

from pathlib import Path

from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.core.torch_files import read_torch_file
from deformable_detr.weights import checkpoint
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.dino.reader import is_dino, read_dino
from deformable_detr.weights.huggingface.reader import read_transformers
from deformable_detr.weights.locate import locate
from deformable_detr.weights.official.reader import read_official
from deformable_detr.weights.recognise import Recognised, recognise

# Models besides Deformable DETR that are published as files of torch.save: how they are known, and what reads them.
_OTHER_MODELS = ((is_dino, read_dino),)


def read(source: str | Path, *, sha256: str | None = None, reporter: Reporter | None = None) -> Checkpoint:
    """Checkpoint from a file, a folder, an https address or a name on huggingface.co.

    Args:
        source: path of a .safetensors file of this package, of an official .pth file, of a run folder or of a folder
            of transformers; or an https address of such a file; or a name on huggingface.co (owner/name,
            owner/name@revision).
        sha256: SHA-256 that the weights file must have, in hexadecimal digits.
        reporter: receives the progress of a download and the name of the file that is taken from a folder.

    Raises:
        CheckpointError: the source is missing, cannot be downloaded, is damaged, or is no checkpoint of this model.
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
        reader = next((read for holds, read in _OTHER_MODELS if holds(document)), read_official)
        return reader(found.path, document)
    return read_transformers(found.path)
