"""The published models: name -> (config, build). This is the whole registry."""

from deformable_detr.models.deformable import DeformableDETR, DeformableDETRConfig, build

MODELS = {"deformable_detr": (DeformableDETRConfig, build)}

__all__ = ["MODELS", "DeformableDETR", "DeformableDETRConfig", "build"]
