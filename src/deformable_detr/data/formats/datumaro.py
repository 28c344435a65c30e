"""Datumaro format: a json per split with categories and items, each with its image and annotations.

Boxes are (left, top, width, height) in pixels; polygons and masks become the box around them. Those of one group and
label are the parts of one object, and where the group has boxes, they belong to those. `is_crowd` is read. Other
shapes, and labels of whole images, are counted and left out.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.masks import box_around_mask, run_lengths
from deformable_detr.data.formats.parsing import name_text, read_json, real_number, shown, whole_number
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, dataset_of, size_of
from deformable_detr.data.formats.shapes import Box, box_around_all, box_around_flat
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.images import list_images

LOOKED_FOR = "Datumaro: annotations/<split>.json with categories and items, and images/<split>/ or images/"

_MOST_FILES = 100  # one for each split; tiles and frames have thousands
_WHOLE_IMAGE = ("label", "caption", "hash_key", "feature_vector", "tabular")


def find_splits(path: Path, starts: JsonStarts = start_of_json) -> SplitLoaders:
    """Datumaro splits of a folder or of one json file; empty if there are none."""
    if path.is_file():
        files = [path] if path.suffix.lower() == ".json" else []
    else:
        files = sorted((path / "annotations").glob("*.json"))[:_MOST_FILES]
    files = [file for file in files if starts(file).kind == "datumaro"]
    uses_of = cache(_uses_of)
    return name_splits((file.stem, partial(_load_file, file, files, uses_of)) for file in files)


def _load_file(file: Path, files: Sequence[Path], uses_of: Callable[[Path], "_Uses"]) -> DetectionDataset:
    """Data set of one json.

    Args:
        file: the json.
        files: those of all splits.
        uses_of: finds the labels that objects of a file have.

    Raises:
        DataError: the file cannot be read or is something else.
    """
    where = str(file)
    document = read_json(file)
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{where}: not Datumaro annotations: 'items' is {shown(items)}, not a list")
    labels = _labels_of(document, where)
    reader = _Reader([label.name for label in labels])
    records = []
    images = _ImagesById(file)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise DataError(f"{where}: item {number} is {shown(item)}, not an object")
        place = f"{where}: item {shown(item['id'])}" if "id" in item else f"{where}: item {number}"
        records.append(_record_of(item, place, images, reader))
    used = {item.class_name for record in records for item in record.objects}
    groups = _only_group(labels, used, (uses_of(other) for other in files if other != file))
    if groups:
        text = f"the label {listed([shown(name) for name in groups], 5)} only groups others: left out"
        reader.problems.append(Problem("unused_class", where, text, False))
    return dataset_of(
        records,
        folders=_folders_of(file),
        where=where,
        source=f"DATUMARO {file}",
        classes=[label.name for label in labels if label.name not in groups],
        problems=[*reader.problems, *reader.remarks(where)],
    )


class _ItemLabel(NamedTuple):
    """Label of the categories, with the name of the one it belongs to, if any."""

    name: str
    own: str
    parent: str


def _labels_of(document: dict[str, Any], where: str) -> list[_ItemLabel]:
    """Labels in their order; one whose name occurs under two parents gets the parent's name before its own."""
    categories = document.get("categories")
    section = categories.get("label") if isinstance(categories, dict) else None
    labels = section.get("labels") if isinstance(section, dict) else None
    if not isinstance(labels, list) or not labels:
        raise DataError(f"{where}: its categories name no labels, so there is nothing to detect")
    pairs = []
    for number, label in enumerate(labels):
        place = f"{where}: label {number}"
        if not isinstance(label, dict):
            raise DataError(f"{place} is {shown(label)}, not an object")
        parent = label.get("parent") or ""
        pairs.append(
            (name_text(label.get("name"), place, "the name"), name_text(parent, place, "the parent") if parent else "")
        )
    count = Counter(own for own, _ in pairs)
    return [_ItemLabel(f"{parent}/{own}" if count[own] > 1 and parent else own, own, parent) for own, parent in pairs]


class _Uses(NamedTuple):
    """Labels of a file, and the numbers of those that its objects have; both empty if it cannot be read."""

    names: list[str]
    numbers: set[int]


def _uses_of(file: Path) -> _Uses:
    try:
        document = read_json(file)
        return _Uses([label.name for label in _labels_of(document, str(file))], _label_ids(document))
    except DataError:
        return _Uses([], set())  # reported when that split is read


def _only_group(labels: list[_ItemLabel], used: set[str | None], others: Iterable[_Uses]) -> list[str]:
    """Names of labels that are parents of others and have no object of their own in any split."""
    parents = {label.parent for label in labels}
    groups = [label.name for label in labels if label.own in parents and label.name not in used]
    for names, numbers in others if groups else ():
        groups = [name for name in groups if name not in names or names.index(name) not in numbers]
    return groups if len(groups) < len(labels) else []


def _label_ids(document: dict[str, Any]) -> set[int]:
    """Numbers of all labels that annotations have."""
    items = document.get("items")
    found = set()
    for item in items if isinstance(items, list) else ():
        annotations = item.get("annotations") if isinstance(item, dict) else None
        for annotation in annotations if isinstance(annotations, list) else ():
            number = annotation.get("label_id") if isinstance(annotation, dict) else None
            if type(number) is int and annotation.get("type") not in _WHOLE_IMAGE:
                found.add(number)
    return found


def _folders_of(file: Path) -> list[Path]:
    """Folders that names of images are relative to."""
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    return [root / "images" / file.stem, root / "images", root / file.stem, root, file.parent]


class _ImagesById:
    """Images by the id of their item, for items that do not name a file; listed when first needed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Path] | None = None

    def image_of(self, item_id: str) -> Path | None:
        if self._found is None:
            self._found = {}
            for folder in _folders_of(self._file)[:2]:
                for image in list_images(folder) if folder.is_dir() else ():
                    name = os.path.splitext(image.relative_to(folder).as_posix())[0]
                    self._found.setdefault(name, image)
        return self._found.get(item_id)


def _record_of(item: dict[str, Any], where: str, images: _ImagesById, reader: "_Reader") -> ImageRecord:
    media: dict[str, Any] = next((item[key] for key in ("image", "media") if isinstance(item.get(key), dict)), {})
    name, path, size_wh = media.get("path"), None, None
    if not isinstance(name, str) or not name.strip():
        name = name_text(item.get("id"), where, "the id of an item without the path of an image")
        path = images.image_of(name)
    size = media.get("size")
    if isinstance(size, list) and len(size) == 2:
        size_wh = size_of(size[1], size[0], where)  # height first
    annotations = item.get("annotations")
    if not isinstance(annotations, list):
        raise DataError(f"{where}: its annotations are {shown(annotations)}, not a list")
    objects = list(reader.objects_of(annotations, where))
    return ImageRecord(name_text(name, where, "the path of the image"), where, objects, size_wh, path)


class _Shape(NamedTuple):
    """Annotation with a box: its own, or that around it."""

    label: str
    box: Box
    is_crowd: bool
    is_box: bool
    where: str


class _Reader:
    """Reader of annotations, which counts what it leaves out."""

    def __init__(self, labels: list[str]) -> None:
        self._labels = labels
        self._left_out: Counter[str] = Counter()
        self._within_boxes = 0
        self.problems: list[Problem] = []

    def objects_of(self, annotations: list[Any], where: str) -> Iterator[ObjectRecord]:
        groups: dict[tuple[object, ...], list[_Shape]] = defaultdict(list)
        for number, annotation in enumerate(annotations, start=1):
            place = f"{where}, annotation {number}"
            try:
                shape = self._shape_of(annotation, place)
            except DataError as error:
                self.problems.append(problem_of(error, place, "invalid_annotation"))
                continue
            if shape is not None:
                group = annotation.get("group")
                alone = type(group) is not int or group == 0
                groups[(number,) if alone else (group, shape.label)].append(shape)
        for shapes in groups.values():
            boxes = [shape for shape in shapes if shape.is_box]
            if boxes:
                self._within_boxes += len(shapes) - len(boxes)
            else:
                box = box_around_all([shape.box for shape in shapes])
                boxes = [shapes[0]._replace(box=box, is_crowd=any(shape.is_crowd for shape in shapes))]
            for shape in boxes:
                yield ObjectRecord(shape.label, shape.box, shape.where, shape.is_crowd)

    def _shape_of(self, annotation: object, where: str) -> _Shape | None:
        """Shape of an annotation; None where it has no extent, which is counted."""
        if not isinstance(annotation, dict):
            raise DataError(f"{where}: it is {shown(annotation)}, not an object")
        kind = name_text(annotation.get("type"), where, "the type")
        if kind == "bbox":
            left, top, width, height = _coordinates(annotation.get("bbox"), where, "bbox", 4)
            box: Box | None = (left, top, left + width, top + height)
        elif kind == "polygon":
            box = box_around_flat(_coordinates(annotation.get("points"), where, "points"))
        elif kind == "ellipse":
            box = box_around_flat(_coordinates(annotation.get("points"), where, "points", 4))
        elif kind == "mask":
            box = _box_of_mask(annotation.get("rle"), where)
        else:
            box = None
        if box is None:
            self._left_out["mask without a pixel" if kind == "mask" else kind] += 1
            return None
        number = whole_number(annotation.get("label_id"), where, "label_id")
        if not 0 <= number < len(self._labels):
            raise DataError(f"{where}: label_id is {number}, and there are {len(self._labels)} labels")
        attributes = annotation.get("attributes")
        crowd = attributes.get("is_crowd", False) if isinstance(attributes, dict) else False
        if crowd not in (True, False):
            raise DataError(f"{where}: is_crowd must be true or false, not {shown(crowd)}")
        return _Shape(self._labels[number], box, bool(crowd), kind == "bbox", where)

    def remarks(self, where: str) -> Iterator[Problem]:
        """Remarks on what was left out, one for each kind."""
        for kind, count in self._left_out.items():
            of_image = " of whole images" if kind in _WHOLE_IMAGE else ", which have no box"
            text = f"{count} annotations of type {shown(kind)}{of_image}: left out"
            yield Problem("invalid_annotation", where, text, False)
        if self._within_boxes:
            text = f"{self._within_boxes} polygons and masks belong to boxes of their group: the boxes are read"
            yield Problem("invalid_annotation", where, text, False)


def _coordinates(value: object, where: str, what: str, count: int = 0) -> list[float]:
    """Coordinates in a list: so many, or at least three points."""
    if not isinstance(value, list) or (len(value) != count if count else len(value) < 6 or len(value) % 2):
        wanted = f"{count} numbers" if count else "three points or more, x, y, x, y, ..."
        raise DataError(f"{where}: {what} must be {wanted}, not {shown(value)}")
    return [real_number(number, where, what) for number in value]


def _box_of_mask(value: object, where: str) -> Box | None:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | list):
        raise DataError(f"{where}: rle must have counts and size, not {shown(value)}")
    size = value.get("size")
    size_wh = size_of(size[1], size[0], where) if isinstance(size, list) and len(size) == 2 else None
    if size_wh is None:
        raise DataError(f"{where}: the size of a mask must be [height, width], not {shown(size)}")
    try:
        lengths = run_lengths(value["counts"])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if sum(lengths) != size_wh[0] * size_wh[1]:
        text = f"its runs have {sum(lengths)} pixels, and {size_wh[0]} x {size_wh[1]} are {size_wh[0] * size_wh[1]}"
        raise DataError(f"{where}: {text}")
    return box_around_mask(lengths, size_wh[1])
