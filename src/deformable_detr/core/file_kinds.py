"""Kinds of files that are given as weights, told apart by their first bytes; names say little."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from deformable_detr.core.errors import CheckpointError

FileFormat = Literal["torch archive", "torch pickle", "safetensors", "other"]
"""What `torch.save` writes now and wrote before PyTorch 1.6, a file of safetensors, and all that is not read here."""

_START = 1024
# Of an archive with files in it, and of an empty one. Four bytes: a safetensors file starts with the length of its
# header, and one of 19280 bytes reads PK.
_ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")
# A pickled number that torch.save wrote first of all before 1.6, the default then.
_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OTHERS = (
    (rb"\Z", "is empty; the download or copy that made it did not finish"),
    (rb"\x80", "is a pickle, but not one of PyTorch's; such files can only be read by running them"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{12}|RIFF.{4}WEBP|II\*\0|MM\0\*", "is a picture; weights come first, then images"),
    (rb"\x89HDF\r\n", "is an HDF5 file, as Keras writes them; only PyTorch's and safetensors are read"),
    (rb"GGUF", "is a GGUF file, for language models"),
    (rb"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (rb"version https://git-lfs", "only stands for a file that Git LFS keeps elsewhere; run git lfs pull"),
    (rb"\s*<", "is a web page, not weights; Google Drive sends one in place of a large file until you confirm there"),
    (rb"\s*\{\s*\"", "is JSON, not weights"),
)
# The version of the format as a number, then who made it as a text, or the graph.
_ONNX = re.compile(rb"\x08[\x03-\x20](\x12|\x3a|\x42)", re.DOTALL)


class FileKind(NamedTuple):
    """Format of a file, and in words what it is."""

    format: FileFormat
    description: str
    """To follow the file's name in a sentence; of a file of another format a way out, too, where there is one."""

    @property
    def is_torch(self) -> bool:
        """Whether `torch.save` wrote it. Every zip archive counts: which of them hold weights, only reading tells."""
        return self.format.startswith("torch")


def kind_of(path: Path) -> FileKind:
    """Kind of a file, by its first bytes; where they say nothing, by its name.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint file: {path}")
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if start.startswith(_ARCHIVE):
        return FileKind("torch archive", "is a file of PyTorch's own kind")
    if start.startswith(_BEFORE_1_6):
        return FileKind("torch pickle", "is a file of PyTorch's own kind")
    if start[8:9] == b"{":
        return FileKind("safetensors", "is a safetensors file")
    return FileKind("other", _other(start, path.suffix.lower()))


def _other(start: bytes, suffix: str) -> str:
    for pattern, description in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return description
    if suffix == ".onnx" or _ONNX.match(start):
        return "is an ONNX model, which onnxruntime runs; training and evaluation need weights"
    if suffix == ".safetensors":
        return "is not a whole safetensors file; it may be cut off or of another kind"
    if b"\0" not in start:
        return "is a text, not weights"
    return "is not a file of PyTorch weights"
