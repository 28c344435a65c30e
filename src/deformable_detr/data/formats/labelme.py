"""LabelMe format: a json for each image, with `shapes` of a label and points in pixels.

Rectangles, polygons, circles and masks become the boxes around them; shapes of one label and one `group_id` are parts
of one object. Lines and points are left out and counted. The image is the one that `imagePath` names, relative to the
json; else the one with the json's own name; else the picture within the json (`imageData`), which is unpacked into the
cache. Images without a json are not annotated yet, and left out.
"""

import base64
import binascii
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.core.cache import cache_folder, writing_to_cache
from deformable_detr.core.errors import DataError
from deformable_detr.core.files import write_atomically
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.image_names import find_images, parts_of
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.parsing import class_text, name_text, read_json, shown
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, dataset_of, names_in_all, read_once, size_of
from deformable_detr.data.formats.shapes import (
    Box,
    box_around,
    box_around_all,
    box_around_ellipse,
    ignored_shapes,
    read_points,
)
from deformable_detr.data.formats.split_files import image_folders, split_folders
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.images import image_size, is_image_file

LOOKED_FOR = (
    "LabelMe: a json with shapes and imagePath for each image, beside the images, in annotations/ or labels/ next to "
    "images/, or in train/, val/, test/"
)
_MOST_PROBED = 50


class _Part(NamedTuple):
    """Files of one split."""

    split: str
    where: Path
    files: list[Path]
    read: Callable[[list[Problem]], "list[_Annotated]"]

    def records(self, problems: list[Problem]) -> "list[ImageRecord]":
        return [one.record for one in self.read(problems)]


class _Annotated(NamedTuple):
    """Image of a json."""

    file: Path
    record: ImageRecord


def find_splits(path: Path, starts: JsonStarts = start_of_json) -> SplitLoaders:
    """LabelMe splits of a folder, or the one image of a json; empty if there are none."""
    if path.is_file():
        is_ours = path.suffix.lower() == ".json" and starts(path).kind == "labelme"
        parts = [_part_of(path.stem, path, [path])] if is_ours else []
    else:
        folders = split_folders(path, partial(_holds_labelme, starts))
        parts = [_part_of(split, folder, _json_files(folder)) for split, folder in folders]
    return name_splits((part.split, partial(_load_json_files, part, parts)) for part in parts)


def _part_of(split: str, where: Path, files: list[Path]) -> _Part:
    return _Part(split, where, files, read_once(partial(_read_files, files, where)))


def _json_files(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".json") and name[0] != ".")
    return [folder / name for name in names]


def _holds_labelme(starts: JsonStarts, folder: Path) -> bool:
    return any(starts(file).kind == "labelme" for file in _json_files(folder)[:_MOST_PROBED])


def _load_json_files(part: _Part, parts: Sequence[_Part]) -> DetectionDataset:
    problems: list[Problem] = []
    found = part.read(problems)
    classes = names_in_all((one.record for one in found), [other.records for other in parts if other is not part])
    records = _with_images(part, found, problems)
    problems += _not_annotated(records, part.where)
    return dataset_of(
        records,
        folders=[],
        where=str(part.where),
        source=f"LabelMe {part.where}, classes from the names of its objects",
        classes=classes,
        problems=problems,
    )


def _read_files(files: Sequence[Path], where: Path, problems: list[Problem]) -> list[_Annotated]:
    found = []
    ignored: Counter[str] = Counter()
    num_parts = 0
    for file in files:
        try:
            document = read_json(file)
            if not isinstance(document, dict) or "shapes" not in document:
                problems.append(Problem("orphan_annotation", str(file), "it has no LabelMe shapes: ignored", False))
                continue
            record, more_parts = parse_document(document, file, ignored)
        except DataError as error:
            problems.append(problem_of(error, file, "invalid_annotation"))
            continue
        num_parts += more_parts
        found.append(_Annotated(file, record))
    problems += ignored_shapes(ignored, str(where))
    if num_parts:
        text = f"shapes that belong to another one by group_id: {num_parts}; one box is around all of a group"
        problems.append(Problem("invalid_annotation", str(where), text, False))
    return found


def parse_document(document: dict[str, Any], file: Path, ignored: Counter[str]) -> tuple[ImageRecord, int]:
    """Image of a LabelMe document with its objects, and how many shapes are further parts of an object.

    Args:
        document: content of the json.
        file: the json.
        ignored: counts shapes without a box by their type.

    Raises:
        DataError: a shape lacks its label or points, or the size is none.
    """
    shapes = document["shapes"]
    if not isinstance(shapes, list):
        raise DataError(f"{file}: shapes must be a list, not {shown(shapes)}")
    name = document.get("imagePath") or f"{file.stem}.png"
    name_text(name, str(file), "imagePath")
    size_wh = size_of(document.get("imageWidth"), document.get("imageHeight"), str(file))
    boxes: dict[object, ObjectRecord] = {}
    num_parts = 0
    for number, shape in enumerate(shapes, start=1):
        where = f"{file}: shape {number}"
        if not isinstance(shape, dict):
            raise DataError(f"{where} is {shown(shape)}, not an object")
        kind = shape.get("shape_type") or "polygon"  # Files of the first years have polygons only.
        box = _box_of_points(shape.get("points"), str(kind), where)
        if box is None:
            ignored[str(kind)] += 1
            continue
        label, group = class_text(shape.get("label"), where, "the label"), shape.get("group_id")
        key = (label, group) if isinstance(group, int | str) and group != "" else number
        if key in boxes:
            num_parts += 1
            boxes[key] = boxes[key]._replace(box_xyxy=box_around_all([boxes[key].box_xyxy, box]))
        else:
            boxes[key] = ObjectRecord(label, box, where)
    return ImageRecord(name, str(file), list(boxes.values()), size_wh), num_parts


def _box_of_points(points: object, kind: str, where: str) -> Box | None:
    """Box around a shape; None for a kind that has none."""
    if kind == "circle":
        center, edge = read_points(points, where, least=2)[:2]
        radius = math.dist(center, edge)
        return box_around_ellipse(center, (radius, radius))
    if kind == "mask":
        # The corners are the first and the last pixel of the mask.
        left, top, right, bottom = box_around(read_points(points, where, least=2))
        return left, top, right + 1, bottom + 1
    if kind == "rectangle":
        return box_around(read_points(points, where, least=2))
    if kind in ("polygon", "rotation", "oriented_rectangle", "quadrilateral"):
        return box_around(read_points(points, where, least=3))
    return None


def _with_images(part: _Part, found: Sequence[_Annotated], problems: list[Problem]) -> list[ImageRecord]:
    """Records with the path of their image; those whose image is missing, or is another's, are problems."""
    folders = image_folders(part.files[0], part.split)
    names = [one.record.name for one in found]
    sizes_wh = [one.record.size_wh for one in found]

    def place(position: int) -> str:
        return str(found[position].file)

    paths = find_images(names, folders, place, str(part.where), sizes_wh=sizes_wh).paths
    missing = [position for position, path in enumerate(paths) if path is None]
    stems = [found[position].file.stem for position in missing]
    by_stem = find_images(stems, folders, place, str(part.where), sizes_wh=[sizes_wh[index] for index in missing])
    num_unpacked = 0
    for position, path in zip(missing, by_stem.paths, strict=True):
        one = found[position]
        if path is not None:
            text = (
                f"imagePath names {shown(one.record.name)}, which is not there: {path.name} is taken, by its own name"
            )
            problems.append(Problem("invalid_annotation", str(one.file), text, False))
        else:
            path = _unpacked(one, problems)
            num_unpacked += path is not None
        paths[position] = path
    if num_unpacked:
        text = f"pictures that are only within a json: {num_unpacked}; unpacked into {cache_folder() / 'labelme'}"
        problems.append(Problem("invalid_annotation", str(part.where), text, False))
    return _without_twins(found, paths, problems)


def _without_twins(
    found: Sequence[_Annotated], paths: Sequence[Path | None], problems: list[Problem]
) -> list[ImageRecord]:
    first: dict[str, Path] = {}
    records = []
    for one, path in zip(found, paths, strict=True):
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in first:
            text = f"{path} is also the image of {first[real]}; each image has one json: leave one of the two out"
            problems.append(Problem("duplicate_image", str(one.file), text, True))
            continue
        first[real] = one.file
        records.append(one.record._replace(path=path))
    return records


def _unpacked(one: _Annotated, problems: list[Problem]) -> Path | None:
    """Picture within a json as a file in the cache; None, with a problem, if there is none that can be read."""
    data = read_json(one.file).get("imageData")
    if not isinstance(data, str) or not data:
        text = (
            f"the image {shown(one.record.name)} is missing, there is none named {shown(one.file.stem)} either, and "
            "the json holds no picture (imageData)"
        )
        problems.append(Problem("missing_image", str(one.file), text, True))
        return None
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        problems.append(Problem("unreadable_image", str(one.file), "imageData is not base64 text", True))
        return None
    last = parts_of(one.record.name)[-1]
    usable = is_image_file(last) and last.isprintable() and len(last.encode()) <= 200
    folder = cache_folder() / "labelme" / hashlib.sha256(content).hexdigest()[:32]
    path = folder / (last if usable else "picture.png")
    if not path.is_file():
        with writing_to_cache(folder, f"the picture within {one.file}"):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(content), durable=False)
    try:
        image_size(path)
    except DataError as error:
        path.unlink(missing_ok=True)
        reason = str(error).removeprefix(f"{path}: ")
        problems.append(Problem("unreadable_image", str(one.file), f"imageData cannot be read: {reason}", True))
        return None
    return path


def _not_annotated(records: Sequence[ImageRecord], where: Path) -> list[Problem]:
    """Problem that counts the images that lie among the annotated ones and have no json."""
    used = {os.path.realpath(record.path) for record in records if record.path is not None}
    folders = {os.path.dirname(path) for path in used if not path.startswith(os.path.realpath(cache_folder()))}
    images = [os.path.join(folder, name) for folder in folders for name in os.listdir(folder) if is_image_file(name)]
    num_bare = sum(os.path.realpath(path) not in used for path in images)
    if not num_bare:
        return []
    text = f"images without a json, as if not annotated yet: {num_bare} of {len(images)}; left out"
    return [Problem("unannotated_image", str(where), text, False)]
