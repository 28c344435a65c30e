"""Networks. Each has one file with its settings, its class and `build`, and one line in `MODELS`."""

from deformable_detr.models import dino
from deformable_detr.models.deformable import DeformableDETR, DeformableDETRConfig, build
from deformable_detr.models.dino import DINO, DINOConfig
from deformable_detr.models.interface import DetectionModel, ModelConfig, ModelKind, Models, interface_of

MODELS = Models(
    deformable_detr=ModelKind(DeformableDETRConfig, DeformableDETR, build),
    dino=ModelKind(DINOConfig, DINO, dino.build),
)
"""Networks by the name that checkpoints, settings and recipes give them."""

__all__ = [
    "DINO",
    "MODELS",
    "DINOConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DetectionModel",
    "ModelConfig",
    "ModelKind",
    "Models",
    "build",
    "interface_of",
]
