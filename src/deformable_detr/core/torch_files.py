"""Files of tensors: of `torch.save`, read without running any code that is in them, and of safetensors."""

import argparse
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deformable_detr.core.errors import CheckpointError, first_line
from deformable_detr.core.file_kinds import kind_of

# All that torch's restricted reader raises on a damaged file; it has run no code from the file.
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


def read_torch_file(path: Path) -> Any:
    """Content of a file of `torch.save`: tensors, dicts, lists and plain values, and an `argparse.Namespace`.

    No other objects are made, so no code in the file runs. Tensors are on the CPU. Where the format allows, they are
    views of the file, which is read when they are used: copy what you keep.

    Raises:
        CheckpointError: no such file, cut off, of another kind (the message says which, as far as it is known), or
            with something in it that would have to run.
    """
    kind = kind_of(path)
    if kind.format == "safetensors":
        raise CheckpointError(f"{path} {kind.description}, whatever its name says; let it end in .safetensors")
    if not kind.is_torch:
        raise CheckpointError(f"{path} {kind.description}")
    if path.suffix == ".safetensors":  # torch.load goes by the name and would take it for safetensors
        raise CheckpointError(f"{path} {kind.description}, whatever its name says; let it end in .pth")
    try:
        as_view = kind.format == "torch archive" and _is_stored_plainly(path)
        # The name beside the class keeps this entry apart from one that the calling program may have made.
        allowed: list[Any] = [(argparse.Namespace, "argparse.Namespace")]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=as_view)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except _BROKEN as error:
        # PyTorch's own message is not shown: most of it is advice on running code from the file.
        refused = _REFUSED.search(str(error))
        if refused is not None:
            raise CheckpointError(
                f"{path} holds more than tensors and settings: reading it would run {refused[1]}, and did not; "
                "ask whoever made it for a file of the tensors alone"
            ) from error
        raise CheckpointError(
            f"{path} is not a whole file of PyTorch weights; it is cut off, damaged or unusual"
        ) from error


def inner_table(document: Any) -> Any:
    """Model's tensors in the file of a training run; the whole document where there is no such entry."""
    for entry in ("model", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(entry), dict):
            return document[entry]
    return document


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file of safetensors or `torch.save`, on the CPU; they stay when the file goes.

    Raises:
        CheckpointError: no such file, damaged, of another kind, or it holds something else.
    """
    if path.suffix == ".safetensors":
        with reading_safetensors(path):
            table: Any = load_file(path)
    else:
        table = inner_table(read_torch_file(path))
    if not isinstance(table, dict) or not all(isinstance(n, str) and _is_whole(t) for n, t in table.items()):
        raise CheckpointError(f"{path} holds no table of named tensors")
    # Copied, because both kinds of files are read only when a tensor is used, and may be gone by then.
    return {name: tensor.detach().clone() for name, tensor in table.items()}


@contextmanager
def reading_safetensors(path: Path) -> Iterator[None]:
    """Context in which an error of safetensors becomes a `CheckpointError` that names the file."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({first_line(error)}); it may be cut off or of another kind"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written; also for a full disk, where safetensors raises an error of its own.
    """
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def is_plain(tensor: object) -> bool:
    """Whether an object is a dense tensor of floating-point numbers, as parameters are."""
    return isinstance(tensor, Tensor) and _is_whole(tensor) and tensor.is_floating_point()


def _is_whole(tensor: object) -> bool:
    """Whether an object is a dense tensor with all its numbers in memory.

    A file may also describe tensors that are sparse, have no memory, or are larger than the memory they lie in.
    """
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _is_stored_plainly(path: Path) -> bool:
    """Whether nothing in the archive is compressed, so that tensors can be used where they lie."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, not weights; save the state_dict of its model instead")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive without PyTorch weights; if they are in it, unpack it first")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
