"""YOLO format: a txt per image with a line per object: class, then box centre and size, or corners of a polygon.

Coordinates are shares of the width and height of the image as displayed. A polygon of three points or more becomes
the box around it. An image without a txt counts as one without objects and is reported; if more than half of a split
has none, that is fatal. An empty txt says that there are no objects.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample
from deformable_detr.data.formats.assemble import ImageEntry, ObjectTable, assemble, problem_of, unannotated
from deformable_detr.data.formats.parsing import read_text, shown
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.formats.writing import Placement, not_kept, place_image, unique_names, write_in
from deformable_detr.data.formats.yolo_layouts import (
    ClassList,
    LabelFolders,
    YoloPart,
    find_parts,
    images_of,
    read_description,
)
from deformable_detr.data.images import image_size

LOOKED_FOR = (
    "YOLO: data.yaml, dataset.yaml or another yaml with names and train, val or test; or images/ and labels/*.txt "
    "with classes.txt, also within train/, val/, test/"
)


class LabelledBox(NamedTuple):
    """Box in one line of a label file."""

    line: int
    """Number of the line, from 1."""
    class_number: int
    """Class as the file has it."""
    box_xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the image."""


class LabelFault(NamedTuple):
    """Fault in one line of a label file, which cannot be used."""

    line: int
    """Number of the line, from 1."""
    message: str
    """Sentence that says what is wrong."""


def find_splits(path: Path) -> SplitLoaders:
    """YOLO splits of a folder or of a yaml file; empty if there are none.

    Raises:
        DataError: there is a yaml of a YOLO data set, but it cannot be used.
    """
    return name_splits((part.split, partial(_load_part, part)) for part in find_parts(path))


def load(path: Path, *, split: str = "train") -> DetectionDataset:
    """Data set of one split of a folder or yaml; faults of single files are listed in its problems.

    Raises:
        DataError: there is no such split, the yaml cannot be used, or the names of the classes are unknown.
    """
    splits = find_splits(path)
    if split not in splits:
        raise DataError(f"{path}: no YOLO split {split!r} here; there are {', '.join(splits) or 'none'}")
    return splits[split]()


def parse_labels(text: str) -> list[LabelledBox | LabelFault]:
    """Boxes and faults of a label file, one for each line that is not empty."""
    parsed: list[LabelledBox | LabelFault] = []
    for line, content in enumerate(text.splitlines(), start=1):
        words = content.split()
        if not words:
            continue
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            parsed.append(LabelFault(line, f"expected numbers, not {shown(content)}"))
            continue
        if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
            text = (
                f"{len(numbers)} columns; a box has 5 (class, centre x, centre y, width, height), a polygon 7, 9, ..."
            )
            parsed.append(LabelFault(line, text))
        elif not numbers[0].is_integer() or numbers[0] < 0:
            parsed.append(LabelFault(line, f"the class must be a whole number from 0, not {shown(words[0])}"))
        else:
            box_xyxy = _box_around(numbers[1:]) if len(numbers) > 5 else _box_at(*numbers[1:])
            parsed.append(LabelledBox(line, int(numbers[0]), box_xyxy))
    return parsed


def _box_at(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _box_around(polygon: Sequence[float]) -> tuple[float, float, float, float]:
    if not all(map(math.isfinite, polygon)):
        return math.nan, math.nan, math.nan, math.nan
    return min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])


class _BoxOfImage(NamedTuple):
    image_index: int
    label_file: Path
    box: LabelledBox


def _load_part(part: YoloPart) -> DetectionDataset:
    classes = part.classes()
    problems: list[Problem] = []
    folders = LabelFolders()
    entries: list[ImageEntry] = []
    rows: list[_BoxOfImage] = []
    bare: list[str] = []
    for path in images_of(part, problems):
        try:
            size_wh = image_size(path)
        except DataError as error:
            problems.append(problem_of(error, path, "unreadable_image"))
            continue
        label_file = folders.label_of(path)
        if label_file is None:
            bare.append(str(path))
        else:
            index = len(entries)
            rows += [_BoxOfImage(index, label_file, box) for box in _read_labels(label_file, classes, problems)]
        entries.append(ImageEntry(path, size_wh, len(entries) + 1))
    problems += unannotated(bare, len(entries), part.where, "label")
    problems += [
        Problem("orphan_annotation", str(file), "no image has this name: ignored", False) for file in folders.orphans()
    ]
    if not entries:
        problems.append(Problem("invalid_annotation", part.where, "there are no images to read here", True))

    def name_object(row: int) -> str:
        return f"{rows[row].label_file}:{rows[row].box.line}"

    samples, box_problems = assemble(entries, _to_table(rows, entries, classes), name_object, where=part.where)
    return DetectionDataset(
        classes=classes.names,
        category_ids=classes.numbers,
        samples=samples,
        problems=(*problems, *box_problems),
        source=f"YOLO {part.where}, classes from {classes.source}",
    )


def _read_labels(file: Path, classes: ClassList, problems: list[Problem]) -> list[LabelledBox]:
    try:
        parsed = parse_labels(read_text(file))
    except DataError as error:
        problems.append(problem_of(error, file, "invalid_annotation"))
        return []
    boxes = []
    for item in parsed:
        if isinstance(item, LabelFault):
            problems.append(Problem("invalid_annotation", f"{file}:{item.line}", item.message, True))
        elif item.class_number not in classes.numbers:
            text = f"class {item.class_number} is not among the {len(classes.names)} that {classes.source} names"
            problems.append(Problem("unknown_class", f"{file}:{item.line}", text, True))
        else:
            boxes.append(item)
    return boxes


def _to_table(rows: Sequence[_BoxOfImage], entries: Sequence[ImageEntry], classes: ClassList) -> ObjectTable:
    class_ids: Mapping[int, int] = {number: index for index, number in enumerate(classes.numbers)}
    image_indices = np.array([row.image_index for row in rows], dtype=np.int64)
    sizes_wh = np.array([entry.size_wh for entry in entries], dtype=np.float64).reshape(-1, 2)
    shares = np.array([row.box.box_xyxy for row in rows], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        boxes_xyxy = shares * np.tile(sizes_wh[image_indices], 2)
    return ObjectTable(
        image_indices,
        boxes_xyxy,
        np.array([class_ids[row.box.class_number] for row in rows], dtype=np.int64),
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
