"""Supervisely format: a project with meta.json, and data sets in it with img/ and ann/, a json for each image.

Rectangles, polygons and masks (bitmaps) become the box around their points or pixels; corners are taken as they stand.
Other shapes are counted and left out. Classes are those of meta.json in their order.
"""

import base64
import binascii
import zlib
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import LARGEST_SIDE, problem_of
from deformable_detr.data.formats.image_names import subfolders
from deformable_detr.data.formats.pairs import (
    FileContent,
    PairedFolders,
    distinct_splits,
    files_below,
    paired_records,
    start_of,
)
from deformable_detr.data.formats.parsing import name_text, read_json, real_number, shown
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, dataset_of, size_of
from deformable_detr.data.formats.shapes import Box, box_around_flat
from deformable_detr.data.formats.split_names import MAIN_SPLITS, SplitLoaders, name_splits, split_in_name

LOOKED_FOR = "Supervisely: meta.json with classes, and folders with img/ and ann/*.json in the folder"

_META = "meta.json"
_ENDING = ".json"
_MOST_FOLDERS = 1000
_DEEPEST = 4
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 24
_LONGEST_HEADER = 4096


def find_splits(path: Path) -> SplitLoaders:
    """Supervisely splits of a project or of one of its data sets; empty if there are none.

    Data sets that are named after a split are that split. If none is, all of them together are one split.
    """
    if _is_meta(path / _META):
        meta, found = path / _META, _data_sets(path)
    elif _is_meta(path.parent / _META) and _is_data_set(path):
        meta, found = path.parent / _META, [path]
    else:
        return {}
    if found == [path] or not any(split_in_name(part.name) in MAIN_SPLITS for part in found):
        return name_splits([(path.name, partial(_load_project, meta, found))] if found else [])
    names = distinct_splits([part.name for part in found])
    return name_splits((name, partial(_load_project, meta, [part])) for name, part in zip(names, found, strict=True))


def _is_meta(file: Path) -> bool:
    start = start_of(file)
    return '"classes"' in start and ('"title"' in start or '"tags"' in start)


def _is_data_set(folder: Path) -> bool:
    return (folder / "img").is_dir() and (folder / "ann").is_dir() and any(files_below(folder / "ann", _ENDING))


def _data_sets(folder: Path) -> list[Path]:
    """Folders with images and annotations: the project itself, those in it, and those nested in `datasets/`."""
    found: list[Path] = []
    pending = [(folder, 0)]
    while pending and len(found) < _MOST_FOLDERS:
        place, depth = pending.pop(0)
        if _is_data_set(place):
            found.append(place)
        if depth < _DEEPEST:
            inner = [name for name in subfolders(place) if name not in ("img", "ann", "meta", "masks_human")]
            pending += [(place / name, depth + 1) for name in islice(inner, _MOST_FOLDERS)]
    return found


def _load_project(meta: Path, folders: list[Path]) -> DetectionDataset:
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    classes = _classes_in(meta)
    records: list[ImageRecord] = []
    for folder in folders:
        part = PairedFolders(folder.name, folder / "img", folder / "ann")
        records += paired_records(part, _ENDING, partial(_read_file, problems=problems, left_out=left_out), problems)
    where = str(folders[0] / "ann") if len(folders) == 1 else str(meta.parent)
    for shape, count in left_out.items():
        text = f"{count} objects of shape {shown(shape)}, which have no box: left out"
        problems.append(Problem("invalid_annotation", where, text, False))
    names = f", {listed([folder.name for folder in folders], 5)}" if len(folders) > 1 else ""
    return dataset_of(
        records,
        folders=(),
        where=where,
        source=f"SUPERVISELY {where}{names}, classes from {meta}",
        classes=classes,
        problems=problems,
    )


def _classes_in(meta: Path) -> list[str]:
    content = read_json(meta)
    items = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{meta}: classes must be a list of objects, not {shown(items)}")
    return [name_text(item.get("title"), str(meta), f"the title of class {n}") for n, item in enumerate(items, start=1)]


def _read_file(file: Path, problems: list[Problem], left_out: Counter[str]) -> FileContent:
    content = read_json(file)
    items = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{file}: not a Supervisely annotation: its objects are {shown(items)}, not a list")
    size = content.get("size")
    size_wh = size_of(size.get("width"), size.get("height"), str(file)) if isinstance(size, dict) else None
    objects = []
    for number, item in enumerate(items, start=1):
        where = f"{file}: object {number}"
        try:
            found = _object_of(item, where, left_out)
        except DataError as error:
            problems.append(problem_of(error, where, "invalid_annotation"))
            continue
        if found is not None:
            objects.append(found)
    return FileContent(objects, size_wh)


def _object_of(item: object, where: str, left_out: Counter[str]) -> ObjectRecord | None:
    """Object of the json; None where its shape has no box, which is counted."""
    if not isinstance(item, dict):
        raise DataError(f"{where}: it is {shown(item)}, not an object")
    name = name_text(item.get("classTitle"), where, "classTitle")
    shape = item.get("geometryType")
    if shape is None:  # older exports
        shape = "bitmap" if isinstance(item.get("bitmap"), dict) else "polygon"
    if shape in ("rectangle", "polygon"):
        return ObjectRecord(name, _box_of_points(item, where, 2 if shape == "rectangle" else 3), where)
    if shape in ("bitmap", "alpha_mask"):
        return ObjectRecord(name, _box_of_bitmap(item.get("bitmap"), where), where)
    left_out[name_text(shape, where, "geometryType")] += 1
    return None


def _box_of_points(item: dict[str, Any], where: str, fewest: int) -> Box:
    points = item.get("points")
    exterior = points.get("exterior") if isinstance(points, dict) else None
    if not isinstance(exterior, list) or len(exterior) < fewest:
        raise DataError(f"{where}: points.exterior must be {fewest} points or more, not {shown(exterior)}")
    numbers: list[float] = []
    for point in exterior:
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(f"{where}: a point must be [x, y], not {shown(point)}")
        numbers += [real_number(value, where, "a coordinate") for value in point]
    return box_around_flat(numbers)


def _box_of_bitmap(bitmap: object, where: str) -> Box:
    """Box of a mask: its upper left corner, and the size of the picture that holds its pixels."""
    origin = bitmap.get("origin") if isinstance(bitmap, dict) else None
    data = bitmap.get("data") if isinstance(bitmap, dict) else None
    if not isinstance(origin, list) or len(origin) != 2 or not isinstance(data, str):
        raise DataError(f"{where}: bitmap must have data and origin, not {shown(bitmap)}")
    left, top = (real_number(value, where, "the origin") for value in origin)
    try:
        # No more than the header is unpacked, however much there is.
        packed = base64.b64decode(data[:_LONGEST_HEADER], validate=True)
        header = packed if packed.startswith(_PNG) else zlib.decompressobj().decompress(packed, _PNG_HEADER)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise DataError(f"{where}: the data of the bitmap is no packed PNG: {error}") from error
    if len(header) < _PNG_HEADER or not header.startswith(_PNG):
        raise DataError(f"{where}: the data of the bitmap is no packed PNG")
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (16, 20))
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise DataError(f"{where}: a bitmap cannot be {width} x {height} pixels")
    return left, top, left + width, top + height
