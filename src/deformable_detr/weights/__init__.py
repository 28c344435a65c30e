"""Checkpoints: reading, writing, downloading and converting weights in our layout and in the published ones."""

from deformable_detr.weights.read import read

__all__ = ["read"]
