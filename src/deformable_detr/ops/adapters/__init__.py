"""Adapters that run other code on this operator: known signatures, and whole models of the transformers library."""

from deformable_detr.ops.adapters.huggingface import Acceleration, accelerate, restore
from deformable_detr.ops.adapters.signatures import (
    MSDeformAttnFunction,
    MultiScaleDeformableAttnFunction,
    ms_deform_attn_core_pytorch,
    multi_scale_deformable_attn_pytorch,
)

__all__ = [
    "Acceleration",
    "MSDeformAttnFunction",
    "MultiScaleDeformableAttnFunction",
    "accelerate",
    "ms_deform_attn_core_pytorch",
    "multi_scale_deformable_attn_pytorch",
    "restore",
]
