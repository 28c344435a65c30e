"""Statistics of a data set: images, objects of each class, sizes of boxes."""

from dataclasses import dataclass

import numpy as np

from deformable_detr.data.dataset import MEDIUM_AREA, SMALL_AREA, DetectionDataset

# Sides of squares, in pixels; each bin is twice as long as the one before.
_SIDES = (8, 16, 32, 64, 128, 256, 512)
SIDE_NAMES = (f"<{_SIDES[0]}", *(str(side) for side in _SIDES[:-1]), f"{_SIDES[-1]}+")
"""Names of the bins of `SplitStatistics.sides`, each by the side that it begins with, in pixels."""


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """Statistics of one split, without what cannot be used; crowd regions are counted apart from boxes of objects."""

    source: str
    """Format and files of the split, for people."""
    images: int
    """Number of images."""
    boxes: int
    """Number of boxes of single objects."""
    crowd_boxes: int
    """Number of crowd regions."""
    images_without_objects: int
    """Number of images without a box of a single object."""
    boxes_per_image: tuple[int, float, int]
    """Fewest, median and most boxes of an image."""
    small: int
    """Number of boxes with an annotated area below `SMALL_AREA`."""
    medium: int
    """Number of boxes with an annotated area from `SMALL_AREA` to below `MEDIUM_AREA`."""
    large: int
    """Number of boxes with an annotated area from `MEDIUM_AREA` on."""
    sides: tuple[int, ...]
    """Number of boxes in each bin of the square root of width x height; `SIDE_NAMES` has the bins."""
    smallest_wh: tuple[int, int]
    """Least width and least height of an image, in pixels, not necessarily of the same image."""
    largest_wh: tuple[int, int]
    """Greatest width and greatest height of an image, in pixels, not necessarily of the same image."""
    boxes_per_class: dict[str, int]
    """Number of boxes of each class, in the order of the classes."""

    @property
    def by_size(self) -> dict[str, int]:
        """Number of small, medium and large boxes, by name."""
        return {"small": self.small, "medium": self.medium, "large": self.large}


def statistics_of(dataset: DetectionDataset) -> SplitStatistics:
    """Statistics of a data set, counted over all its samples."""
    counts = np.array([int((~sample.is_crowd).sum()) for sample in dataset.samples] or [0])
    areas = np.concatenate([np.zeros(0), *(sample.areas[~sample.is_crowd] for sample in dataset.samples)])
    classes = np.concatenate([np.zeros(0, dtype=np.int64), *(s.class_ids[~s.is_crowd] for s in dataset.samples)])
    boxes = np.concatenate([np.zeros((0, 4)), *(s.boxes_xyxy[~s.is_crowd] for s in dataset.samples)])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    sizes_wh = np.array([sample.size_wh for sample in dataset.samples] or [(0, 0)])
    small, up_to_medium = int((areas < SMALL_AREA).sum()), int((areas < MEDIUM_AREA).sum())
    per_class = np.bincount(classes, minlength=len(dataset.classes)).tolist()
    return SplitStatistics(
        source=dataset.source,
        images=len(dataset),
        boxes=len(areas),
        crowd_boxes=dataset.num_objects - len(areas),
        images_without_objects=int((counts == 0).sum()) if len(dataset) else 0,
        boxes_per_image=(int(counts.min()), float(np.median(counts)), int(counts.max())),
        small=small,
        medium=up_to_medium - small,
        large=len(areas) - up_to_medium,
        sides=tuple(np.bincount(np.searchsorted(_SIDES, sides, side="right"), minlength=len(_SIDES) + 1).tolist()),
        smallest_wh=(int(sizes_wh[:, 0].min()), int(sizes_wh[:, 1].min())),
        largest_wh=(int(sizes_wh[:, 0].max()), int(sizes_wh[:, 1].max())),
        boxes_per_class=dict(zip(dataset.classes, per_class, strict=True)),
    )
