"""COCO format: a json per split with `images`, `annotations` and `categories`; boxes are (left, top, width, height).

Categories become classes 0.. in the order of their ids, which are kept, without those that only group others. An
annotation without a bbox has the box around its segmentation. `iscrowd` and `area` are read. Numbers may be in quotes.
Image ids that are other text are replaced by the position of the image, from 1.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import ImageEntry, ObjectTable, assemble, problem_of
from deformable_detr.data.formats.coco_boxes import CocoBoxes, read_boxes
from deformable_detr.data.formats.coco_categories import read_categories
from deformable_detr.data.formats.coco_document import to_document
from deformable_detr.data.formats.coco_layouts import annotation_files
from deformable_detr.data.formats.image_names import find_images, folders_like, usual_folders
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.parsing import name_text, read_json, real_number, shown, whole_number
from deformable_detr.data.formats.records import checked_size
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.formats.writing import Placement, place_image, unique_names, write_in
from deformable_detr.data.images import image_size

LOOKED_FOR = (
    "COCO: annotations/instances_*.json, annotations/*.json, */_annotations.coco.json, coco/*.json, or a *.json with "
    "images, annotations and categories"
)


def find_splits(path: Path, starts: JsonStarts = start_of_json) -> SplitLoaders:
    """COCO splits of a folder or of one json file; empty if there are none."""
    found = annotation_files(path, starts)
    return name_splits((name, partial(load, file, split=name)) for name, file in found)


def load(annotations: Path, *, images: Path | None = None, split: str | None = None) -> DetectionDataset:
    """Data set of one COCO json.

    Images whose file is missing are left out and reported as fatal.

    Args:
        annotations: the json file.
        images: folder that file names are relative to; if left out, the usual places around the json are tried.
        split: name of the split, which may also be the name of the images' folder.

    Raises:
        DataError: the file is not COCO json, or a value in it is of the wrong kind.
    """
    where = str(annotations)
    document = read_json(annotations)
    image_items, annotation_items, category_items = _sections(document, where)
    categories = read_categories(category_items, _used_categories(annotation_items), where)
    entries, keys, problems = _read_images(image_items, annotations, images, split or annotations.stem)
    index_of_category = {category_id: index for index, category_id in enumerate(categories.ids)}
    objects, object_problems = _read_objects(annotation_items, keys, entries, index_of_category, where)

    # Objects of images that were left out go with them.
    present = [entry for entry in entries if entry is not None]
    moved = np.cumsum([entry is not None for entry in entries], dtype=np.int64) - 1
    there = np.array([entry is not None for entry in entries], dtype=bool)[objects.image_indices]
    objects = objects.select(there)
    objects = objects._replace(image_indices=moved[objects.image_indices])

    def name_object(row: int) -> str:
        entry = present[objects.image_indices[row]]
        return f"{where}: annotation {objects.object_ids[row]} of {entry.path.name}"

    samples, box_problems = assemble(present, objects, name_object, where=where, given="size")
    return DetectionDataset(
        classes=categories.names,
        category_ids=categories.ids,
        samples=samples,
        problems=(*categories.problems, *problems, *object_problems, *box_problems),
        source=f"COCO {annotations}",
    )


def _sections(document: object, where: str) -> tuple[list[Any], list[Any], list[Any]]:
    if not isinstance(document, dict):
        raise DataError(f"{where}: not COCO annotations: the file holds a {type(document).__name__}, not an object")
    sections = []
    for key in ("images", "annotations", "categories"):
        section = document.get(key)
        if not isinstance(section, list):
            fault = f"{key!r} is {shown(section)}, not a list" if key in document else f"it has no {key!r}"
            raise DataError(f"{where}: not COCO annotations: {fault}")
        for position, item in enumerate(section):
            if type(item) is not dict:
                raise DataError(f"{where}: {key}[{position}] is {shown(item)}, not an object")
        sections.append(section)
    return sections[0], sections[1], sections[2]


def _used_categories(items: list[dict[str, Any]]) -> set[int]:
    """Category ids of the annotations; what is no id is reported with its annotation."""
    used = set()
    for value in {value for item in items if isinstance(value := item.get("category_id"), int | float | str)}:
        try:
            used.add(whole_number(value, "", ""))
        except DataError:
            continue
    return used


def _read_images(
    items: list[dict[str, Any]], annotations: Path, folder: Path | None, split: str
) -> tuple[list[ImageEntry | None], list[int | str], list[Problem]]:
    """Entries of all images, None for unusable ones; the ids that annotations use for them; and the problems."""
    where = str(annotations)
    names = [
        name_text(item.get("file_name"), f"{where}: images[{position}]", "the file_name")
        for position, item in enumerate(items)
    ]
    keys = [_image_key(item.get("id"), f"{where}: images[{position}]") for position, item in enumerate(items)]
    _refuse_repeated_ids(keys, where)
    problems = []
    if any(isinstance(key, str) for key in keys):
        text = "image ids are text; the images are numbered from 1 instead"
        problems.append(Problem("invalid_annotation", where, text, False))
        numbers = list(range(1, len(keys) + 1))
    else:
        numbers = [key for key in keys if isinstance(key, int)]

    if not names:
        problems.append(Problem("invalid_annotation", where, "'images' is empty", True))
    sizes_wh = [_annotated_size(item, f"{where}: images[{position}]") for position, item in enumerate(items)]
    found = find_images(
        names,
        usual_folders(annotations, split) if folder is None else [folder],
        lambda position: f"{where}: images[{position}]",
        where,
        sizes_wh=sizes_wh,
        fallback=folders_like(annotations, split) if folder is None else [],
    )
    problems += found.problems
    entries: list[ImageEntry | None] = []
    for path, size_wh, number in zip(found.paths, sizes_wh, numbers, strict=True):
        if path is not None and size_wh is None:
            try:
                size_wh = image_size(path)
            except DataError as error:
                problems.append(problem_of(error, path, "unreadable_image"))
        entries.append(ImageEntry(path, size_wh, number) if path and size_wh else None)
    return entries, keys, problems


def _image_key(value: object, where: str) -> int | str:
    """Key that image ids are compared by: the integer if the id is one, else its text."""
    if type(value) is int and -(2**63) < value < 2**63:
        return value
    if isinstance(value, str) and value.strip():
        try:
            return whole_number(value, where, "the image id")
        except DataError:
            return name_text(value, where, "the image id")
    return whole_number(value, where, "the image id")


def _refuse_repeated_ids(keys: Sequence[int | str], where: str) -> None:
    if len(set(keys)) == len(keys):
        return
    seen = set()
    for position, key in enumerate(keys):
        if key in seen:
            raise DataError(f"{where}: images[{position}]: the image id {shown(key)} is used twice")
        seen.add(key)


def _annotated_size(item: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Size of an image in the json, (width, height); None if either is left out."""
    width, height = item.get("width"), item.get("height")
    if width is None or height is None:
        return None
    return checked_size(width, height, where)


def _read_objects(
    items: list[dict[str, Any]],
    image_keys: Sequence[int | str],
    entries: Sequence[ImageEntry | None],
    class_of: dict[int, int],
    where: str,
) -> tuple[ObjectTable, list[Problem]]:
    """Table of all annotations that can be used; the others as fatal problems."""

    def place(position: int) -> str:
        label = shown(items[position]["id"]) if "id" in items[position] else f"number {position + 1}"
        return f"{where}: annotation {label}"

    index_of_image = {key: index for index, key in enumerate(image_keys)}
    object_ids, problems = _object_ids(items, where)
    image_indices = np.full(len(items), -1, dtype=np.int64)
    class_ids = np.full(len(items), -1, dtype=np.int64)
    is_crowd = np.zeros(len(items), dtype=bool)
    areas = np.full(len(items), np.nan)
    faults: dict[int, DataError] = {}
    for position, item in enumerate(items):
        try:
            image_id, category_id = item.get("image_id"), item.get("category_id")
            if type(image_id) is not int:
                image_id = _image_key(image_id, place(position))
            if type(category_id) is not int:
                category_id = whole_number(category_id, place(position), "category_id")
            crowd, area = item.get("iscrowd", 0), item.get("area")
            is_crowd[position] = (
                crowd == 1 if type(crowd) is int and crowd in (0, 1) else _truth(crowd, place(position))
            )
            areas[position] = np.nan if area is None else real_number(area, place(position), "area")
        except DataError as error:
            faults[position] = error
            continue
        image_index, class_id = index_of_image.get(image_id, -1), class_of.get(category_id, -1)
        if image_index < 0:
            text = f"image_id {shown(image_id)} is not among the images"
            problems.append(Problem("invalid_annotation", place(position), text, True))
        elif class_id < 0:
            text = f"category_id {shown(category_id)} is not among the categories"
            problems.append(Problem("unknown_class", place(position), text, True))
        image_indices[position], class_ids[position] = image_index, class_id

    listed = [entries[index] if index >= 0 else None for index in image_indices.tolist()]
    found = read_boxes(items, [entry.size_wh if entry else None for entry in listed], place)
    # An area of nothing goes with a bbox of nothing.
    areas[found.is_around & (areas <= 0)] = np.nan
    known = (image_indices >= 0) & (class_ids >= 0)
    known[list(found.faults)] = False
    problems += _problems_of(found, found.faults | faults, where)
    table = ObjectTable(image_indices, found.boxes_xyxy, class_ids, is_crowd, areas, object_ids)
    return table.select(known), problems


def _truth(value: object, where: str) -> bool:
    """Truth of `iscrowd`: 0 or 1, also as a float or in quotes; left out is 0."""
    if value is None or isinstance(value, bool):
        return value is True
    if isinstance(value, str | int | float) and value in (0, 1, "0", "1"):
        return value in (1, "1")
    raise DataError(f"{where}: iscrowd must be 0 or 1, not {shown(value)}")


def _problems_of(found: CocoBoxes, faults: dict[int, DataError], where: str) -> list[Problem]:
    """Faults of annotations, and a remark on boxes that were taken around segmentations."""
    problems = [problem_of(faults[position], where, "invalid_annotation") for position in sorted(faults)]
    num_around = int(found.is_around.sum())
    if num_around:
        text = (
            f"{num_around} of {len(found.is_around)} annotations have no bbox, or one without extent: the box around "
            "the segmentation is taken"
        )
        problems.append(Problem("invalid_annotation", where, text, False))
    return problems


def _object_ids(items: list[dict[str, Any]], where: str) -> tuple[Int[np.ndarray, "objects"], list[Problem]]:
    """Annotation ids of the source, or numbers from 1 if any id is missing, is not a number or repeats."""
    ids = [item.get("id") for item in items]
    if len({value for value in ids if type(value) is int and abs(value) < 2**63}) == len(ids):
        return np.array(ids, dtype=np.int64), []
    numbers = np.arange(1, len(ids) + 1, dtype=np.int64)
    if all(value is None for value in ids):
        return numbers, []
    text = "annotation ids are missing, repeated or not numbers; the annotations are numbered from 1 instead"
    return numbers, [Problem("invalid_annotation", where, text, False)]


def save(
    dataset: DetectionDataset,
    folder: Path,
    *,
    split: str = "train",
    images: Placement | None = "copy",
    on_image: Callable[[], object] | None = None,
) -> tuple[Problem, ...]:
    """Write one split as `annotations/<split>.json` and `images/<split>/`.

    Args:
        dataset: the split.
        folder: where to write it.
        split: its name.
        images: copy or link the image files; with None they stay, and the json holds absolute paths.
        on_image: called after each image that is copied or linked.

    Returns:
        Problems for content that the format cannot hold: none.

    Raises:
        OutputError: a file cannot be written.
    """
    names = unique_names(dataset.samples)
    if images is None:
        names = [os.path.abspath(sample.path) for sample in dataset.samples]
    else:
        for sample, name in zip(dataset.samples, names, strict=True):
            place_image(sample.path, folder / "images" / split / name, images)
            if on_image is not None:
                on_image()
    text = json.dumps(to_document(dataset, names), ensure_ascii=False)
    write_in(folder / "annotations", f"{split}.json", text)
    return ()
