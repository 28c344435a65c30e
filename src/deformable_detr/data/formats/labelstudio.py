"""Label Studio format: the json export (tasks with annotations and their results), or the smaller json-min.

Rectangles (also turned ones), polygons and ellipses, in percent of the image, become the boxes around them. Brushes,
key points and the like are left out and counted. Of several annotations of a task one is taken: the ground truth, else
the most recent. Cancelled ones do not count; a task without any other is not annotated, and its image is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.image_names import find_images, parts_of
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.parsing import class_text, name_text, read_json, real_number, shown
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, RecordPart, part_loaders, size_of
from deformable_detr.data.formats.shapes import (
    Box,
    box_around,
    box_around_ellipse,
    box_around_turned,
    ignored_shapes,
    read_points,
)
from deformable_detr.data.formats.split_files import image_folders, split_files
from deformable_detr.data.formats.split_names import SplitLoaders
from deformable_detr.data.images import is_image_file

LOOKED_FOR = (
    "Label Studio: a json export of tasks with data and annotations, or json-min, in the folder or in train/, val/, "
    "test/"
)
_IMAGE_KEYS = ("image", "img", "picture", "photo", "url")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
# Keys of json-min that are not answers of the annotator.
_MIN_KEYS = frozenset({"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"})


_SHAPE_KEYS = ("x", "y", "width", "height", "radiusX", "radiusY", "points", "rle", "vertices")


class _Task(NamedTuple):
    """Image with the results of its annotation."""

    where: str
    address: str
    results: list[Any]
    moment: str
    """Time of the annotation."""


def find_splits(path: Path, starts: JsonStarts = start_of_json) -> SplitLoaders:
    """Label Studio splits of a folder or of one json; empty if there are none."""
    found = split_files(path, (".json",), lambda file: starts(file).kind == "labelstudio")
    parts = [
        RecordPart(split, str(file), image_folders(file, split), partial(_read_tasks, file, split))
        for split, file in found
    ]
    return part_loaders(parts, "Label Studio")


def _read_tasks(file: Path, split: str, problems: list[Problem]) -> list[ImageRecord]:
    document = read_json(file)
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise DataError(f"{file}: not a Label Studio export: expected a list of tasks, found {shown(document)}")
    is_min = not any("data" in item for item in document)
    tasks = list(_min_tasks(document, str(file), problems) if is_min else _tasks(document, str(file), problems))
    names = _names_of_files([task.address for task in tasks], image_folders(file, split), str(file))
    ignored: Counter[str] = Counter()
    records = [_record_of(task, name, ignored, problems) for task, name in zip(tasks, names, strict=True)]
    problems += ignored_shapes(ignored, str(file))
    return records


def _tasks(items: Sequence[dict[str, Any]], where: str, problems: list[Problem]) -> Iterator[_Task]:
    """Annotated tasks of a json export, with one annotation each."""
    key = _image_key([item.get("data") for item in items], where)
    num_open = num_several = 0
    for number, item in enumerate(items, start=1):
        place = f"{where}: task {shown(item['id']) if 'id' in item else f'number {number}'}"
        data = item.get("data")
        if not isinstance(data, dict):
            raise DataError(f"{place}: data must be an object, not {shown(data)}")
        annotations = item.get("annotations", item.get("completions"))
        if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
            raise DataError(f"{place}: annotations must be a list of objects, not {shown(annotations)}")
        finished = [one for one in annotations if not one.get("was_cancelled") and not one.get("skipped")]
        if not finished:
            num_open += 1
            continue
        num_several += len(finished) > 1
        chosen = max(
            enumerate(finished), key=lambda one: (one[1].get("ground_truth") is True, _moment(one[1]), one[0])
        )[1]
        results = chosen.get("result")
        if not isinstance(results, list):
            raise DataError(f"{place}: the result of an annotation must be a list, not {shown(results)}")
        yield _Task(place, name_text(data.get(key), place, f"data.{key}"), results, _moment(chosen))
    problems += _what_was_left_out(num_open, num_several, where)


def _min_tasks(items: Sequence[dict[str, Any]], where: str, problems: list[Problem]) -> list[_Task]:
    """Tasks of a json-min export, which has an entry for each annotation."""
    key = _image_key([{name: one for name, one in item.items() if name not in _MIN_KEYS} for item in items], where)
    tasks: dict[object, _Task] = {}
    several = set()
    for number, item in enumerate(items, start=1):
        task_id = item["id"] if isinstance(item.get("id"), int | str) else f"number {number}"
        place = f"{where}: task {shown(task_id)}"
        results = [
            {
                "value": value,
                "original_width": value.get("original_width"),
                "original_height": value.get("original_height"),
            }
            for name, values in item.items()
            if name not in _MIN_KEYS and isinstance(values, list)
            for value in values
            if isinstance(value, dict)
        ]
        task = _Task(place, name_text(item.get(key), place, key), results, _moment(item))
        if task_id in tasks:
            several.add(task_id)
        if task_id not in tasks or task.moment >= tasks[task_id].moment:
            tasks[task_id] = task
    problems += _what_was_left_out(0, len(several), where)
    return list(tasks.values())


def _moment(annotation: dict[str, Any]) -> str:
    """Time of an annotation. Texts as Label Studio writes them are in the order of time."""
    moment = annotation.get("updated_at") or annotation.get("created_at")
    return moment if isinstance(moment, str) else ""


def _what_was_left_out(num_open: int, num_several: int, where: str) -> Iterator[Problem]:
    if num_open:
        text = f"tasks without an annotation, or with cancelled ones alone: {num_open}; their images are left out"
        yield Problem("unannotated_image", where, text, False)
    if num_several:
        text = f"tasks with several annotations: {num_several}; the ground truth is taken, else the most recent"
        yield Problem("invalid_annotation", where, text, False)


def _image_key(datas: Sequence[object], where: str) -> str:
    """Key of the image in the data of tasks: the one whose texts name image files.

    Raises:
        DataError: there is none, or several.
    """
    found: Counter[str] = Counter()
    for data in datas:
        if isinstance(data, dict):
            found.update(key for key, text in data.items() if isinstance(text, str) and is_image_file(_file_name(text)))
    if not found:
        keys = sorted({str(key) for data in datas if isinstance(data, dict) for key in data})
        raise DataError(
            f"{where}: no task names an image file; its data has {listed([shown(key) for key in keys], 5) or 'nothing'}"
        )
    usual = [key for key in _IMAGE_KEYS if key in found]
    if len(found) > 1 and not usual:
        raise DataError(
            f"{where}: a task has several images ({listed([shown(key) for key in found], 5)}); call the annotated one "
            "image"
        )
    return usual[0] if usual else next(iter(found))


def _file_name(address: str) -> str:
    """Name of the image file in an address: a path on this or another machine, or within a server or a bucket."""
    if re.match(r"[A-Za-z]:[/\\]", address):
        return address
    try:
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d")
    except ValueError:
        return address
    if local and parts.path.rstrip("/").endswith("local-files"):
        return local[0]
    if not parts.scheme and not parts.query:
        return unquote(address) if "%" in address else address
    return unquote(parts.path).lstrip("/")


def _names_of_files(addresses: Sequence[str], folders: Sequence[Path], where: str) -> list[str]:
    """File names of the images. Label Studio puts eight digits before the name of an upload, which exports may keep."""
    names = [_file_name(address) for address in addresses]
    if not any(_UPLOADED.match(parts_of(name)[-1]) for name in names):
        return names
    as_they_are = find_images(names, folders, str, where)
    if any(as_they_are.paths):
        return names
    before = [_UPLOADED.sub("", parts_of(name)[-1], count=1) for name in names]
    twins = [name for name, count in Counter(before).items() if count > 1]
    if twins:
        raise DataError(
            f"{where}: none of its images is there under the name that Label Studio gave it, and {shown(twins[0])} is "
            "the name of several uploads; export the images, too, and lay them beside the json in images/"
        )
    return before


def _record_of(task: _Task, name: str, ignored: Counter[str], problems: list[Problem]) -> ImageRecord:
    """Record of a task; regions that cannot be used are added to the problems."""
    objects: list[ObjectRecord] = []
    sizes_wh: dict[tuple[int, int], None] = {}
    for key, results in _regions_of(task, problems).items():
        where = f"{task.where}, region {shown(key)[1:-1]}"
        first = results[0]
        try:
            size_wh = size_of(first.get("original_width"), first.get("original_height"), where)
            box = _box_of_value(first["value"], size_wh, where)
            if box is None:
                ignored[str(first.get("type") or "shape")] += 1
                continue
            labels = list(dict.fromkeys(label for result in results for label in _labels_in(result["value"], where)))
        except DataError as error:
            problems.append(problem_of(error, where, "invalid_annotation"))
            continue
        if size_wh is not None:
            sizes_wh[size_wh] = None
        objects += [ObjectRecord(label, box, where) for label in labels]
        if len(labels) != 1:
            names = listed([shown(label) for label in labels], 5)
            text = f"it has the labels {names}: taken as an object of each" if labels else "it has no label"
            problems.append(Problem("invalid_annotation", where, text, not labels))
    if len(sizes_wh) > 1:
        text = f"its regions belong to images of different sizes: {listed([str(size_wh) for size_wh in sizes_wh])}"
        problems.append(Problem("invalid_annotation", task.where, text, True))
        sizes_wh.clear()
    return ImageRecord(name, task.where, objects, next(iter(sizes_wh), None), in_shares=True)


def _regions_of(task: _Task, problems: list[Problem]) -> dict[str, list[dict[str, Any]]]:
    """Results of a task that have a shape, by region: one may have the shape and another, of the same id, the label.

    In json-min there are no ids; there a region is told by its shape.
    """
    regions: dict[str, list[dict[str, Any]]] = {}
    for number, result in enumerate(task.results, start=1):
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            if not isinstance(result, dict) or result.get("type") != "relation":
                text = f"expected an object with a value, found {shown(result)}"
                problems.append(Problem("invalid_annotation", f"{task.where}, result {number}", text, True))
            continue
        shape = [value.get(key) for key in _SHAPE_KEYS]
        if any(part is not None for part in shape):  # Others answer a question about the whole image.
            key = result.get("id")
            regions.setdefault(key if isinstance(key, str) else shown(shape), []).append(result)
    return regions


def _labels_in(value: dict[str, Any], where: str) -> list[str]:
    """Labels of a result: under `rectanglelabels`, `polygonlabels`, `labels` and such."""
    labels = []
    for key, found in value.items():
        if key.endswith("labels"):
            if not isinstance(found, list):
                raise DataError(f"{where}: {key} must be a list, not {shown(found)}")
            labels += [class_text(label, where, "a label") for label in found]
    return labels


def _box_of_value(value: dict[str, Any], size_wh: tuple[int, int] | None, where: str) -> Box | None:
    """Box around a shape, in shares of the image; None for a shape that has none."""

    def shares(*names: str) -> list[float]:
        return [real_number(value.get(name), where, name) / 100 for name in names]

    degrees = real_number(value.get("rotation") or 0, where, "rotation")
    if degrees and size_wh is None:
        raise DataError(f"{where}: it is turned, which needs original_width and original_height")
    width, height = size_wh if degrees and size_wh else (1, 1)  # Turned in pixels, where both axes are equally long.
    if "points" in value:
        return box_around((x / 100, y / 100) for x, y in read_points(value["points"], where, least=3))
    if "radiusX" in value:
        x, y, radius_x, radius_y = shares("x", "y", "radiusX", "radiusY")
        center, radii = (x * width, y * height), (radius_x * width, radius_y * height)
        box = box_around_ellipse(center, radii, math.radians(degrees))
    elif "width" in value and "height" in value:
        x, y, box_width, box_height = shares("x", "y", "width", "height")
        left, top = x * width, y * height
        box = left, top, left + box_width * width, top + box_height * height
        box = box_around_turned(box, degrees, (left, top))  # about its corner, not its center
    else:
        return None
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height
