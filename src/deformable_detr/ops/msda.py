"""Multi-scale deformable attention (arXiv 2010.04159, section 4.1): the public functions, with checks and backends."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.errors import BackendError
from deformable_detr.core.types import SpatialShapes
from deformable_detr.ops import cpu, grid_sample, reference
from deformable_detr.ops import registration as library
from deformable_detr.ops.checks import check_devices, check_given, check_projected
from deformable_detr.ops.reference import locations_and_weights, to_accumulation_dtype

BackendName = Literal["auto", "cpu", "triton", "grid_sample", "reference"]
Run = Callable[[Tensor, Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]


class Backend(NamedTuple):
    """Backend of the operator; its functions trust that their arguments have been checked."""

    sample: Run
    """Operation on given locations and weights."""
    attend: Run
    """Operation on references and a projection."""
    why_not: Callable[[Tensor, SpatialShapes, tuple[int, ...], int], str | None]
    """Reason why the backend cannot run on value, spatial shapes, points and number of queries; None if it can."""


def _why_not_triton(
    value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int
) -> str | None:
    if value.device.type != "cuda":
        return f"it needs a CUDA tensor, value is on {value.device.type}"
    from deformable_detr.ops import triton  # takes a second to import, so only where there is a GPU

    return triton.why_not(value, spatial_shapes, num_points, num_queries)


def _runs_everywhere(*problem: object) -> None:
    return None


# In order of preference: "auto" is the first backend that can run. "cpu" and "triton" are one registered operator, for
# which PyTorch selects the kernel by the device of the tensors.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend(library.sample_on_cpu, library.attend_on_cpu, cpu.why_not),
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
    """Multi-scale deformable attention (section 4.1, equation 3): weighted sum of bilinear samples for each query.

    Each query takes `points` samples from every level, in every head. The four pixels around a location are
    interpolated, with pixel centres at (i + 0.5) / size. A pixel outside its map counts as zero. A location that is
    NaN or infinite contributes nothing and gets a gradient of zero. Features must be finite: an infinite one may spread
    to queries that look next to it with weight zero.

    Locations, weights and all sums are float32 whatever the type of the values, and float64 if the values are.
    Half-precision locations are accepted, but they are exact to a third of a pixel only.

    Args:
        value: projected features of all levels, one level after another, each row by row.
        spatial_shapes: (height, width) of each level as Python ints, so nothing waits for the device.
        sampling_locations: (x, y) of each sample, in 0..1 of its padded map; may lie outside.
        attention_weights: weight of each sample, used as it is: this function does not normalise them.
        num_points: points of each level, where levels differ in their number (RT-DETRv2, D-FINE); levels and points
            are then one axis, level after level.
        backend: "auto" takes the first that can run; see `backends()`.

    Returns:
        The sums of every query and head, in the type of the values.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
        BackendError: the named backend cannot run on this input.
    """
    shapes, points = check_given(
        value.shape, spatial_shapes, num_points, sampling_locations.shape, attention_weights.shape
    )
    check_devices(value, sampling_locations=sampling_locations, attention_weights=attention_weights)
    if num_points is None:
        sampling_locations, attention_weights = sampling_locations.flatten(3, 4), attention_weights.flatten(3, 4)
    chosen = BACKENDS[choose(backend, value, spatial_shapes, points, sampling_locations.shape[1])]
    return chosen.sample(value, *to_accumulation_dtype(value, sampling_locations, attention_weights), shapes, points)


def multi_scale_deformable_attention_from_projection(
    value: Float[Tensor, "batch positions heads head_dim"],
    spatial_shapes: SpatialShapes,
    reference: Float[Tensor, "batch queries levels _"],
    projection: Float[Tensor, "batch queries channels"],
    *,
    num_points: int | tuple[int, ...],
    backend: BackendName = "auto",
) -> Float[Tensor, "batch queries heads head_dim"]:
    """Multi-scale deformable attention from references and one projection of the queries (section 4.1).

    Softmax and sampling locations are computed on the way and never stored, which saves the two largest tensors of an
    encoder layer. Offsets count pixels of their level around a reference point, or half-boxes / points around a
    reference box. The softmax runs over all levels and points of a head.

    Args:
        value: projected features of all levels, one level after another, each row by row.
        spatial_shapes: (height, width) of each level as Python ints, so nothing waits for the device.
        reference: point (x, y) or box cxcywh of each query, in 0..1 of each padded map.
        projection: output of one linear layer for each query: the offsets of every head, level and point as (x, y),
            then the logits in the same order. So `channels` is heads * levels * points * 3.
        num_points: points of every level, or of each level.
        backend: "auto" takes the first that can run; see `backends()`.

    Returns:
        The sums of every query and head, in the type of the values.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
        BackendError: the named backend cannot run on this input.
    """
    shapes, points = check_projected(value.shape, spatial_shapes, num_points, reference.shape, projection.shape)
    check_devices(value, reference=reference, projection=projection)
    chosen = BACKENDS[choose(backend, value, spatial_shapes, points, projection.shape[1])]
    return chosen.attend(value, *to_accumulation_dtype(value, reference, projection), shapes, points)


class SamplingPoints(NamedTuple):
    """Sampling points of queries: where each head reads each level, and how much it counts (section 4.1)."""

    locations: Float[Tensor, "batch queries heads levels points 2"]
    """(x, y) of each point in 0..1 of its padded map; may lie outside."""
    weights: Float[Tensor, "batch queries heads levels points"]
    """Attention weight of each point; those of all levels and points of a head sum to 1."""


def sampling_points_from_projection(
    spatial_shapes: SpatialShapes,
    reference: Float[Tensor, "batch queries levels _"],
    projection: Float[Tensor, "batch queries channels"],
    *,
    num_heads: int,
    num_points: int,
) -> SamplingPoints:
    """Sampling points that `multi_scale_deformable_attention_from_projection` uses and never stores.

    Given to `multi_scale_deformable_attention` they give the same sums, up to rounding.

    Args:
        spatial_shapes: (height, width) of each level.
        reference: point (x, y) or box cxcywh of each query, in 0..1 of each padded map.
        projection: offsets, then logits, of each query.
        num_heads: attention heads.
        num_points: points of every level and head.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
    """
    positions = sum(height * width for height, width in spatial_shapes)
    value = (len(projection), positions, num_heads, 1)
    shapes, points = check_projected(value, spatial_shapes, num_points, reference.shape, projection.shape)
    no_value = projection.new_empty((0, 0, num_heads, 0))
    locations, weights = locations_and_weights(no_value, reference, projection, shapes, points)
    by_level = (len(spatial_shapes), num_points)
    return SamplingPoints(locations.unflatten(3, by_level), weights.unflatten(3, by_level))


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
    """Backends in order of preference, each with the reason why it cannot run on these tensors, or None if it can.

    The arguments are those of `multi_scale_deformable_attention`.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
    """
    _, points = check_given(value.shape, spatial_shapes, num_points, sampling_locations.shape, attention_weights.shape)
    queries = sampling_locations.shape[1]
    return {name: backend.why_not(value, spatial_shapes, points, queries) for name, backend in BACKENDS.items()}


def choose(
    backend: str, value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int
) -> str:
    """Name of the first backend that can run, or of the one that is named.

    Raises:
        BackendError: there is no backend of that name, or it cannot run on this input; the message says why.
    """
    problem = (value, spatial_shapes, num_points, num_queries)
    if backend == "auto":
        for name, candidate in BACKENDS.items():
            if candidate.why_not(*problem) is None:
                return name
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)} and auto")
    reason = BACKENDS[backend].why_not(*problem)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot run: {reason}")
    return backend
