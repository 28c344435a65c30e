"""Annotation formats: each module reads one of them, COCO, VOC and YOLO are written, too, and all share one type."""

from deformable_detr.data.formats import coco, voc, yolo

__all__ = ["coco", "voc", "yolo"]
