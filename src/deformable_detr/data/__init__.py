"""Data sets as classes and samples, whatever files they came from."""

from deformable_detr.data.dataset import DetectionDataset, Problem, Sample, align_classes
from deformable_detr.data.open import list_splits, open_dataset

__all__ = ["DetectionDataset", "Problem", "Sample", "align_classes", "list_splits", "open_dataset"]
