"""Data sets as classes and samples, whatever files they came from."""

from deformable_detr.data.convert import DataConversion, convert_dataset
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample, align_classes
from deformable_detr.data.open import list_splits, open_dataset

__all__ = [
    "DataConversion",
    "DetectionDataset",
    "Problem",
    "Sample",
    "align_classes",
    "convert_dataset",
    "list_splits",
    "open_dataset",
]
