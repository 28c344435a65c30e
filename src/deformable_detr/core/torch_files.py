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
from deformable_detr.core.short_text import one_line
from deformable_detr.core.stand_ins import STAND_INS, with_tensors

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
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number formats of weights: those that PyTorch converts into each other without a scale."""
# Tensors may share memory, as copies of a head do, but not without end: each gets memory of its own. And nothing that
# was trained can be packed twenty times smaller: what is, would fill the memory. Up to a gigabyte nobody minds.
_MOST_SHARED = 4
_MOST_PACKED = 20
_HARMLESS = 1 << 30


def read_torch_file(path: Path) -> Any:
    """Content of a file of `torch.save`: tensors, dicts, lists and plain values, and an `argparse.Namespace`.

    Arrays of NumPy in tables become tensors, and settings of some other software tables, see `stand_ins`.

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
        allowed: list[Any] = [(argparse.Namespace, "argparse.Namespace"), *STAND_INS]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return with_tensors(torch.load(path, map_location="cpu", weights_only=True, mmap=as_view))
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
        kind_of(path)
        with reading_safetensors(path):
            table: Any = load_file(path)
    else:
        table = inner_table(read_torch_file(path))
    if not isinstance(table, dict) or not all(isinstance(n, str) and _is_whole(t) for n, t in table.items()):
        raise CheckpointError(f"{path} holds no table of named tensors")
    check_memory(table, path)
    # Copied, because both kinds of files are read only when a tensor is used, and may be gone by then.
    return {name: tensor.detach().clone() for name, tensor in table.items()}


def check_memory(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that tensors need about as much memory as their file holds, before they are copied.

    A file may hold one tensor under thousands of names.

    Raises:
        CheckpointError: they would need many times more.
    """
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors.values()}
    asked = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if asked > max(_HARMLESS, _MOST_SHARED * sum(held.values())):
        raise CheckpointError(
            f"{path} holds {sum(held.values()):,} bytes of numbers under so many names that they would need {asked:,}"
        )


def of_unusual_type(name: str, tensor: Tensor) -> str:
    """Sentence on a tensor whose numbers are of no type that weights have."""
    usual = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
    return f"{one_line(name)} holds numbers of type {type_name(tensor)}; weights are of {usual}"


def check_numbers(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that all weights are numbers that can be computed with: of a usual format, and finite.

    Args:
        tensors: weights and buffers by name, on the CPU; integers and truth values are not looked at.
        source: where they are from, for messages.

    Raises:
        CheckpointError: names the first tensor that is not.
    """
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() and tensor.dtype not in FLOATS) or tensor.is_complex() or tensor.is_quantized:
            raise CheckpointError(f"{source}: {of_unusual_type(name, tensor)}")
    first = first_not_finite(tensors)
    if first is not None:
        raise CheckpointError(
            f"{source}: the weights are not finite, {one_line(first)} is the first; nothing can be found with them: "
            "the training that made them went wrong, so take an earlier checkpoint of it"
        )


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a number that is infinite, or none, in float32; None if there is no such tensor."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        return None
    # The smallest and the largest number tell, in a sixth of the time that a look at each number takes.
    ends = torch.stack([end.float() for tensor in floating.values() for end in tensor.detach().aminmax()])
    bad = (~ends.isfinite()).nonzero()
    return list(floating)[int(bad[0]) // 2] if len(bad) else None


def type_name(tensor: Tensor) -> str:
    """Name of the type of a tensor's numbers, such as "float16"."""
    return str(tensor.dtype).removeprefix("torch.")


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
    """Whether an object is a dense tensor of floating-point numbers of a usual format, as parameters are."""
    return isinstance(tensor, Tensor) and _is_whole(tensor) and tensor.dtype in FLOATS


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
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in packed)
    if unpacked > max(_HARMLESS, _MOST_PACKED * size):
        raise CheckpointError(f"{path} has {size:,} bytes, and would have {unpacked:,} when unpacked: no weights do")
    return not packed
