"""Annotation formats: each module reads and writes one, and they share only the samples."""

from deformable_detr.data.formats import coco, voc, yolo

__all__ = ["coco", "voc", "yolo"]
