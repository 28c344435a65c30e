"""Multi-scale deformable attention (arXiv 2010.04159, section 4.1): contract, checks, and choice of backend."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from deformable_detr.errors import BackendError
from deformable_detr.ops import grid_sample, reference
from deformable_detr.types import SpatialShapes

BackendName = Literal["auto", "grid_sample", "reference"]


class Backend(NamedTuple):
    """`run` trusts the contract; `why_not` takes the same arguments and says why it cannot run, or None."""

    run: Callable[[Tensor, SpatialShapes, Tensor, Tensor], Tensor]
    why_not: Callable[[Tensor, SpatialShapes, Tensor, Tensor], str | None]


# In order of preference: "auto" is the first that can run.
BACKENDS: dict[str, Backend] = {
    "grid_sample": Backend(grid_sample.run, grid_sample.why_not),
    "reference": Backend(reference.run, reference.why_not),
}


def multi_scale_deformable_attention(
    value: Float[Tensor, "batch positions heads head_dim"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    *,
    backend: BackendName = "auto",
) -> Float[Tensor, "batch queries heads head_dim"]:
    """Weighted sum of `points` bilinear samples per level, per head, per query.

    `value` holds the levels one after another, each row by row, sizes in `spatial_shapes` as (height, width).
    Locations are (x, y) in 0..1 of each padded map, pixel centres at (i + 0.5) / size; what lies outside a map
    counts as zero, and a location that is NaN or infinite contributes nothing. Weights are used as they are:
    the module normalises them, this function does not.

    Half-precision values are sampled and summed in float32 and returned in their own dtype; locations and
    weights should stay float32, since a half cannot address a pixel of a large map.

    Args:
        value: projected features.
        spatial_shapes: Python ints, so nothing waits for the device.
        sampling_locations: where to look.
        attention_weights: what each look counts for.
        backend: "auto" takes the first that can run; see `backends()`.

    Raises:
        ValueError: tensors that disagree with each other or with `spatial_shapes`.
        BackendError: the named backend cannot run on this input.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    arguments = (value, spatial_shapes, sampling_locations, attention_weights)
    if backend == "auto":
        name = next(name for name, candidate in BACKENDS.items() if candidate.why_not(*arguments) is None)
        return BACKENDS[name].run(*arguments)
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)} and auto")
    reason = BACKENDS[backend].why_not(*arguments)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot run: {reason}")
    return BACKENDS[backend].run(*arguments)


def backends(
    value: Float[Tensor, "batch positions heads head_dim"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> dict[str, str | None]:
    """Every backend, in order of preference, with the reason why it cannot run on these tensors, or None if it can."""
    return {
        name: backend.why_not(value, spatial_shapes, sampling_locations, attention_weights)
        for name, backend in BACKENDS.items()
    }


def _check(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"value needs axes (batch, positions, heads, head_dim), not shape {tuple(value.shape)}")
    positions = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != positions:
        raise ValueError(
            f"value has {value.shape[1]} positions but spatial_shapes {tuple(spatial_shapes)} need {positions}"
        )
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(
            "sampling_locations need axes (batch, queries, heads, levels, points, 2), not shape "
            f"{tuple(locations.shape)}"
        )
    expected = (
        value.shape[0],
        locations.shape[1],
        value.shape[2],
        len(spatial_shapes),
        locations.shape[4],
        2,
    )
    if tuple(locations.shape) != expected:
        raise ValueError(
            f"sampling_locations have shape {tuple(locations.shape)}; value and spatial_shapes need {expected}"
        )
    if tuple(weights.shape) != expected[:-1]:
        raise ValueError(
            f"attention_weights have shape {tuple(weights.shape)}; sampling_locations need {expected[:-1]}"
        )
