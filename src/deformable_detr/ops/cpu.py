"""CPU backend: loads the compiled kernel, chooses the copy for this CPU, and calls it on PyTorch's threads.

The library is plain C without a link to PyTorch (`csrc/`), so one file serves every version of Python and PyTorch. It
works on PyTorch's threads: it gets the address of `torch_parallel_for`, a part of PyTorch's stable interface.
"""

import ctypes
import os
import platform
import struct
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deformable_detr.core.types import SpatialShapes
from deformable_detr.ops import compile_flags as build
from deformable_detr.ops.reference import to_accumulation_dtype

COST = "deformable attention runs on grid_sample, some 30 times slower on the CPU"
"""Cost of a missing kernel, in words."""
REMEDY = "Install gcc or clang and reinstall deformable-detr"

_KINDS = {torch.float32: 0, torch.float64: 0, torch.float16: 1, torch.bfloat16: 2}
# Names of the second and third input in the two forms.
_GIVEN, _PROJECTED = ("locations", "weights"), ("reference", "projection")


class _Tensors(NamedTuple):
    """Tensors that a call reads beside the values, then those it fills, in the order of `msda_call` in csrc/msda.h."""

    locations: Tensor | None = None
    weights: Tensor | None = None
    reference: Tensor | None = None
    projection: Tensor | None = None
    grad: Tensor | None = None
    output: Tensor | None = None
    grad_value: Tensor | None = None
    grad_locations: Tensor | None = None
    grad_weights: Tensor | None = None
    grad_reference: Tensor | None = None
    grad_projection: Tensor | None = None

    @property
    def filled(self) -> tuple[Tensor | None, ...]:
        return self[5:]


# `msda_call`: nine numbers, then the addresses of shapes, points, values, tensors and thread pool, eight bytes each.
# Packing takes a third of the time of filling a ctypes structure.
_pack = struct.Struct(f"{9 + 3 + len(_Tensors._fields) + 1}q").pack


class Kernel(NamedTuple):
    """Compiled copy of the kernel that is in use."""

    path: Path
    """Compiled library."""
    instructions: str
    """Instruction set of the copy: avx512, avx2 or baseline."""
    functions: dict[tuple[str, bool], Any]
    """Entry points of the copy, by ("forward" or "backward", whether for float64)."""
    parallel_for: int
    """Address of `torch_parallel_for`; 0 if this PyTorch has none, and the kernel works on one thread."""
    process: int
    """Id of the process that loaded it. A forked child has none of the pool's threads, and works on one."""


def missing() -> str | None:
    """Reason why there is no compiled kernel, or None if there is one."""
    return _reason() if torch.compiler.is_compiling() else _find()[1]


def _reason() -> str | None:
    return _find()[1]


# This mark is all that torch.compiler.assume_constant_result sets, but it would import the compiler, which takes
# seconds.
_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel() -> Kernel:
    """Kernel in use; to be called only where `missing` is None."""
    found, reason = _find()
    assert found is not None, reason
    return found


def why_not(value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int) -> str | None:
    """Reason why the kernel cannot run on such tensors, or None.

    It needs the compiled library, a CPU tensor of a floating type, and maps whose bytes 31 bits can count.
    """
    if value.device.type != "cpu":
        return f"it needs a CPU tensor, value is on {value.device.type}"
    if value.dtype not in _KINDS:
        return f"it has no code for {value.dtype}; it has for {', '.join(str(dtype) for dtype in _KINDS)}"
    size = value.shape[1] * value.shape[2] * value.shape[3] * value.element_size()
    if size >= 2**31 and value.dtype != torch.float64:
        return f"one image has {size} bytes of values, more than 2^31 bytes, which its offsets can count"
    return missing()


@lru_cache(maxsize=1)
def _find() -> tuple[Kernel | None, str | None]:
    path = Path(__file__).with_name(build.LIBRARY)
    if not path.is_file():
        reason = f"{path.name} was not built: no C compiler was found when deformable-detr was installed"
    else:
        try:
            return load_kernel(path), None
        except OSError as error:
            reason = f"{path} cannot be loaded: {error}"
    warnings.warn(f"{COST}: {reason}. {REMEDY}; `ddetr doctor` shows what is used", stacklevel=2)
    return None, reason


def load_kernel(path: Path, instructions: str | None = None) -> Kernel:
    """Kernel of the compiled library at a path, in the best copy that this CPU can run or in the one that is named.

    Raises:
        OSError: the library cannot be loaded, or this CPU cannot run the named copy.
    """
    library = ctypes.CDLL(str(path))
    able = [name for name, can_run in copies(library).items() if can_run]
    if instructions is not None and instructions not in able:
        raise OSError(f"no copy for {instructions} that this CPU ({platform.machine()}) can run: {able}")
    chosen = instructions or able[0]
    functions = {
        (what, double): library[f"msda_{what}_{chosen}{'_double' if double else ''}"]
        for what in ("forward", "backward")
        for double in (False, True)
    }
    for function in functions.values():
        function.argtypes = [ctypes.c_char_p]
    return Kernel(path, chosen, functions, _thread_pool(), os.getpid())


def copies(library: ctypes.CDLL) -> dict[str, bool]:
    """Copies that a library holds, best first, each with whether this CPU can run it."""
    return {
        name: bool(library.msda_can_run(name.encode()))
        for name in build.INSTRUCTIONS
        if hasattr(library, f"msda_forward_{name}")
    }


def _thread_pool() -> int:
    folder = Path(torch.__file__).with_name("lib")
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).is_file():
            function = getattr(ctypes.CDLL(str(folder / name)), "torch_parallel_for", None)
            return ctypes.cast(function, ctypes.c_void_p).value or 0 if function else 0
    return 0


def sample(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
    """Weighted sums of bilinear samples at given locations; the arguments are those of `reference.sample`."""
    return _forward(_GIVEN, value, locations, weights, shapes, points)


def attend(
    value: Tensor, reference: Tensor, projection: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> Tensor:
    """Weighted sums of bilinear samples for references and a projection; see `reference.locations_and_weights`."""
    return _forward(_PROJECTED, value, reference, projection, shapes, points)


def sample_backward(
    grad: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; empty where not wanted."""
    return _backward(_GIVEN, grad, (value, locations, weights), shapes, points, wanted, wanted)


def attend_backward(
    grad: Tensor,
    value: Tensor,
    reference: Tensor,
    projection: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, reference and projection; empty where not wanted."""
    # The gradient of the reference is a sum over that of the projection, which is therefore computed for both.
    computed = (wanted[0], wanted[1], wanted[1] or wanted[2])
    return _backward(_PROJECTED, grad, (value, reference, projection), shapes, points, wanted, computed)


def _forward(
    names: tuple[str, str],
    value: Tensor,
    second: Tensor,
    third: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
) -> Tensor:
    value, second, third = _exact(value, second, third)
    output = value.new_empty(value.shape[0], second.shape[1], value.shape[2], value.shape[3])
    inputs = dict(zip(names, (second, third), strict=True))
    _call("forward", value, second.shape[1], shapes, points, _Tensors(**inputs, output=output))
    return output


def _backward(
    names: tuple[str, str],
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
    computed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    value, second, third = exact = _exact(*inputs)
    # The kernel computes gradients in its own types; they are converted to those of the inputs at the end.
    found = [torch.empty_like(tensor) if compute else None for tensor, compute in zip(exact, computed, strict=True)]
    gradients = {f"grad_{name}": tensor for name, tensor in zip(("value", *names), found, strict=True)}
    others = dict(zip(names, (second, third), strict=True))
    _call("backward", value, second.shape[1], shapes, points, _Tensors(grad=grad.contiguous(), **others, **gradients))
    one, two, three = (
        tensor.to(given.dtype) if want and tensor is not None else given.new_empty(0)
        for tensor, given, want in zip(found, inputs, wanted, strict=True)
    )
    return one, two, three


def _exact(value: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    second, third = to_accumulation_dtype(value, second, third)
    return value.contiguous(), second.contiguous(), third.contiguous()


@lru_cache(maxsize=256)
def _integers(numbers: tuple[int, ...]) -> tuple[Any, int]:
    """Array of integers for the kernel, and its address."""
    array = (ctypes.c_int64 * len(numbers))(*numbers)
    return array, ctypes.addressof(array)


def _call(
    what: str, value: Tensor, queries: int, shapes: Sequence[int], points: Sequence[int], tensors: _Tensors
) -> None:
    if not (value.numel() and queries and sum(points)):
        # The kernel expects at least one value, query and sample. Without them every result is zero or empty.
        for tensor in tensors.filled:
            if tensor is not None:
                tensor.zero_()
        return
    use = kernel()
    of_shapes, shapes_address = _integers(tuple(shapes))
    of_points, points_address = _integers(tuple(points))
    call = _pack(
        *value.shape,
        queries,
        len(points),
        _KINDS[value.dtype],
        0 if tensors.reference is None else tensors.reference.shape[3],
        torch.get_num_threads(),
        shapes_address,
        points_address,
        value.data_ptr(),
        *[0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        use.parallel_for if os.getpid() == use.process else 0,
    )
    # The foreign call releases Python's lock. `value`, `tensors` and the two arrays keep the memory alive meanwhile.
    if use.functions[what, value.dtype == torch.float64](call):
        raise MemoryError("no memory for the scratch space of deformable attention")
    del of_shapes, of_points
