"""Multi-scale deformable attention (arXiv 2010.04159, section 4.1): contract, checks, and choice of backend."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from deformable_detr.errors import BackendError
from deformable_detr.ops import cpu, grid_sample, library, reference
from deformable_detr.ops.reference import accumulation_dtype
from deformable_detr.types import SpatialShapes

BackendName = Literal["auto", "cpu", "triton", "grid_sample", "reference"]
Run = Callable[[Tensor, Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]


class Backend(NamedTuple):
    """Two forms of the operation, which trust the contract, and the reason why neither can run here, or None."""

    sample: Run
    attend: Run
    why_not: Callable[[Tensor, SpatialShapes, tuple[int, ...], int], str | None]


def _why_not_triton(
    value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int
) -> str | None:
    if value.device.type != "cuda":
        return f"it needs a CUDA tensor, value is on {value.device.type}"
    from deformable_detr.ops import triton  # a second to import, and there is nothing to gain without a GPU

    return triton.why_not(value, spatial_shapes, num_points, num_queries)


def _runs_everywhere(*problem: object) -> None:
    return None


# In order of preference: "auto" is the first that can run. The compiled ones are one registered operator, which
# PyTorch sends to the kernel of the device the tensors are on.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend(library.sample, library.attend, cpu.why_not),
    "triton": Backend(library.sample, library.attend, _why_not_triton),
    "grid_sample": Backend(grid_sample.sample, grid_sample.attend, grid_sample.why_not),
    "reference": Backend(reference.sample, reference.attend, _runs_everywhere),
}


def multi_scale_deformable_attention(
    value: Float[Tensor, "batch positions heads head_dim"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"]
    | Float[Tensor, "batch queries heads samples 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"]
    | Float[Tensor, "batch queries heads samples"],
    *,
    num_points: tuple[int, ...] | None = None,
    backend: BackendName = "auto",
) -> Float[Tensor, "batch queries heads head_dim"]:
    """Weighted sum of `points` bilinear samples per level, per head, per query.

    `value` holds the levels one after another, each row by row, sizes in `spatial_shapes` as (height, width).
    Locations are (x, y) in 0..1 of each padded map, pixel centres at (i + 0.5) / size; what lies outside a map
    counts as zero, and a location that is NaN or infinite contributes nothing and gets a gradient of zero. Weights
    are used as they are: the module normalises them, this function does not. Features are expected to be finite: an
    infinite one may spread to queries that look next to it with weight zero.

    Locations, weights and all sums are float32 whatever the type of the values, float64 if the values are; the
    result has the values' type. Half-precision locations are accepted, but they are exact to a third of a pixel only.

    Args:
        value: projected features.
        spatial_shapes: Python ints, so nothing waits for the device.
        sampling_locations: where to look.
        attention_weights: what each look counts for.
        num_points: points of each level, where levels differ in their number (RT-DETRv2, D-FINE); levels and points
            are then one axis, level after level.
        backend: "auto" takes the first that can run; see `backends()`.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
        BackendError: the named backend cannot run on this input.
    """
    if num_points is None:
        check_even(spatial_shapes, sampling_locations, attention_weights)
        num_points = (sampling_locations.shape[4],) * len(spatial_shapes)
        sampling_locations, attention_weights = sampling_locations.flatten(3, 4), attention_weights.flatten(3, 4)
    check(value, spatial_shapes, num_points, sampling_locations, attention_weights)
    chosen = BACKENDS[choose(backend, value, spatial_shapes, num_points, sampling_locations.shape[1])]
    exact = accumulation_dtype(value)
    shapes = list(chain.from_iterable(spatial_shapes))
    return chosen.sample(value, sampling_locations.to(exact), attention_weights.to(exact), shapes, num_points)


def multi_scale_deformable_attention_from_projection(
    value: Float[Tensor, "batch positions heads head_dim"],
    spatial_shapes: SpatialShapes,
    reference: Float[Tensor, "batch queries levels _"],
    projection: Float[Tensor, "batch queries channels"],
    *,
    num_points: int | tuple[int, ...],
    backend: BackendName = "auto",
) -> Float[Tensor, "batch queries heads head_dim"]:
    """The same, with softmax and sampling locations made on the way instead of stored.

    `reference` is a point (x, y) or a box cxcywh in 0..1 of each padded map. `projection` is what one linear layer
    says of each query: the offsets of every head, level and point as (x, y), then the logits in the same order, so
    `channels` is heads * levels * points * 3. Offsets count pixels of their level around a reference point, or
    half-boxes / points around a reference box; the softmax runs over all levels and points of a head (section 4.1).

    Args:
        value: projected features.
        spatial_shapes: Python ints, as everywhere.
        reference: where each query is.
        projection: what each query asks for.
        num_points: points per level, or of each level.
        backend: "auto" takes the first that can run.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
        BackendError: the named backend cannot run on this input.
    """
    if isinstance(num_points, int):
        num_points = (num_points,) * len(spatial_shapes)
    check_projection(value, spatial_shapes, num_points, reference, projection)
    chosen = BACKENDS[choose(backend, value, spatial_shapes, num_points, projection.shape[1])]
    exact = accumulation_dtype(value)
    shapes = list(chain.from_iterable(spatial_shapes))
    return chosen.attend(value, reference.to(exact), projection.to(exact), shapes, num_points)


def backends(
    value: Float[Tensor, "batch positions heads head_dim"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"]
    | Float[Tensor, "batch queries heads samples 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"]
    | Float[Tensor, "batch queries heads samples"],
    *,
    num_points: tuple[int, ...] | None = None,
) -> dict[str, str | None]:
    """Every backend, in order of preference, with the reason why it cannot run on these tensors, or None if it can."""
    if num_points is None:
        check_even(spatial_shapes, sampling_locations, attention_weights)
        num_points = (sampling_locations.shape[4],) * len(spatial_shapes)
    queries = sampling_locations.shape[1]
    return {name: backend.why_not(value, spatial_shapes, num_points, queries) for name, backend in BACKENDS.items()}


def choose(
    backend: str, value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int
) -> str:
    """The first backend that can run, or the named one; a `BackendError` says why the named one cannot."""
    problem = (value, spatial_shapes, num_points, num_queries)
    if backend == "auto":
        return next(name for name, candidate in BACKENDS.items() if candidate.why_not(*problem) is None)
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)} and auto")
    reason = BACKENDS[backend].why_not(*problem)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot run: {reason}")
    return backend


def check_even(spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> None:
    """The form with an axis of levels and one of points; what it shares with the other is checked in `check`."""
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(
            "sampling_locations need axes (batch, queries, heads, levels, points, 2), or num_points where levels "
            f"differ in their number; not shape {tuple(locations.shape)}"
        )
    if locations.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"sampling_locations have {locations.shape[3]} levels but spatial_shapes {tuple(spatial_shapes)} have "
            f"{len(spatial_shapes)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"attention_weights have shape {tuple(weights.shape)}; sampling_locations need "
            f"{tuple(locations.shape[:-1])}"
        )


def check(
    value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], locations: Tensor, weights: Tensor
) -> None:
    """Do the tensors agree? Levels and points are one axis here."""
    _check_value(value, spatial_shapes, num_points)
    if locations.dim() != 5 or locations.shape[-1] != 2:
        raise ValueError(
            "sampling_locations with num_points need axes (batch, queries, heads, samples, 2), not shape "
            f"{tuple(locations.shape)}"
        )
    expected = (value.shape[0], locations.shape[1], value.shape[2], sum(num_points), 2)
    if tuple(locations.shape) != expected:
        raise ValueError(
            f"sampling_locations have (batch, queries, heads, levels * points, 2) = {tuple(locations.shape)}; value "
            f"and spatial_shapes need {expected}"
        )
    if tuple(weights.shape) != expected[:-1]:
        raise ValueError(
            f"attention_weights have shape {tuple(weights.shape)}; sampling_locations need {expected[:-1]}"
        )
    _check_devices(value, sampling_locations=locations, attention_weights=weights)


def check_projection(
    value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], reference: Tensor, projection: Tensor
) -> None:
    """Do value, reference and projection agree?"""
    _check_value(value, spatial_shapes, num_points)
    batch, _, heads, _ = value.shape
    if projection.dim() != 3 or projection.shape[0] != batch or projection.shape[2] != heads * sum(num_points) * 3:
        raise ValueError(
            f"projection has shape {tuple(projection.shape)}; {heads} heads of {sum(num_points)} samples need "
            f"({batch}, queries, {heads * sum(num_points) * 3})"
        )
    expected = (batch, projection.shape[1], len(spatial_shapes))
    if reference.dim() != 4 or tuple(reference.shape[:3]) != expected or reference.shape[3] not in (2, 4):
        raise ValueError(
            f"reference has shape {tuple(reference.shape)}; projection and spatial_shapes need {(*expected, 2)} for "
            f"points or {(*expected, 4)} for boxes"
        )
    _check_devices(value, reference=reference, projection=projection)


def _check_value(value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...]) -> None:
    if value.dim() != 4:
        raise ValueError(f"value needs axes (batch, positions, heads, head_dim), not shape {tuple(value.shape)}")
    if any(height < 1 or width < 1 for height, width in spatial_shapes):
        raise ValueError(f"every map needs a row and a column; spatial_shapes are {tuple(spatial_shapes)}")
    positions = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != positions:
        raise ValueError(
            f"value has {value.shape[1]} positions but spatial_shapes {tuple(spatial_shapes)} need {positions}"
        )
    if len(num_points) != len(spatial_shapes):
        raise ValueError(
            f"num_points {tuple(num_points)} names {len(num_points)} levels but spatial_shapes "
            f"{tuple(spatial_shapes)} have {len(spatial_shapes)}"
        )


def _check_devices(value: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != value.device:
            raise ValueError(f"value is on {value.device} but {name} on {tensor.device}; move one of them")
