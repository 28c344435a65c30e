"""Boxes of COCO annotations: those of `bbox`, or, where there is none, the boxes around the segmentations.

A segmentation is a list of polygons, or a mask as run lengths: the numbers of pixels outside and inside, in turn, down
one column after another. Run lengths may be a list, or packed into text as pycocotools does.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import json_value
from deformable_detr.data.formats.masks import box_around_mask, run_lengths
from deformable_detr.data.formats.parsing import real_number, shown, whole_number

_LeftTopSize = tuple[float, float, float, float]
_FEWEST_NUMBERS = 6  # of a polygon, which has three corners
_LARGEST_RUN = 2**48


class CocoBoxes(NamedTuple):
    """Boxes of all annotations."""

    boxes_xyxy: Float[np.ndarray, "objects 4"]
    """Left, top, right, bottom in pixels; NaN where there is a fault."""
    is_around: Bool[np.ndarray, "objects"]
    """Whether each box was taken around a segmentation, because there is no usable bbox."""
    faults: dict[int, DataError]
    """Errors of annotations that have no box, by position."""


def read_boxes(
    items: Sequence[dict[str, Any]], sizes_wh: Sequence[tuple[int, int] | None], place: Callable[[int], str]
) -> CocoBoxes:
    """Boxes of all annotations.

    Args:
        items: the annotations.
        sizes_wh: size of the image of each annotation as far as it is known, which a mask must have.
        place: place of an annotation in messages, by its position.
    """
    boxes = np.full((len(items), 4), np.nan)
    is_around = np.zeros(len(items), dtype=bool)
    faults: dict[int, DataError] = {}
    plain = _plain_boxes(items)
    if plain is not None:
        boxes = plain
        # Only what has no extent needs another look.
        positions = np.flatnonzero((plain[:, 2:] == 0).any(axis=1)).tolist()
    else:
        positions = list(range(len(items)))
    for position in positions:
        try:
            boxes[position], is_around[position] = _box_of(items[position], sizes_wh[position], place(position))
        except DataError as error:
            faults[position] = error
            boxes[position] = np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        boxes[:, 2:] += boxes[:, :2]
    return CocoBoxes(boxes, is_around, faults)


def _plain_boxes(items: Sequence[dict[str, Any]]) -> Float[np.ndarray, "objects 4"] | None:
    """Left, top, width and height of all annotations at once; None if any is something else than four numbers."""
    boxes = [item.get("bbox") for item in items]
    if not all(type(box) is list and len(box) == 4 for box in boxes):
        return None
    numbers = list(chain.from_iterable(box for box in boxes if box is not None))
    if not set(map(type, numbers)) <= {int, float}:
        return None
    try:
        return np.array(numbers, dtype=np.float64).reshape(-1, 4)
    except OverflowError:
        return None


def _box_of(item: dict[str, Any], size_wh: tuple[int, int] | None, where: str) -> tuple[_LeftTopSize, bool]:
    """Left, top, width and height of an annotation, and whether they are those around its segmentation.

    Raises:
        DataError: there is no box, neither given nor around anything.
    """
    box = _given_box(item.get("bbox"), where)
    if box is not None and box[2] != 0 and box[3] != 0:
        return box, False
    segmentation = item.get("segmentation")
    try:
        around = None if segmentation in (None, [], {}, "", [[]]) else _box_around(segmentation, size_wh, where)
    except DataError:
        if box is None:
            raise
        around = None
    if around is not None and around[2] > 0 and around[3] > 0:
        return around, True
    if box is None:
        raise DataError(f"{where}: it has no bbox, and no segmentation to take a box from; give one or leave it out")
    return box, False  # as it is; boxes without extent are dropped and reported for all formats


def _given_box(value: object, where: str) -> _LeftTopSize | None:
    """Left, top, width and height of a bbox; None if there is none."""
    if isinstance(value, str) and value.strip():
        with suppress(ValueError):  # said below
            value = json_value(value)
    if value in (None, [], {}, ""):
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"{where}: bbox must be [left, top, width, height], not {shown(value)}")
    if all(one is None or one != one for one in value):
        return None
    left, top, width, height = (real_number(one, where, "each value of bbox") for one in value)
    return left, top, width, height


def _box_around(segmentation: object, size_wh: tuple[int, int] | None, where: str) -> _LeftTopSize | None:
    """Left, top, width and height of the box around a segmentation; None if the segmentation is empty."""
    if isinstance(segmentation, dict):
        return _box_around_mask(segmentation, size_wh, where)
    if not isinstance(segmentation, list):
        raise DataError(f"{where}: segmentation must be polygons or a mask, not {shown(segmentation)}")
    nested = [part for part in segmentation if isinstance(part, list)]
    if nested and len(nested) < len(segmentation):
        raise DataError(f"{where}: segmentation must be a list of polygons, not {shown(segmentation)}")
    numbers: list[float] = []
    for part in nested or [segmentation]:
        if len(part) % 2:
            raise DataError(f"{where}: a polygon must have x and y in turn, and one has {len(part)} numbers")
        numbers += [real_number(one, where, "each value of a polygon") for one in part]
    if len(numbers) < _FEWEST_NUMBERS:
        raise DataError(f"{where}: a polygon must have at least three corners, not the {len(numbers)} numbers here")
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{where}: a polygon has a coordinate that is not a finite number")
    left, top = min(numbers[::2]), min(numbers[1::2])
    return left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top


def _box_around_mask(mask: dict[Any, Any], size_wh: tuple[int, int] | None, where: str) -> _LeftTopSize | None:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        raise DataError(f"{where}: a mask must have its size, [height, width], not {shown(size)}")
    height, width = (whole_number(one, where, "each value of a mask's size") for one in size)
    if size_wh is not None and (width, height) != size_wh:
        raise DataError(
            f"{where}: its mask has {width} x {height} pixels, and its image has {size_wh[0]} x {size_wh[1]}"
        )
    if isinstance(counts, str):
        try:
            runs = run_lengths(counts)
        except ValueError as error:
            raise DataError(f"{where}: {error}: {shown(counts)}") from error
    elif isinstance(counts, list):
        runs = [whole_number(one, where, "each run length of a mask") for one in counts]
    else:
        raise DataError(f"{where}: a mask must have run lengths, not {shown(counts)}")
    if height < 1 or width < 1 or any(not 0 <= run <= _LARGEST_RUN for run in runs) or sum(runs) != height * width:
        total = sum(runs)
        raise DataError(f"{where}: the run lengths of its mask add up to {total}, and it has {width} x {height} pixels")
    box = box_around_mask(runs, height)
    return None if box is None else (box[0], box[1], box[2] - box[0], box[3] - box[1])
