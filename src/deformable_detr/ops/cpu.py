"""The compiled CPU kernel."""

from collections.abc import Sequence

from torch import Tensor

from deformable_detr.types import SpatialShapes


def missing() -> str | None:
    """Why the compiled kernel is not there, or None."""
    return "not built"


def why_not(value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int) -> str | None:
    if value.device.type != "cpu":
        return f"it needs a CPU tensor, value is on {value.device.type}"
    return missing()


def sample(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
    raise NotImplementedError


attend = sample_backward = attend_backward = sample
