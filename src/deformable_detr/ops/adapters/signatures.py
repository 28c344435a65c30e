"""Operator under the names and signatures of the official code and of mmcv: change the import, keep the calls."""

import functools
import weakref
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.types import SpatialShapes
from deformable_detr.ops.msda import multi_scale_deformable_attention

Shapes = Tensor | Sequence[Sequence[int]]
Starts = Tensor | Sequence[int]
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class MSDeformAttnFunction:
    """Replacement for the autograd function of the official code; that of mmcv has the same signature."""

    @staticmethod
    def apply(
        value: Float[Tensor, "batch positions heads head_dim"],
        value_spatial_shapes: Shapes,
        value_level_start_index: Starts,
        sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
        attention_weights: Float[Tensor, "batch queries heads levels points"],
        im2col_step: int = 64,
    ) -> Float[Tensor, "batch queries channels"]:
        """Multi-scale deformable attention in the official signature; the result has all heads in one axis.

        It takes every device, floating type and number of channels that `multi_scale_deformable_attention` takes, with
        the same precision: locations, weights and sums are float32 or better for values of any type. Shapes on a GPU
        have to be fetched, which waits for all earlier work of the GPU, once for each tensor (in inference mode once
        for each call). Python numbers, `((height, width), ...)` and `(0, ...)`, are accepted, too: then nothing waits,
        and the call compiles without a graph break.

        Args:
            value: projected features.
            value_spatial_shapes: (height, width) of each level.
            value_level_start_index: first position of each level. It follows from the shapes and is only compared with
                them.
            sampling_locations: (x, y) in 0..1 of each padded map.
            attention_weights: weight of each sample, used as it is.
            im2col_step: accepted and without effect; any batch size is allowed.

        Raises:
            ValueError: tensors that disagree with each other.
        """
        shapes = _spatial_shapes(value_spatial_shapes, value_level_start_index)
        return multi_scale_deformable_attention(value, shapes, sampling_locations, attention_weights).flatten(2)


MultiScaleDeformableAttnFunction = MSDeformAttnFunction


def ms_deform_attn_core_pytorch(
    value: Float[Tensor, "batch positions heads head_dim"],
    value_spatial_shapes: Shapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries channels"]:
    """Replacement for the function in plain PyTorch that the official code and mmcv have beside their kernel.

    Args:
        value: projected features.
        value_spatial_shapes: (height, width) of each level; `MSDeformAttnFunction.apply` says what a tensor costs.
        sampling_locations: (x, y) in 0..1 of each padded map.
        attention_weights: weight of each sample, used as it is.

    Raises:
        ValueError: tensors that disagree with each other.
    """
    shapes = _spatial_shapes(value_spatial_shapes, None)
    return multi_scale_deformable_attention(value, shapes, sampling_locations, attention_weights).flatten(2)


multi_scale_deformable_attn_pytorch = ms_deform_attn_core_pytorch


def _spatial_shapes(shapes: Shapes, starts: Starts | None) -> SpatialShapes:
    if not isinstance(shapes, Tensor) or not (starts is None or isinstance(starts, Tensor)):
        return _read(shapes, starts)
    tensors = (shapes,) if starts is None else (shapes, starts)
    # Tensors in main memory are read at once each time, because that costs nothing and they may change unseen, for
    # example through numpy. Tensors made in inference mode have no version counter, so a change would not be seen.
    in_reach = all(tensor.device.type == "cpu" for tensor in tensors)
    if in_reach or torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
        return _read(shapes, starts)
    return _remembered(_Unchanged(shapes, starts))


def _read(shapes: Shapes, starts: Starts | None) -> SpatialShapes:
    if isinstance(shapes, Tensor):
        if shapes.dim() != 2 or shapes.shape[1] != 2 or shapes.dtype not in _INTEGERS:
            raise ValueError(
                "value_spatial_shapes need one integer (height, width) for each level, not a tensor of shape "
                f"{tuple(shapes.shape)} and type {shapes.dtype}"
            )
        shapes = shapes.tolist()
    sizes = tuple((height, width) for height, width in shapes)
    if starts is not None:
        expected, start = [], 0
        for height, width in sizes:
            expected.append(start)
            start += height * width
        found = starts.tolist() if isinstance(starts, Tensor) else list(starts)
        if found != expected:
            raise ValueError(f"value_level_start_index is {found}, but levels of sizes {sizes} start at {expected}")
    return sizes


class _Unchanged:
    """Key for a cache: equal to another key while both stand for the same tensors, alive and not written to since.

    Autograd checks the tensors it saved in the same way, by their version counters.
    """

    def __init__(self, shapes: Tensor, starts: Tensor | None) -> None:
        self._tensors = tuple(weakref.ref(tensor) for tensor in (shapes, starts) if tensor is not None)
        self._versions = tuple(tensor._version for tensor in (shapes, starts) if tensor is not None)
        self._hash = hash((id(shapes), id(starts), self._versions))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Unchanged) or self._versions != other._versions:
            return False
        mine, others = self.alive(), other.alive()
        return len(mine) == len(others) and all(
            one is not None and one is another for one, another in zip(mine, others, strict=True)
        )

    def alive(self) -> tuple[Tensor | None, ...]:
        """Tensors of the key; None for each that no longer exists."""
        return tuple(tensor() for tensor in self._tensors)


@functools.lru_cache(maxsize=32)
def _remembered(key: _Unchanged) -> SpatialShapes:
    shapes, *starts = key.alive()
    assert shapes is not None  # the caller holds them
    return _read(shapes, starts[0] if starts else None)
