"""Files of `torch.save`, read without running anything that is in them."""

import argparse
import re
import struct
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from deformable_detr.core.errors import CheckpointError

# Of an archive with files in it, and of an empty one. Four bytes: a safetensors file starts with the length of its
# header, and one of 19280 bytes reads PK.
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# A pickled number that torch.save wrote first of all before 1.6, the default then.
_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = b"\x80"
_LFS = b"version https://git-lfs"
_START = 1024
# All that torch's restricted reader raises on nonsense; none of it has run anything.
_BROKEN = (
    UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


def is_torch_file(path: Path) -> bool:
    """Whether a file is one that `torch.save` wrote, judged by its first bytes alone; False if there is none.

    Every zip archive counts: which of them hold weights, and whose, only reading tells.
    """
    try:
        start = _start_of(path)
    except OSError:
        return False
    return start.startswith((*_ZIP, _BEFORE_1_6))


def read_torch_file(path: Path) -> Any:
    """What the file holds: tensors in dicts, lists and plain values, and an `argparse.Namespace` where it has one.

    Nothing else is made, so nothing in the file runs. Tensors are on the CPU; where the format allows they are views of
    the file that are read when used, so copy what you keep.

    Raises:
        CheckpointError: no such file, cut off, of another kind (the message says which, as far as it is known), or
            with something in it that would have to run.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint file: {path}")
    try:
        start = _start_of(path)
        if not start.startswith((*_ZIP, _BEFORE_1_6)):
            raise CheckpointError(f"{path} {_kind(start)}")
        if path.suffix == ".safetensors":  # torch goes by the name there
            raise CheckpointError(f"{path} is a file of PyTorch's own kind, whatever its name says; let it end in .pth")
        as_view = start.startswith(_ZIP) and _is_stored_plainly(path)
        # With its name beside it torch keeps this entry apart from one that the calling program made.
        allowed: list[Any] = [(argparse.Namespace, "argparse.Namespace")]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=as_view)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except _BROKEN as error:
        # What torch says at length is advice on running code from the file.
        refused = _REFUSED.search(str(error))
        if refused is not None:
            raise CheckpointError(
                f"{path} holds more than tensors and settings: reading it would run {refused[1]}, and did not; "
                "ask whoever made it for a file of the tensors alone"
            ) from error
        raise CheckpointError(
            f"{path} is not a whole file of PyTorch weights; it is cut off, damaged or unusual"
        ) from error


def is_plain(tensor: object) -> bool:
    """Whether it is a tensor of floating-point numbers that are all there, as parameters are.

    A file may also describe tensors that are sparse, of no memory at all, or larger than what they are made from.
    """
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START)


def _kind(start: bytes) -> str:
    """What a file is that does not start as one of PyTorch's."""
    if not start:
        return "is empty; the download or copy that made it did not finish"
    if start[8:9] == b"{":
        return "is a safetensors file, whatever its name says; let it end in .safetensors"
    if start.startswith(_PICKLE):
        return "is a pickle, but not one of PyTorch's; such files can only be read by running them"
    if start.startswith(_LFS):
        return "only stands for a file that Git LFS keeps elsewhere; run git lfs pull"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not weights; Google Drive sends one in place of a large file until you confirm there"
    if b"\0" not in start:
        return "is a text, not weights"
    return "is not a file of PyTorch weights"


def _is_stored_plainly(path: Path) -> bool:
    """Whether all in the archive can be used where it lies: nothing is compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, not weights; save the state_dict of its model instead")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive without PyTorch weights; if they are in it, unpack it first")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
