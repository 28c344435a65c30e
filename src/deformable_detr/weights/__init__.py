"""Weights in every published layout, from wherever they are, as a Checkpoint; and back."""

from deformable_detr.weights.read import read

__all__ = ["read"]
