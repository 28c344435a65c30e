"""Epochs and seconds that DETR, Deformable DETR and Faster R-CNN need on a small task."""
