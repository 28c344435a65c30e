"""Kinds of files that users give as weights, told apart by their first bytes; names say little."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.reading import open_file

FileFormat = Literal["torch archive", "torch pickle", "safetensors", "other"]
"""File format: of `torch.save` now, of `torch.save` before PyTorch 1.6, of safetensors, or one that is not read."""

_START = 1024
# First bytes of a zip archive with files in it, and of an empty one. Two bytes would not do: a safetensors file starts
# with the length of its header, and the length 19280 reads PK.
_ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")
# The pickled number that starts every file of torch.save before PyTorch 1.6.
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
# An ONNX file starts with the version of the format; the name of its producer or the graph follows.
_ONNX = re.compile(rb"\x08[\x03-\x20](\x12|\x3a|\x42)", re.DOTALL)


class FileKind(NamedTuple):
    """Format of a file, with a description in words."""

    format: FileFormat
    description: str
    """Words that follow the file's name in a sentence; for a format that is not read they may name a way out."""

    @property
    def is_torch(self) -> bool:
        """Whether `torch.save` wrote it. Every zip archive counts: only reading tells which of them hold weights."""
        return self.format.startswith("torch")


def kind_of(path: Path) -> FileKind:
    """Kind of a file by its first bytes; where they say nothing, by its name.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        with open_file(path) as file:
            start = file.read(_START)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"no such checkpoint file: {path}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot read {path}: {reason}") from error
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
