"""Roofline of a case: bytes that it must move at least, bytes that it gathers, and copy speed of the machine."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.ops.problem import Form, Problem, pixel_coordinates

_COPY_MIB = {"cpu": 256, "cuda": 1024}
_COPIES = 7


class Traffic(NamedTuple):
    """Of one call over the whole batch."""

    samples: int
    """Bilinear samples: batch * queries * heads * levels * points."""
    minimal_bytes: int
    """Each input that is needed read once and each output written once; see `traffic`."""
    gathered_bytes: int
    """Four rows of `head_dim` values for each sample, as if nothing were found twice in a cache."""


def traffic(problem: Problem, form: Form, direction: str) -> Traffic:
    """Counted from the tensors themselves.

    Of the values only those rows count that some sample touches: all in an encoder, few in a decoder. A backward pass
    reads all inputs and the result's gradient, writes the gradients of the inputs, and fills the values' gradient
    with zeros before it adds to it, in float32 however short the values are.
    """
    value, second, third = problem.inputs(form)
    touched = _touched_rows(problem) * value.shape[3] * value.element_size()
    asked, result = _bytes(second) + _bytes(third), _bytes(problem.towards)
    samples = problem.weights.numel()
    minimal = touched + asked + result
    if direction == "backward":
        accumulated = value.numel() * max(value.element_size(), 4)
        rounded = 0 if value.element_size() >= 4 else _bytes(value)
        answered = _bytes(third) if form == "attend" else asked
        minimal += answered + 2 * accumulated + rounded
    return Traffic(samples, minimal, samples * 4 * value.shape[3] * value.element_size())


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a large copy on the same device and as many threads."""
    cuda = device.startswith("cuda")
    size = _COPY_MIB["cuda" if cuda else "cpu"] * 2**20
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(_COPIES):
        if cuda:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / min(seconds)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _touched_rows(problem: Problem) -> int:
    """Rows (batch, position, head) of the values that at least one sample weighs."""
    batch, positions, heads, _ = problem.value.shape
    # What lies outside of its map marks the spare place at the end.
    touched = torch.zeros(batch, heads, positions + 1, dtype=torch.bool, device=problem.value.device)
    corners = pixel_coordinates(problem.locations, problem.spatial_shapes).floor().transpose(1, 2)
    start = 0
    for level, (height, width) in enumerate(problem.spatial_shapes):
        left_top = corners[:, :, :, level].flatten(2, 3)  # (batch, heads, queries * points, 2)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = left_top[..., 0] + dx, left_top[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            touched.scatter_(2, (y * width + x + start).where(inside, positions).long(), True)
        start += height * width
    return int(touched[..., :positions].sum())
