"""Stand-ins for classes of other software in files of `torch.save`: plain data, without any code of that software.

A file of weights may hold settings and logs as objects of the program that wrote it, and weights as arrays of NumPy.
Whoever reads it here gets tables and tensors instead. Nothing that a file says is called.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
_ORDERS = ("<", "=", "|")
_DEEPEST = 3


class ForeignTable:
    """Stand-in for a class of settings or logs: an `OrderedDict`, with an object's own attributes in its `__dict__`."""

    def __new__(cls, *_: object) -> Any:
        """Empty table; what the file holds of the object is put into it."""
        return OrderedDict()


class ForeignType:
    """Stand-in for a number type of NumPy."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.dtype = _TYPES.get(name) if isinstance(name, str) else None

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; numbers in the order of other machines cannot be read."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in _ORDERS:
            self.dtype = None


class ForeignArray:
    """Stand-in for an array of NumPy; `with_tensors` makes tensors of those of numbers."""

    def __init__(self, *_: object) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        """Take shape, type and content.

        Raises:
            ValueError: they do not belong together.
        """
        _, shape, kind, columns_first, content = state
        if not isinstance(kind, ForeignType) or kind.dtype is None or not isinstance(content, bytes):
            return
        sizes = [size for size in shape if isinstance(size, int) and size >= 0]
        if len(sizes) != len(shape) or math.prod(sizes) * kind.dtype.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes cannot be an array of shape {shape}")
        flat = torch.frombuffer(bytearray(content), dtype=kind.dtype) if content else torch.zeros(0, dtype=kind.dtype)
        self.tensor = flat.view(sizes[::-1]).permute(*range(len(sizes))[::-1]) if columns_first else flat.view(sizes)


def _nothing(*_: object) -> None:
    """Stand-in for a function: it is not called, and gives nothing."""


def _no_bytes(*_: object) -> bytes:
    """Stand-in for `bytes`, which files call for the content of an empty array alone."""
    return b""


_TABLES = (
    "util.slconfig.SLConfig",
    "util.slconfig.ConfigDict",
    "addict.addict.Dict",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
STAND_INS: list[Any] = [
    *((ForeignTable, name) for name in _TABLES),
    (_nothing, "builtins.getattr"),  # names a method of those logs
    (_no_bytes, "builtins.bytes"),
    (ForeignArray, "numpy.ndarray"),
    (ForeignType, "numpy.dtype"),
    *((ForeignArray, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_nothing, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Stand-ins, each with the name of the class or function in a file, for `torch.serialization.safe_globals`."""


def with_tensors(document: Any) -> Any:
    """Document with tensors in place of arrays in its tables, which are changed; other arrays stay as they are."""
    outermost = {"document": document}
    # Level by level, and each table once, however often a file refers to it.
    level: list[dict[Any, Any]] = [outermost]
    for _ in range(_DEEPEST + 1):
        inner: dict[int, dict[Any, Any]] = {}
        for table in level:
            for name, value in table.items():
                if isinstance(value, ForeignArray) and value.tensor is not None:
                    table[name] = value.tensor
                elif isinstance(value, dict):
                    inner[id(value)] = value
        level = list(inner.values())
    return outermost["document"]
