"""Data sets from records: images with their objects as a reader found them, in the words of the annotations.

Most formats are one list of images, each with a name, perhaps a size, and boxes with the names of their classes. A
reader of such a format makes the records; finding the files, numbering the classes and judging the boxes is done here,
by the same rules for all.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import LARGEST_SIDE, ImageEntry, ObjectTable, assemble, problem_of
from deformable_detr.data.formats.image_names import find_images
from deformable_detr.data.formats.parsing import check_class_names, class_name_text, shown, whole_number
from deformable_detr.data.images import image_size


class ObjectRecord(NamedTuple):
    """Object as the annotations describe it."""

    class_name: str
    """Name of its class."""
    box_xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom, in the unit of the image's record."""
    where: str
    """File, and line or number within it, for messages."""
    is_crowd: bool = False
    """Whether it is a region of many objects, or one to ignore."""
    area: float = math.nan
    """Area in square pixels; NaN for width x height."""


class ImageRecord(NamedTuple):
    """Image as the annotations describe it."""

    name: str
    """Name of the file as the annotations have it, with or without folders."""
    where: str
    """File, and line or number within it, for messages."""
    objects: list[ObjectRecord]
    """Objects in the order of the annotations."""
    size_wh: tuple[int, int] | None = None
    """Width and height in pixels; None where the annotations do not say, and the image file does."""
    path: Path | None = None
    """Image file, where the layout alone says which one it is; else it is found by the name."""
    in_shares: bool = False
    """Whether boxes are shares of width and height, not pixels."""


def size_of(width: object, height: object, where: str) -> tuple[int, int] | None:
    """Annotated size of an image, (width, height); None if either is left out or 0, as some tools write it.

    Raises:
        DataError: it is no size.
    """
    if width in (None, "", 0) or height in (None, "", 0):
        return None
    size_wh = whole_number(width, where, "the width"), whole_number(height, where, "the height")
    if not (0 < size_wh[0] <= LARGEST_SIDE and 0 < size_wh[1] <= LARGEST_SIDE):
        raise DataError(f"{where}: an image cannot be {size_wh[0]} x {size_wh[1]} pixels")
    return size_wh


def dataset_of(
    records: Sequence[ImageRecord],
    *,
    folders: Sequence[Path],
    where: str,
    source: str,
    classes: Sequence[str] | None = None,
    problems: Iterable[Problem] = (),
) -> DetectionDataset:
    """Data set of the images and objects that a reader found.

    Images that are missing or cannot be read are left out and reported as fatal; so are objects of unknown classes.

    Args:
        records: the images in the order of the annotations.
        folders: folders that the names may be relative to, the most likely first.
        where: the annotation file or folder, for messages.
        source: format and files that were read, for people.
        classes: class names by class id; if left out, the names that occur, in alphabetical order.
        problems: problems that the reader found.

    Raises:
        DataError: a class name cannot be used, or no object has a class.
    """
    found_problems = list(problems)
    names = _class_names(records, classes, where)
    entries, rows = _match(records, folders, where, found_problems)
    class_ids = {name: class_id for class_id, name in enumerate(names)}
    for _, item, _ in rows:
        if item.class_name not in class_ids:
            text = f"{shown(item.class_name)} is not among the {len(names)} classes of {where}"
            found_problems.append(Problem("unknown_class", item.where, text, True))
    rows = [row for row in rows if row[1].class_name in class_ids]
    boxes = np.array([box for _, _, box in rows], dtype=np.float64).reshape(-1, 4)
    table = ObjectTable(
        np.array([index for index, _, _ in rows], dtype=np.int64),
        boxes,
        np.array([class_ids[item.class_name] for _, item, _ in rows], dtype=np.int64),
        np.array([item.is_crowd for _, item, _ in rows], dtype=bool),
        np.array([item.area for _, item, _ in rows], dtype=np.float64),
        np.arange(1, len(rows) + 1, dtype=np.int64),
    )
    samples, box_problems = assemble(entries, table, lambda row: rows[row][1].where)
    if not records:
        found_problems.append(Problem("invalid_annotation", where, "there are no images to read here", True))
    return DetectionDataset(
        classes=names,
        category_ids=tuple(range(1, len(names) + 1)),
        samples=samples,
        problems=(*found_problems, *box_problems),
        source=source,
    )


_Row = tuple[int, ObjectRecord, tuple[float, ...]]
"""Object with the index of its image before it and its box in pixels after it."""


def _class_names(records: Sequence[ImageRecord], classes: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if classes is not None:
        names = tuple(classes)
    else:
        first_of = {item.class_name: item.where for record in reversed(records) for item in reversed(record.objects)}
        for name, place in first_of.items():
            class_name_text(name, place, "the class name")
        names = tuple(sorted(first_of))
    if not names:
        raise DataError(f"{where}: no object has a class, so there is nothing to detect")
    check_class_names(names, where)
    return names


def _match(
    records: Sequence[ImageRecord], folders: Sequence[Path], where: str, problems: list[Problem]
) -> tuple[list[ImageEntry], list[_Row]]:
    """Images whose file exists and whose size is known, and their objects."""
    unknown = [record for record in records if record.path is None]
    found = find_images(
        [record.name for record in unknown],
        folders,
        lambda position: unknown[position].where,
        where,
        sizes_wh=[record.size_wh for record in unknown],
    )
    problems += found.problems
    found_paths = iter(found.paths)
    entries: list[ImageEntry] = []
    rows: list[_Row] = []
    for record in records:
        path = record.path or next(found_paths)
        if path is None:
            continue
        size_wh = record.size_wh
        if size_wh is None:
            try:
                size_wh = image_size(path)
            except DataError as error:
                problems.append(problem_of(error, path, "unreadable_image"))
                continue
        scale = (*size_wh, *size_wh) if record.in_shares else (1, 1, 1, 1)
        for item in record.objects:
            box = tuple(value * factor for value, factor in zip(item.box_xyxy, scale, strict=True))
            rows.append((len(entries), item, box))
        entries.append(ImageEntry(path, size_wh, len(entries) + 1))
    return entries, rows
