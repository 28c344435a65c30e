"""Networks. Each has one file with its settings, its class and `build`, and one line in `MODELS`."""

from deformable_detr.models.deformable import DeformableDETR, DeformableDETRConfig, build
from deformable_detr.models.detr import DETR, DETRConfig
from deformable_detr.models.detr import build as build_detr
from deformable_detr.models.dino import DINO, DINOConfig
from deformable_detr.models.dino import build as build_dino
from deformable_detr.models.interface import DetectionModel, ModelConfig, ModelKind, Models, interface_of

MODELS = Models(
    deformable_detr=ModelKind(DeformableDETRConfig, DeformableDETR, build),
    detr=ModelKind(DETRConfig, DETR, build_detr),
    dino=ModelKind(DINOConfig, DINO, build_dino),
)
"""Networks by the name that checkpoints, settings and recipes give them."""

__all__ = [
    "DETR",
    "DINO",
    "MODELS",
    "DETRConfig",
    "DINOConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DetectionModel",
    "ModelConfig",
    "ModelKind",
    "Models",
    "build",
    "build_detr",
    "build_dino",
    "interface_of",
]
