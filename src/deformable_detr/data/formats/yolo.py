"""YOLO format: a txt per image with a line per object: class, then box centre and size, or corners of a polygon.

Coordinates are shares of the width and height of the image as displayed. A polygon of three points or more becomes
the box around it; keypoints, confidences and track ids after a box are left out. An image without a txt counts as one
without objects and is reported; if more than half of a split has none, that is fatal. An empty txt says that there are
no objects.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample
from deformable_detr.data.formats.assemble import ImageEntry, ObjectTable, assemble, problem_of, unannotated
from deformable_detr.data.formats.darknet import find_data_file, parts_of_data_file
from deformable_detr.data.formats.parsing import read_text, shown
from deformable_detr.data.formats.shapes import Box
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.formats.writing import Placement, not_kept, place_image, unique_names, write_in
from deformable_detr.data.formats.yolo_layouts import (
    ClassList,
    YoloPart,
    find_yaml,
    images_of,
    labels_of,
    parts_of_folders,
    parts_of_yaml,
    read_description,
)
from deformable_detr.data.formats.yolo_lines import LabelFault, LabelLine, object_of, parse_labels, readings_of
from deformable_detr.data.images import image_size

LOOKED_FOR = (
    "YOLO: data.yaml, dataset.yaml or another yaml with names and train, val or test; obj.data or another data file of "
    "darknet with names and train; or images/ and labels/*.txt with classes.txt, also within train/, val/, test/"
)


def find_splits(path: Path) -> SplitLoaders:
    """YOLO splits of a folder or of a yaml file; empty if there are none.

    Raises:
        DataError: there is a yaml of a YOLO data set, but it cannot be used.
    """
    parts = _find_parts(path)
    return name_splits((part.split, partial(_load_part, part, parts)) for part in parts)


def _find_parts(path: Path) -> list[YoloPart]:
    """Splits by the first that is there: a yaml, darknet's data file, and folders with a class list."""
    description = find_yaml(path)
    if description is not None:
        return parts_of_yaml(description)
    data_file = find_data_file(path)
    by_lists = parts_of_data_file(data_file) if data_file is not None else []
    if any(source.exists() for part in by_lists for source in part.sources):
        return by_lists
    # A data file of some other data set may lie here, as it does in copies of darknet.
    return parts_of_folders(path) or by_lists


def load(path: Path, *, split: str = "train") -> DetectionDataset:
    """Data set of one split of a folder or yaml; faults of single files are listed in its problems.

    Raises:
        DataError: there is no such split, the yaml cannot be used, or the names of the classes are unknown.
    """
    splits = find_splits(path)
    if split not in splits:
        raise DataError(f"{path}: no YOLO split {split!r} here; there are {', '.join(splits) or 'none'}")
    return splits[split]()


class _LineOfImage(NamedTuple):
    image_index: int
    label_file: Path
    line: LabelLine

    @property
    def where(self) -> str:
        return f"{self.label_file}:{self.line.line}"


class _BoxOfLine(NamedTuple):
    source: _LineOfImage
    box_xyxy: Box


def _load_part(part: YoloPart, parts: Sequence[YoloPart]) -> DetectionDataset:
    classes = part.classes()
    problems: list[Problem] = []
    entries: list[ImageEntry] = []
    lines: list[_LineOfImage] = []
    bare: list[str] = []
    images = images_of(part, problems)
    labels = labels_of(images)
    for path in images:
        try:
            size_wh = image_size(path)
        except DataError as error:
            problems.append(problem_of(error, path, "unreadable_image"))
            continue
        label_file = labels.label_of.get(path)
        if label_file is None:
            bare.append(str(path))
        else:
            index = len(entries)
            lines += [_LineOfImage(index, label_file, line) for line in _read_labels(label_file, classes, problems)]
        entries.append(ImageEntry(path, size_wh, len(entries) + 1))
    problems += labels.problems
    problems += unannotated(bare, len(entries), part.where, "label")
    if not entries and not any(problem.fatal for problem in problems):
        problems.append(Problem("invalid_annotation", part.where, "there are no images to read here", True))
    rows = _boxes_of(lines, part, parts, problems)
    samples, box_problems = assemble(
        entries, _to_table(rows, entries, classes), lambda row: rows[row].source.where, where=part.where
    )
    return DetectionDataset(
        classes=classes.names,
        category_ids=classes.numbers,
        samples=samples,
        problems=(*problems, *box_problems),
        source=f"YOLO {part.where}, classes from {classes.source}",
    )


def _read_labels(file: Path, classes: ClassList, problems: list[Problem]) -> list[LabelLine]:
    try:
        parsed = parse_labels(read_text(file))
    except DataError as error:
        problems.append(problem_of(error, file, "invalid_annotation"))
        return []
    lines = []
    for item in parsed:
        if isinstance(item, LabelFault):
            problems.append(Problem("invalid_annotation", f"{file}:{item.line}", item.message, True))
        elif item.class_number not in classes.numbers:
            text = f"class {item.class_number} is not among the {len(classes.names)} that {classes.source} names"
            problems.append(Problem("unknown_class", f"{file}:{item.line}", text, True))
        else:
            lines.append(item)
    return lines


def _boxes_of(
    lines: Sequence[_LineOfImage], part: YoloPart, parts: Sequence[YoloPart], problems: list[Problem]
) -> list[_BoxOfLine]:
    """Boxes of all lines that can be read; what their columns mean, and leave out, is said once for all."""
    readings = readings_of((item.line for item in lines), part.keypoints, lambda: _lengths_elsewhere(part, parts))
    groups: dict[int, list[_LineOfImage]] = {num_columns: [] for num_columns in readings}
    for item in lines:
        groups[item.line.num_columns].append(item)
    for num_columns, reading in readings.items():
        places = groups[num_columns]
        if reading.kind == "nothing":
            more = f" (and {len(places) - 1} more of so many columns)" if len(places) > 1 else ""
            problems.append(Problem("invalid_annotation", places[0].where, reading.remark + more, True))
        elif reading.remark:
            text = f"{reading.remark}, in {len(places)} line{'s' * (len(places) != 1)}"
            problems.append(Problem("not_kept", part.where, text, False))
    rows = []
    for item in lines:
        reading = readings[item.line.num_columns]
        box = object_of(item.line, reading) if reading.kind != "nothing" else None
        if isinstance(box, LabelFault):
            problems.append(Problem("invalid_annotation", item.where, box.message, True))
        elif box is not None:
            rows.append(_BoxOfLine(item, box))
    return rows


def _lengths_elsewhere(part: YoloPart, parts: Sequence[YoloPart]) -> set[int]:
    """Numbers of columns in the other splits, as far as they can be read."""
    lengths: set[int] = set()
    for other in parts:
        if other.split == part.split:
            continue
        try:
            for file in labels_of(images_of(other, [])).label_of.values():
                lengths.update(len(line.split()) for line in read_text(file).splitlines())
        except (DataError, OSError):
            continue  # It is reported when the other split is read.
    return lengths


def _to_table(rows: Sequence[_BoxOfLine], entries: Sequence[ImageEntry], classes: ClassList) -> ObjectTable:
    class_ids: Mapping[int, int] = {number: index for index, number in enumerate(classes.numbers)}
    image_indices = np.array([row.source.image_index for row in rows], dtype=np.int64)
    sizes_wh = np.array([entry.size_wh for entry in entries], dtype=np.float64).reshape(-1, 2)
    shares = np.array([row.box_xyxy for row in rows], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        boxes_xyxy = shares * np.tile(sizes_wh[image_indices], 2)
    return ObjectTable(
        image_indices,
        boxes_xyxy,
        np.array([class_ids[row.source.line.class_number] for row in rows], dtype=np.int64),
        np.zeros(len(rows), dtype=bool),
        np.full(len(rows), np.nan),
        np.arange(1, len(rows) + 1, dtype=np.int64),
    )


def save(
    dataset: DetectionDataset,
    folder: Path,
    *,
    split: str = "train",
    images: Placement = "copy",
    on_image: Callable[[], object] | None = None,
) -> tuple[Problem, ...]:
    """Write one split as `images/<split>`, `labels/<split>`, `<split>.txt` (the order of the images) and `data.yaml`.

    Other splits in the folder stay as they are.

    Args:
        dataset: the split.
        folder: where to write it.
        split: its name: train, val or test.
        images: copy or link the image files.
        on_image: called after each image that is written.

    Returns:
        Problems for content that the format cannot hold: crowd marks, and areas other than width x height.

    Raises:
        DataError: the split is not train, val or test; the folder holds a data set of other classes; or an image is
            annotated in its stored orientation, which the format cannot express.
        OutputError: a file cannot be written.
    """
    if split not in ("train", "val", "test"):
        raise DataError(f"{folder}: YOLO knows the splits train, val and test, not {shown(split)}")
    for sample in dataset.samples:
        if image_size(sample.path) != sample.size_wh:
            raise DataError(
                f"{sample.path}: its boxes belong to the picture as it is stored, which is displayed turned; YOLO has "
                "no place for that: save the image turned, without EXIF orientation"
            )
    description = folder / "data.yaml"
    lists = _other_splits(description, dataset.classes)
    names = unique_names(dataset.samples)
    for sample, name in zip(dataset.samples, names, strict=True):
        place_image(sample.path, folder / "images" / split / name, images)
        write_in(folder / "labels" / split, f"{Path(name).stem}.txt", label_text(sample))
        if on_image is not None:
            on_image()
    write_in(folder, f"{split}.txt", "".join(f"./images/{split}/{name}\n" for name in names))
    lists[split] = f"{split}.txt"
    content = {"path": ".", **lists, "names": dict(enumerate(dataset.classes))}
    write_in(folder, description.name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return not_kept(dataset, str(folder), crowd=True, areas=True)


def _other_splits(description: Path, classes: tuple[str, ...]) -> dict[str, str]:
    if not description.is_file():
        return {}
    old = read_description(description)
    if old.classes.names != classes:
        raise DataError(f"{description}: this folder already holds a data set of other classes; choose another folder")
    return {split: value for split, value in old.entries.items() if isinstance(value, str)}


def label_text(sample: Sample) -> str:
    """Text of the label file of one image, with digits for less than a millionth of a pixel."""
    width, height = sample.size_wh
    lines = []
    for class_id, (x1, y1, x2, y2) in zip(sample.class_ids.tolist(), sample.boxes_xyxy.tolist(), strict=True):
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{class_id} " + " ".join(f"{share:.15g}" for share in shares) + "\n")
    return "".join(lines)
