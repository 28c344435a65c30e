"""Self-test of the operator: errors of a backend against the definition, and its speed."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deformable_detr.core.errors import first_line
from deformable_detr.core.types import SpatialShapes
from deformable_detr.ops.msda import (
    BackendName,
    backends,
    multi_scale_deformable_attention,
    multi_scale_deformable_attention_from_projection,
)
from deformable_detr.ops.reference import accumulation_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TIMED_DTYPE = "float32"

# Sizes of the check: no map is square, no size is a multiple of a vector's, and some samples lie outside or nowhere.
_SHAPES, _POINTS = ((5, 8), (3, 2), (1, 4)), (2, 3, 1)
_BATCH, _QUERIES, _HEADS, _HEAD_DIM = 2, 7, 3, 37

# Sizes of the timing: levels of images of 640 x 640 and of 256 x 341 pixels, heads and points of the published models.
_TIMED: dict[str, tuple[SpatialShapes, int]] = {
    "decoder, 300 queries": (((80, 80), (40, 40), (20, 20), (10, 10)), 300),
    "encoder, 1840 positions": (((32, 43), (16, 22), (8, 11), (4, 6)), 1840),
}
_RUNS, _ENOUGH_S = 7, 0.15


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Backend that "auto" takes for one device and type."""

    device: str
    """Device, such as "cpu" or "cuda:0"."""
    dtype: str
    """Type of the values, such as "float32"."""
    backend: BackendName
    """Name of the backend."""
    others: dict[str, str | None]
    """Reason why each other backend cannot run; None if it could, but is slower."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Errors of a chosen backend against the definition in float64."""

    device: str
    """Device, such as "cpu" or "cuda:0"."""
    dtype: str
    """Type of the values, such as "float32"."""
    backend: str
    """Name of the backend."""
    result_error: float | None
    """Largest error of the result, as a share of its largest number; None if there is a problem."""
    gradient_error: float | None
    """Largest error of the gradients, as a share of the largest number of each; None if there is a problem."""
    allowed: float
    """Largest error that passes for this type."""
    problem: str | None
    """Reason why the errors could not be measured; None if they were."""

    @property
    def ok(self) -> bool:
        """Whether the backend computes what it should."""
        errors = self.result_error, self.gradient_error
        return self.problem is None and all(error is not None and error <= self.allowed for error in errors)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of one call in float32 for one image: the median of a few runs."""

    device: str
    """Device, such as "cpu" or "cuda:0"."""
    case: str
    """Kind of layer and its size."""
    backend: str
    """Name of the backend."""
    forward_ms: float
    """Milliseconds of the forward pass without gradients."""
    training_ms: float
    """Milliseconds of the forward and the backward pass."""


def choose(device: str, dtype: torch.dtype) -> Choice:
    """Choice of "auto" for a device and type, with the reasons against the other backends."""
    value, locations, weights = _on(device, dtype, _samples())
    reasons = backends(value, _SHAPES, locations, weights, num_points=_POINTS)
    backend: Any = next(name for name, reason in reasons.items() if reason is None)
    others = {name: reason for name, reason in reasons.items() if name != backend}
    return Choice(device=device, dtype=str(dtype).removeprefix("torch."), backend=backend, others=others)


# ---- errors


def check(choice: Choice) -> Check:
    """Errors of both forms of the operator in the forward and the backward pass; the larger of the two forms counts."""
    dtype: torch.dtype = getattr(torch, choice.dtype)
    result_error, gradient_error, problem = None, None, None
    try:
        errors = torch.stack([_errors(choice, dtype, *form) for form in ((_sample, _samples()), (_attend, _asks()))])
    except _failures() as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
    else:
        if errors.isfinite().all():
            result_error, gradient_error = errors.amax(0).tolist()
        else:
            problem = "it gives numbers that are not finite"
    return Check(
        device=choice.device,
        dtype=choice.dtype,
        backend=choice.backend,
        result_error=result_error,
        gradient_error=gradient_error,
        # Twice the rounding error of the stored type, or a hundred rounding errors of the sums, whichever is larger.
        allowed=max(torch.finfo(dtype).eps, 100 * torch.finfo(accumulation_dtype(dtype)).eps),
        problem=problem,
    )


def _errors(choice: Choice, dtype: torch.dtype, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """Errors of the result and of the worst of the three gradients, as a tensor of two."""
    own_inputs = [tensor.requires_grad_() for tensor in _on(choice.device, dtype, inputs)]
    exact_inputs = [tensor.detach().cpu().double().requires_grad_() for tensor in own_inputs]
    own, exact = run(*own_inputs, choice.backend), run(*exact_inputs, "reference")
    grad = _normal(*exact.shape, seed=1).to(dtype)
    gradients = torch.autograd.grad(own, own_inputs, grad.to(choice.device))
    exact_gradients = torch.autograd.grad(exact, exact_inputs, grad.double())
    of_gradients = [_error(one, truth) for one, truth in zip(gradients, exact_gradients, strict=True)]
    return torch.stack([_error(own.detach(), exact.detach()), torch.stack(of_gradients).amax()])


def _error(own: Tensor, exact: Tensor) -> Tensor:
    return (own.cpu().double() - exact).abs().amax() / exact.abs().amax()


def _failures() -> tuple[type[Exception], ...]:
    """Errors that PyTorch, a driver or a missing compiler may raise; any other is a bug and shows its traceback."""
    triton = sys.modules.get("triton")
    own = () if triton is None else (triton.TritonError,)
    return (RuntimeError, OSError, ImportError, subprocess.SubprocessError, *own)


def _sample(value: Tensor, locations: Tensor, weights: Tensor, backend: BackendName) -> Tensor:
    return multi_scale_deformable_attention(value, _SHAPES, locations, weights, num_points=_POINTS, backend=backend)


def _attend(value: Tensor, reference: Tensor, projection: Tensor, backend: BackendName) -> Tensor:
    return multi_scale_deformable_attention_from_projection(
        value, _SHAPES, reference, projection, num_points=_POINTS, backend=backend
    )


def _samples() -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations and weights for the check."""
    samples = sum(_POINTS)
    locations = 0.5 + 0.4 * _normal(_BATCH, _QUERIES, _HEADS, samples, 2, seed=3)
    locations[1, 2, 0, 4, 0], locations[0, 5, 1, 0, 1] = float("nan"), float("inf")
    return _value(), locations, _normal(_BATCH, _QUERIES, _HEADS, samples, seed=4)


def _asks() -> tuple[Tensor, Tensor, Tensor]:
    """Value, reference boxes and projection for the check."""
    boxes = 0.5 + 0.1 * _normal(_BATCH, _QUERIES, len(_SHAPES), 4, seed=5)
    return _value(), boxes, _normal(_BATCH, _QUERIES, _HEADS * sum(_POINTS) * 3, seed=6)


def _value() -> Tensor:
    return _normal(_BATCH, sum(height * width for height, width in _SHAPES), _HEADS, _HEAD_DIM, seed=2)


def _normal(*shape: int, seed: int) -> Tensor:
    """Normal random numbers in float64, equal on every machine and under every default type and device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _on(device: str, dtype: torch.dtype, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Inputs on a device: the value in the given type, the others in the type of the sums."""
    value, *others = inputs
    return [value.to(device, dtype), *(tensor.to(device, accumulation_dtype(dtype)) for tensor in others)]


# ---- speed


def timings(choice: Choice) -> Iterator[Timing]:
    """Times of the chosen backend and of grid_sample, which would run without it, in the form that models use.

    Each case takes half a second.
    """
    for case, (shapes, queries) in _TIMED.items():
        value, reference, projection = _layer(shapes, queries, choice.device)
        contenders: list[BackendName] = [choice.backend, "grid_sample"]
        for backend in dict.fromkeys(contenders):
            forward = partial(
                multi_scale_deformable_attention_from_projection,
                *(value, shapes, reference, projection),
                num_points=4,
                backend=backend,
            )
            with torch.no_grad():
                forward_ms = _median_ms(forward, choice.device)
            training_ms = _median_ms(partial(_train, forward, (value, projection)), choice.device)
            yield Timing(
                device=choice.device, case=case, backend=backend, forward_ms=forward_ms, training_ms=training_ms
            )


def _layer(shapes: SpatialShapes, queries: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value, reference points and projection of one image; in an encoder each query sits on its own pixel."""
    positions, dtype = sum(height * width for height, width in shapes), getattr(torch, TIMED_DTYPE)
    value = _normal(1, positions, 8, 32, seed=7).to(device, dtype).requires_grad_()
    projection = _normal(1, queries, 8 * 4 * len(shapes) * 3, seed=8).to(device, dtype).requires_grad_()
    points = _normal(queries, 2, seed=9).sigmoid()
    if queries == positions:
        points = torch.cat([_centres(height, width) for height, width in shapes])
    reference = points[None, :, None].expand(1, queries, len(shapes), 2)
    return value, reference.to(device, dtype).contiguous(), projection


def _centres(height: int, width: int) -> Tensor:
    pixels = torch.cartesian_prod(torch.arange(height, device="cpu"), torch.arange(width, device="cpu"))
    return (pixels.flip(1) + 0.5) / torch.tensor([width, height], device="cpu")


def _train(forward: Callable[[], Tensor], inputs: tuple[Tensor, Tensor]) -> object:
    return torch.autograd.grad(forward().sum(), inputs)


def _median_ms(run: Callable[[], object], device: str) -> float:
    seconds: list[float] = []
    run()  # not timed: the first call compiles and loads
    while len(seconds) < _RUNS and sum(seconds) < _ENOUGH_S:
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
