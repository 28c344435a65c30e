"""Multi-scale deformable attention as an operator; it needs PyTorch and nothing of the detector."""

from deformable_detr.ops.msda import (
    backends,
    multi_scale_deformable_attention,
    multi_scale_deformable_attention_from_projection,
    sampling_points_from_projection,
)

__all__ = [
    "backends",
    "multi_scale_deformable_attention",
    "multi_scale_deformable_attention_from_projection",
    "sampling_points_from_projection",
]
