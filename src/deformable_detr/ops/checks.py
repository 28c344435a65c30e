"""Checks that the tensors of a call agree, made from their sizes alone, so that the answer can be remembered."""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from deformable_detr.core.types import SpatialShapes


class Agreed(NamedTuple):
    """Integers that backends take beside the tensors, once the sizes agree."""

    shapes: tuple[int, ...]
    """Height and width of each level, one after another."""
    points: tuple[int, ...]
    """Number of points of each level."""


Check = TypeVar("Check", bound=Callable[..., Agreed])


def _remembered(check: Check) -> Check:
    """Check that answers from memory for sizes seen before: checking takes as long as a small call."""
    memory = lru_cache(maxsize=1024)(check)

    @wraps(check)
    def run(*sizes: object) -> Agreed:
        if torch.compiler.is_compiling():
            return check(*sizes)  # only once for each compilation, and sizes may be symbols
        try:
            return memory(*sizes)
        except TypeError:  # lists and symbols have no hash
            return check(*sizes)

    return run  # type: ignore[return-value]


@_remembered
def check_given(
    value: Sequence[int],
    spatial_shapes: SpatialShapes,
    num_points: tuple[int, ...] | None,
    locations: Sequence[int],
    weights: Sequence[int],
) -> Agreed:
    """Check of the sizes of value, locations and weights; `num_points` is None where levels and points are two axes.

    Raises:
        ValueError: two sizes disagree; the message has both.
    """
    if num_points is None:
        _check_even(spatial_shapes, locations, weights)
        num_points = (locations[4],) * len(spatial_shapes)
        locations, weights = (*locations[:3], locations[3] * locations[4], 2), (*weights[:3], weights[3] * weights[4])
    _check_value(value, spatial_shapes, num_points)
    if len(locations) != 5 or locations[-1] != 2:
        raise ValueError(
            "sampling_locations with num_points need axes (batch, queries, heads, samples, 2), not shape "
            f"{tuple(locations)}"
        )
    expected = (value[0], locations[1], value[2], sum(num_points), 2)
    if tuple(locations) != expected:
        raise ValueError(
            f"sampling_locations have (batch, queries, heads, levels * points, 2) = {tuple(locations)}; value "
            f"and spatial_shapes need {expected}"
        )
    if tuple(weights) != expected[:-1]:
        raise ValueError(f"attention_weights have shape {tuple(weights)}; sampling_locations need {expected[:-1]}")
    return Agreed(tuple(chain.from_iterable(spatial_shapes)), tuple(num_points))


@_remembered
def check_projected(
    value: Sequence[int],
    spatial_shapes: SpatialShapes,
    num_points: int | tuple[int, ...],
    reference: Sequence[int],
    projection: Sequence[int],
) -> Agreed:
    """Check of the sizes of value, reference and projection.

    Raises:
        ValueError: two sizes disagree; the message has both.
    """
    if isinstance(num_points, int):
        num_points = (num_points,) * len(spatial_shapes)
    _check_value(value, spatial_shapes, num_points)
    batch, _, heads, _ = value
    if len(projection) != 3 or projection[0] != batch or projection[2] != heads * sum(num_points) * 3:
        raise ValueError(
            f"projection has shape {tuple(projection)}; {heads} heads of {sum(num_points)} samples need "
            f"({batch}, queries, {heads * sum(num_points) * 3})"
        )
    expected = (batch, projection[1], len(spatial_shapes))
    if len(reference) != 4 or tuple(reference[:3]) != expected or reference[3] not in (2, 4):
        raise ValueError(
            f"reference has shape {tuple(reference)}; projection and spatial_shapes need {(*expected, 2)} for "
            f"points or {(*expected, 4)} for boxes"
        )
    return Agreed(tuple(chain.from_iterable(spatial_shapes)), tuple(num_points))


def check_devices(value: Tensor, **others: Tensor) -> None:
    """Check that all tensors are on one device.

    Raises:
        ValueError: two are on different devices; the message names both.
    """
    for name, tensor in others.items():
        if tensor.device != value.device:
            raise ValueError(f"value is on {value.device} but {name} on {tensor.device}; move one of them")


def _check_even(spatial_shapes: SpatialShapes, locations: Sequence[int], weights: Sequence[int]) -> None:
    if len(locations) != 6 or locations[-1] != 2:
        raise ValueError(
            "sampling_locations need axes (batch, queries, heads, levels, points, 2), or num_points where levels "
            f"differ in their number; not shape {tuple(locations)}"
        )
    if locations[3] != len(spatial_shapes):
        raise ValueError(
            f"sampling_locations have {locations[3]} levels but spatial_shapes {tuple(spatial_shapes)} have "
            f"{len(spatial_shapes)}"
        )
    if tuple(weights) != tuple(locations[:-1]):
        raise ValueError(
            f"attention_weights have shape {tuple(weights)}; sampling_locations need {tuple(locations[:-1])}"
        )


def _check_value(value: Sequence[int], spatial_shapes: SpatialShapes, num_points: tuple[int, ...]) -> None:
    if len(value) != 4:
        raise ValueError(f"value needs axes (batch, positions, heads, head_dim), not shape {tuple(value)}")
    if any(height < 1 or width < 1 for height, width in spatial_shapes):
        raise ValueError(f"every map needs a row and a column; spatial_shapes are {tuple(spatial_shapes)}")
    positions = sum(height * width for height, width in spatial_shapes)
    if value[1] != positions:
        raise ValueError(f"value has {value[1]} positions but spatial_shapes {tuple(spatial_shapes)} need {positions}")
    if len(num_points) != len(spatial_shapes):
        raise ValueError(
            f"num_points {tuple(num_points)} names {len(num_points)} levels but spatial_shapes "
            f"{tuple(spatial_shapes)} have {len(spatial_shapes)}"
        )
