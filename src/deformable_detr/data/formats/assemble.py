"""Samples from the images and objects that a reader found; all rules for bad boxes are here.

    not finite, or negative width or height   fatal
    no width or height left in 32 bits        dropped, reported
    wholly outside the image                  fatal
    partly outside                            clipped, reported
    equal to another of its class and image   kept, reported
    all in another unit or form               fatal, see `units`

Samples are made without the fatal boxes, so that a report can go on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Problem, ProblemKind, Sample
from deformable_detr.data.formats.units import BoxForm, check_units

# Share of a side by which a box may reach past its image without a report: coordinates rounded to five places do.
_ROUNDING = 1e-5

LARGEST_SIDE = 1_000_000
"""Largest width and height of an image in pixels; an annotation with a larger one is wrong."""


class ImageEntry(NamedTuple):
    """Image as the source lists it."""

    path: Path
    """Image file."""
    size_wh: tuple[int, int]
    """Width and height in pixels."""
    image_id: int
    """Id of the image in the source, or its number from 1."""


class ObjectTable(NamedTuple):
    """Table of all objects of a data set, as parallel columns in the source's order."""

    image_indices: Int[np.ndarray, "objects"]
    """Position of each object's image among the images, from 0."""
    boxes_xyxy: Float[np.ndarray, "objects 4"]
    """Left, top, right, bottom in pixels, as the source has them."""
    class_ids: Int[np.ndarray, "objects"]
    """Class ids, from 0."""
    is_crowd: Bool[np.ndarray, "objects"]
    """Whether each object is a region of many."""
    areas: Float[np.ndarray, "objects"]
    """Areas in square pixels; NaN where the source gives none, which becomes width x height."""
    object_ids: Int[np.ndarray, "objects"]
    """Annotation ids of the source, or numbers from 1."""

    def select(self, keep: Bool[np.ndarray, "objects"] | Int[np.ndarray, "kept"]) -> "ObjectTable":
        """Table of the rows that `keep` selects, by numpy's indexing."""
        return ObjectTable(*(column[keep] for column in self))


def assemble(
    images: Sequence[ImageEntry],
    objects: ObjectTable,
    name_object: Callable[[int], str],
    *,
    where: str,
    given: BoxForm | None = None,
) -> tuple[list[Sample], list[Problem]]:
    """Samples in the order of the images, and the problems of their boxes.

    Args:
        images: all images.
        objects: all objects.
        name_object: name of an object in messages, by its row in `objects`.
        where: file or folder of the annotations, for what is said of all boxes together.
        given: form of the boxes in the source, see `check_units`.
    """
    sizes_wh = np.array([entry.size_wh for entry in images], dtype=np.float64).reshape(-1, 2)
    boxes = objects.boxes_xyxy
    limits = np.tile(sizes_wh[objects.image_indices], 2)
    clipped = np.clip(boxes, 0.0, limits)

    # Every box belongs to exactly one of these kinds. Only sound boxes go on; how far they were cut is measured.
    finite = np.isfinite(boxes).all(axis=1)
    x1, y1, x2, y2 = boxes.T
    negative = finite & ((x2 < x1) | (y2 < y1))
    empty = finite & ~negative & _is_empty(boxes)
    outside = finite & ~negative & ~empty & _is_empty(clipped)
    sound = finite & ~negative & ~empty & ~outside
    reach = np.zeros(len(boxes))
    reach[sound] = (np.abs(boxes[sound] - clipped[sound]) / limits[sound]).max(axis=1)

    problems = check_units(boxes, limits, given, where)

    def report(rows: Bool[np.ndarray, "objects"], kind: ProblemKind, fault: str, fatal: bool) -> None:
        for row in np.flatnonzero(rows).tolist():
            size_wh = images[objects.image_indices[row]].size_wh
            problems.append(Problem(kind, name_object(row), _box_message(boxes[row], fault, size_wh), fatal))

    report(~finite, "invalid_box", "has a coordinate that is not a finite number", True)
    report(negative, "invalid_box", "has a negative width or height", True)
    report(outside, "outside_box", "lies outside its image", True)
    report(empty, "degenerate_box", "has no width or height: dropped", False)
    report(reach > _ROUNDING, "clipped_box", "reaches past its image: clipped", False)

    # Sorted by image, as `_split_by_image` needs them; stable, so that objects keep the source's order.
    rows = np.flatnonzero(sound)
    rows = rows[np.argsort(objects.image_indices[rows], kind="stable")]
    kept = objects.select(rows)._replace(boxes_xyxy=clipped[rows])
    twins = np.zeros(len(boxes), dtype=bool)
    twins[rows[_repeats(kept)]] = True
    report(twins, "duplicate_box", "repeats another box of its class: kept", False)

    # Areas that the source does not give, or gives as nonsense, follow from the box after the cut.
    width, height = (kept.boxes_xyxy[:, 2:] - kept.boxes_xyxy[:, :2]).T
    kept = kept._replace(areas=np.where(np.isfinite(kept.areas) & (kept.areas >= 0), kept.areas, width * height))
    return _split_by_image(images, kept), problems


def _is_empty(boxes_xyxy: Float[np.ndarray, "objects 4"]) -> Bool[np.ndarray, "objects"]:
    """Mask of the boxes that have no extent in float32, which training uses."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = boxes_xyxy.astype(np.float32)
    return (single[:, 2] <= single[:, 0]) | (single[:, 3] <= single[:, 1])


def _repeats(objects: ObjectTable) -> Int[np.ndarray, "repeats"]:
    """Rows with the same image, class and box as an earlier row."""
    columns = (*objects.boxes_xyxy.T, objects.class_ids, objects.image_indices)
    order = np.lexsort(columns)
    equal = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        in_order = column[order]
        equal &= in_order[1:] == in_order[:-1]
    return np.sort(order[1:][equal])


def _split_by_image(images: Sequence[ImageEntry], objects: ObjectTable) -> list[Sample]:
    """One sample per image from rows sorted by image."""
    ends = np.cumsum(np.bincount(objects.image_indices, minlength=len(images))).tolist()
    object_ids = objects.object_ids.tolist()
    samples = []
    start = 0
    for entry, end in zip(images, ends, strict=True):
        samples.append(
            Sample(
                path=entry.path,
                size_wh=entry.size_wh,
                boxes_xyxy=objects.boxes_xyxy[start:end],
                class_ids=objects.class_ids[start:end],
                is_crowd=objects.is_crowd[start:end],
                areas=objects.areas[start:end],
                image_id=entry.image_id,
                object_ids=tuple(object_ids[start:end]),
            )
        )
        start = end
    return samples


def _box_message(box_xyxy: Float[np.ndarray, "4"], fault: str, size_wh: tuple[int, int]) -> str:
    x1, y1, x2, y2 = (f"{value:.7g}" for value in box_xyxy.tolist())
    return f"the box from ({x1}, {y1}) to ({x2}, {y2}) {fault}; the image is {size_wh[0]} x {size_wh[1]}"


def problem_of(error: DataError | ValueError, where: Path | str, kind: ProblemKind) -> Problem:
    """Fatal problem for an error about a file or a place in it, which is named once."""
    message = str(error).removeprefix(str(where)).lstrip(":, ")
    return Problem(kind, str(where), message, True)


def unannotated(images: Sequence[str], num_images: int, where: str, annotation: str) -> list[Problem]:
    """Problems of images without an annotation file; a fatal one if they are more than half of all images."""
    problems = [
        Problem("unannotated_image", image, f"has no {annotation} file: taken as an image without objects", False)
        for image in images
    ]
    if 2 * len(images) > num_images:
        text = f"{len(images)} of {num_images} images have no {annotation} file; are the annotations elsewhere?"
        problems.insert(0, Problem("unannotated_image", where, text, True))
    return problems
