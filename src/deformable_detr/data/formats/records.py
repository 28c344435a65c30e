"""Data sets from records: images with their objects as a reader found them, in the words of the annotations.

Most formats are one list of images, each with a name, perhaps a size, and boxes with the names of their classes. A
reader of such a format makes the records; finding the files, numbering the classes and judging the boxes is done here,
by the same rules for all.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import LARGEST_SIDE, ImageEntry, ObjectTable, assemble, problem_of
from deformable_detr.data.formats.image_names import FoundImages, find_images, folders_within
from deformable_detr.data.formats.parsing import check_class_names, class_name_text, shown, whole_number
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.formats.units import BoxForm
from deformable_detr.data.images import image_size

ONLY_CLASS = "object"
"""Class of all objects where the annotations name none."""


class ObjectRecord(NamedTuple):
    """Object as the annotations describe it."""

    class_name: str | None
    """Name of its class; None for a region to ignore whatever is in it, which becomes a crowd region of each class."""
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


class RecordPart(NamedTuple):
    """Split of a data set whose reader makes records, before it is read."""

    split: str
    """Name of the split, as the data set spells it."""
    where: str
    """Annotation file or folder, for messages."""
    folders: Sequence[Path]
    """Folders that the names of the images may be relative to, the most likely first."""
    read: Callable[[list[Problem]], list[ImageRecord]]
    """Function that reads the images, and adds what is wrong with the file to a list of problems."""


class NamedClasses(NamedTuple):
    """Class list that a data set has."""

    names: Sequence[str]
    """Class names by class id."""
    source: str
    """File that lists them."""


Content = TypeVar("Content")


def read_once(read: Callable[[list[Problem]], Content]) -> Callable[[list[Problem]], Content]:
    """Reader that reads once, and gives the same content with the same problems to whoever asks again.

    What cannot be read raises each time.
    """
    kept: list[tuple[Content, list[Problem]]] = []

    def read_or_kept(problems: list[Problem]) -> Content:
        if not kept:
            found: list[Problem] = []
            kept.append((read(found), found))
        content, found = kept[0]
        problems += found
        return content

    return read_or_kept


def part_loaders(parts: Iterable[RecordPart], source: str) -> SplitLoaders:
    """Splits of a data set whose reader makes records; each is read once, whichever splits are opened.

    Args:
        parts: all splits.
        source: format, for people.
    """
    once = [part._replace(read=read_once(part.read)) for part in parts]
    return name_splits((part.split, partial(load_part, part, once, source)) for part in once)


def load_part(
    part: RecordPart, parts: Sequence[RecordPart], source: str, class_list: NamedClasses | None = None
) -> DetectionDataset:
    """Data set of one split. Without a class list its classes are the names in all splits together, so that every split
    numbers them alike.

    Args:
        part: the split.
        parts: all splits of the data set.
        source: format, for people.
        class_list: class list, if the data set has one.

    Raises:
        DataError: the annotations cannot be read, a class name cannot be used, or no object has a class.
    """
    problems: list[Problem] = []
    records = part.read(problems)
    others = [other.read for other in parts if other is not part]
    return dataset_of(
        records,
        folders=part.folders,
        where=part.where,
        source=f"{source} {part.where}, classes from {class_list.source if class_list else 'the names of its objects'}",
        classes=class_list.names if class_list else names_in_all(records, others),
        class_source=class_list.source if class_list else None,
        problems=problems,
    )


def names_in_all(
    records: Iterable[ImageRecord], others: Iterable[Callable[[list[Problem]], Iterable[ImageRecord]]]
) -> list[str] | None:
    """Class names in the records of a split and in all other splits, in alphabetical order; None if there are none.

    A split that cannot be read is explained when it is read itself, so it is passed over here.

    Args:
        records: images of the split.
        others: readers of the other splits.
    """
    names = {item.class_name for record in records for item in record.objects}
    for read in others:
        try:
            names.update(item.class_name for record in read([]) for item in record.objects)
        except DataError:
            continue
    return sorted(name for name in names if name is not None) or None


def only_class_problem(where: str) -> Problem:
    """Remark that the annotations name no class."""
    text = f"nothing names the class of an object: all are of the one class {ONLY_CLASS!r}"
    return Problem("invalid_annotation", where, text, False)


def size_of(width: object, height: object, where: str) -> tuple[int, int] | None:
    """Annotated size of an image, (width, height); None if either is left out or 0, as some tools write it.

    Raises:
        DataError: it is no size.
    """
    if width in (None, "", "0", 0) or height in (None, "", "0", 0):
        return None
    return checked_size(width, height, where)


def checked_size(width: object, height: object, where: str) -> tuple[int, int]:
    """Size of an image, (width, height), that annotations have.

    Raises:
        DataError: it is no size.
    """
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
    class_source: str | None = None,
    problems: Iterable[Problem] = (),
    given: BoxForm = "corners",
) -> DetectionDataset:
    """Data set of the images and objects that a reader found.

    Images that are missing or cannot be read are left out and reported as fatal; so are objects of unknown classes.
    Boxes that all lie within two pixels are shares of width and height, which is reported.

    Args:
        records: the images in the order of the annotations.
        folders: folders that the names may be relative to, the most likely first.
        where: the annotation file or folder, for messages.
        source: format and files that were read, for people.
        classes: class names by class id; if left out, the names that occur, in alphabetical order.
        class_source: file that lists the classes, for messages; `where` if left out.
        problems: problems that the reader found.
        given: form that the annotations have boxes in; where they have sizes, corners in their place are recognised.

    Raises:
        DataError: a class name cannot be used, or no object has a class.
    """
    found_problems = list(problems)
    names = _class_names(records, classes, class_source or where, found_problems)
    in_pixels = [item.box_xyxy for record in records if not record.in_shares for item in record.objects]
    if are_shares(np.array(in_pixels, dtype=np.float64).reshape(-1, 4)):
        text = "all boxes are of shares of the width and height of their images, not of pixels: read so"
        found_problems.append(Problem("invalid_annotation", where, text, False))
        records = [record._replace(in_shares=True) for record in records]
    entries, rows = _match(records, folders, where, found_problems)
    class_ids: dict[str | None, int] = {name: class_id for class_id, name in enumerate(names)}
    rows = [each for row in rows for each in _of_its_classes(row, names)]
    for _, item, _ in rows:
        if item.class_name not in class_ids:
            text = f"{shown(item.class_name)} is not among the {len(names)} classes of {class_source or where}"
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
    samples, box_problems = assemble(entries, table, lambda row: rows[row][1].where, where=where, given=given)
    if not records:
        found_problems.append(Problem("invalid_annotation", where, "there are no images to read here", True))
    return DetectionDataset(
        classes=names,
        category_ids=tuple(range(1, len(names) + 1)),
        samples=samples,
        problems=(*found_problems, *dict.fromkeys(box_problems)),  # once for a region of all classes
        source=source,
    )


def are_shares(boxes: Float[np.ndarray, "objects 4"]) -> bool:
    """Whether what should be pixels are shares: else every object would be within the first two pixels of its image."""
    return bool(((boxes >= -1) & (boxes <= 2)).all() and ((boxes > 0) & (boxes < 1)).any())


_Row = tuple[int, ObjectRecord, tuple[float, ...]]
"""Object with the index of its image before it and its box in pixels after it."""


def _of_its_classes(row: _Row, names: Sequence[str]) -> list[_Row]:
    """Object itself, or a region that is to be ignored for every class: evaluation looks at one class at a time."""
    image_index, item, box = row
    if item.class_name is not None:
        return [row]
    return [(image_index, item._replace(class_name=name, is_crowd=True), box) for name in names]


def _class_names(
    records: Sequence[ImageRecord], classes: Sequence[str] | None, where: str, problems: Sequence[Problem]
) -> tuple[str, ...]:
    if classes is not None:
        names = tuple(classes)
    else:
        first_of = {
            item.class_name: item.where
            for record in reversed(records)
            for item in reversed(record.objects)
            if item.class_name is not None
        }
        for name, place in first_of.items():
            class_name_text(name, place, "the class name")
        names = tuple(sorted(first_of))
    if not names:
        if fatal := [problem for problem in problems if problem.fatal]:  # Its own reason, where no object can be read.
            more = f" (and {len(fatal) - 1} more like this)" if len(fatal) > 1 else ""
            raise DataError(f"{fatal[0].where}: {fatal[0].message}{more}")
        raise DataError(f"{where}: no object has a class, so there is nothing to detect")
    check_class_names(names, where)
    return names


def _match(
    records: Sequence[ImageRecord], folders: Sequence[Path], where: str, problems: list[Problem]
) -> tuple[list[ImageEntry], list[_Row]]:
    """Images whose file exists and whose size is known, and their objects."""
    unknown = [record for record in records if record.path is None]
    found = images_of_records(unknown, folders, where)
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


def images_of_records(records: Sequence[ImageRecord], folders: Sequence[Path], where: str) -> FoundImages:
    """Image files of records by their names: in one of the folders, else in a folder of any name within them.

    Folders of masks and labels, by their names, come last.

    Raises:
        DataError: two folders have different images of these names, and no size says which are meant.
    """
    names = [record.name for record in records]
    sizes_wh = [record.size_wh for record in records]

    def place(position: int) -> str:
        return records[position].where

    found = find_images(names, folders, place, where, sizes_wh=sizes_wh)
    if not names or any(found.paths):
        return found
    of_labels = folders_within(folders, of_labels=True)
    elsewhere = find_images(names, folders_within(folders), place, where, sizes_wh=sizes_wh, fallback=of_labels)
    return elsewhere if any(elsewhere.paths) else found
