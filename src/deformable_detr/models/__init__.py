"""Networks: each is one file with its settings, a class and `build`, and a line in `MODELS`."""

from deformable_detr.models.deformable import DeformableDETR, DeformableDETRConfig, build
from deformable_detr.models.interface import DetectionModel, ModelConfig, ModelKind, Models, interface_of

MODELS = Models(
    deformable_detr=ModelKind(DeformableDETRConfig, DeformableDETR, build),
)
"""Networks that checkpoints, settings and recipes name."""

__all__ = [
    "MODELS",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DetectionModel",
    "ModelConfig",
    "ModelKind",
    "Models",
    "build",
    "interface_of",
]
