"""What a data set holds, in numbers: images, objects of each class, sizes of boxes."""

from typing import NamedTuple

import numpy as np

from deformable_detr.data.dataset import MEDIUM_AREA, SMALL_AREA, DetectionDataset

# Sides of squares, in pixels; each bin is twice as long as the one before.
_SIDES = (8, 16, 32, 64, 128, 256, 512)
SIDE_NAMES = (f"<{_SIDES[0]}", *(str(side) for side in _SIDES[:-1]), f"{_SIDES[-1]}+")
"""The bins of `SplitStatistics.sides`, each by the side it begins with."""


class SplitStatistics(NamedTuple):
    """One split. Crowd regions are no objects here."""

    images: int
    images_without_objects: int
    objects: int
    crowd_regions: int
    objects_per_image: tuple[int, float, int]
    """Fewest, median, most."""
    smallest_wh: tuple[int, int]
    """Least width and least height of an image, in pixels, not necessarily of the same one."""
    largest_wh: tuple[int, int]
    per_class: dict[str, int]
    by_size: dict[str, int]
    """COCO's small, medium and large."""
    sides: list[int]
    """Objects by the square root of width x height; see `SIDE_NAMES`."""


def statistics_of(dataset: DetectionDataset) -> SplitStatistics:
    """Count what is there."""
    counts = np.array([int((~sample.is_crowd).sum()) for sample in dataset.samples] or [0])
    areas = np.concatenate([np.zeros(0), *(sample.areas[~sample.is_crowd] for sample in dataset.samples)])
    classes = np.concatenate([np.zeros(0, dtype=np.int64), *(s.class_ids[~s.is_crowd] for s in dataset.samples)])
    boxes = np.concatenate([np.zeros((0, 4)), *(s.boxes_xyxy[~s.is_crowd] for s in dataset.samples)])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    sizes_wh = np.array([sample.size_wh for sample in dataset.samples] or [(0, 0)])
    small, up_to_medium = int((areas < SMALL_AREA).sum()), int((areas < MEDIUM_AREA).sum())
    bins = np.bincount(np.searchsorted(_SIDES, sides, side="right"), minlength=len(_SIDES) + 1)
    return SplitStatistics(
        images=len(dataset),
        images_without_objects=int((counts == 0).sum()) if len(dataset) else 0,
        objects=len(areas),
        crowd_regions=dataset.num_objects - len(areas),
        objects_per_image=(int(counts.min()), float(np.median(counts)), int(counts.max())),
        smallest_wh=(int(sizes_wh[:, 0].min()), int(sizes_wh[:, 1].min())),
        largest_wh=(int(sizes_wh[:, 0].max()), int(sizes_wh[:, 1].max())),
        per_class=dict(
            zip(dataset.classes, np.bincount(classes, minlength=len(dataset.classes)).tolist(), strict=True)
        ),
        by_size={"small": small, "medium": up_to_medium - small, "large": len(areas) - up_to_medium},
        sides=bins.tolist(),
    )
