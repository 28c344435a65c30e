"""Annotation formats: each module reads and writes one of them, and all share the type of the samples."""

from deformable_detr.data.formats import coco, voc, yolo

__all__ = ["coco", "voc", "yolo"]
