"""Pascal VOC format: an xml per image, found by the stem of its name; boxes are corners, taken as they are.

Objects marked difficult are ordinary objects here. `<iscrowd>1</iscrowd>` and `<area>` within an object are additions
of this package, so that nothing is lost between formats. Classes are in the order of a `classes.txt` or `labels.txt`
in the data set's folder, else alphabetical over all of its splits. An image without an xml counts as one without
objects and is reported; if more than half of a split has none, that is fatal.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample
from deformable_detr.data.formats.assemble import (
    LARGEST_SIDE,
    ImageEntry,
    ObjectTable,
    assemble,
    problem_of,
    unannotated,
)
from deformable_detr.data.formats.parsing import class_name_text, read_names, read_text, read_xml, shown
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.formats.voc_layouts import VocPart, find_parts, xml_files
from deformable_detr.data.formats.writing import (
    Placement,
    has_own_area,
    place_image,
    unique_names,
    write_in,
)
from deformable_detr.data.images import image_size

LOOKED_FOR = (
    "VOC: ImageSets/Main/*.txt with Annotations/ and JPEGImages/, or xml files beside images or in annotations/ next "
    "to images/, in the folder or in train/, val/, test/"
)
CLASS_FILES = ("classes.txt", "labels.txt")


class Annotation(NamedTuple):
    """Content of one xml; the lists have an entry for each object."""

    size_wh: tuple[int, int] | None
    """Width and height in pixels; None where they are missing or are no size."""
    image_name: str | None
    """File name of the image; None where it is missing."""
    class_names: list[str]
    """Class name of each object."""
    boxes_xyxy: list[tuple[float, float, float, float]]
    """Left, top, right, bottom of each object in pixels."""
    is_crowd: list[bool]
    """Whether each object is a region of many."""
    areas: list[float]
    """Area of each object in square pixels; NaN where there is none."""


def find_splits(path: Path) -> SplitLoaders:
    """VOC splits of a folder; empty if there are none."""
    parts = find_parts(path)
    return name_splits((part.split, partial(_load_part, part, path, parts)) for part in parts)


def load(folder: Path, *, split: str = "train") -> DetectionDataset:
    """Data set of one split of a VOC folder; faults of single files are listed in its problems.

    Raises:
        DataError: there is no such split, or no class has a name.
    """
    splits = find_splits(folder)
    if split not in splits:
        raise DataError(f"{folder}: no VOC split {split!r} here; there are {', '.join(splits) or 'none'}")
    return splits[split]()


def parse_annotation(root: Element, where: str) -> Annotation:
    """Annotation in the root element of a VOC xml.

    Raises:
        DataError: the xml is something else, or an object lacks a name or a corner.
    """
    if root.tag != "annotation":
        raise DataError(f"{where}: not a VOC annotation: the outer element is <{shown(root.tag)[1:-1]}>")
    names, boxes, crowd, areas = [], [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        place = f"{where}: object {number}"
        names.append(class_name_text((item.findtext("name") or "").strip(), place, "<name>"))
        corners = [_corner(item, side, place) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append((corners[0], corners[1], corners[2], corners[3]))
        crowd.append((item.findtext("iscrowd") or "").strip() == "1")
        areas.append(_float_or_nan(item.findtext("area")))
    file_name = (root.findtext("filename") or "").strip()
    return Annotation(_size_of(root), file_name or None, names, boxes, crowd, areas)


def _corner(item: Element, side: str, where: str) -> float:
    text = item.findtext(f"bndbox/{side}")
    if text is None:
        raise DataError(f"{where} has no <{side}> in a <bndbox>")
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: <{side}> must be a number, not {shown(text)}") from error


def _float_or_nan(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _size_of(root: Element) -> tuple[int, int] | None:
    width, height = (_float_or_nan(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if width.is_integer() and height.is_integer() and 1 <= min(width, height) <= max(width, height) <= LARGEST_SIDE:
        return int(width), int(height)
    return None


class _Object(NamedTuple):
    """Object with the image it belongs to and its place in an annotation."""

    image_index: int
    xml: Path
    number: int
    annotation: Annotation

    @property
    def class_name(self) -> str:
        return self.annotation.class_names[self.number]

    @property
    def where(self) -> str:
        return f"{self.xml}: object {self.number + 1} ({self.class_name})"


def _load_part(part: VocPart, folder: Path, parts: Sequence[VocPart]) -> DetectionDataset:
    problems: list[Problem] = []
    parsed = {file: _read_or_report(file, problems) for file in part.xml_paths()}
    classes, class_source = _classes_of(folder, parts, parsed)
    entries, rows = _match_images(part, parsed, problems)
    unknown = [row for row in rows if row.class_name not in classes]
    problems += [
        Problem("unknown_class", row.where, f"{class_source} does not list {shown(row.class_name)}", True)
        for row in unknown
    ]
    rows = [row for row in rows if row.class_name in classes]
    samples, box_problems = assemble(entries, _to_table(rows, classes), lambda index: rows[index].where)
    if not entries:
        problems.append(Problem("invalid_annotation", part.where, "there are no images to read here", True))
    return DetectionDataset(
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        samples=samples,
        problems=(*problems, *box_problems),
        source=f"VOC {part.where}, classes from {class_source}",
    )


def _match_images(
    part: VocPart, parsed: dict[Path, Annotation | None], problems: list[Problem]
) -> tuple[list[ImageEntry], list[_Object]]:
    """Images of a split that exist and whose size is known, and all of their objects."""
    entries: list[ImageEntry] = []
    rows: list[_Object] = []
    bare: list[str] = []
    items = list(part.items(problems))
    # An xml may name an image of another stem; then that image needs no xml of its own.
    named = {
        part.image_named(annotation.image_name)
        for item in items
        if item.image is None and (annotation := parsed.get(item.xml))
    }
    for item in items:
        annotation = parsed.get(item.xml)
        if annotation is None and (item.xml in parsed or item.image in named - {None}):
            continue  # Its broken xml has been reported, or an xml of another stem annotates it.
        image = item.image or part.image_named(annotation.image_name if annotation else None)
        if image is None:
            where = str(item.xml) if annotation else part.where
            text = f"the image is missing: no file {shown(item.stem)} with an image's ending in {part.image_folder}"
            problems.append(Problem("missing_image", where, text, True))
            continue
        try:
            size_wh = (annotation.size_wh if annotation else None) or image_size(image)
        except DataError as error:
            problems.append(problem_of(error, image, "unreadable_image"))
            continue
        if annotation is None:
            bare.append(str(image))
        else:
            rows += [
                _Object(len(entries), item.xml, number, annotation) for number in range(len(annotation.class_names))
            ]
        entries.append(ImageEntry(image, size_wh, len(entries) + 1))
    problems += unannotated(bare, len(entries), part.where, "xml")
    return entries, rows


def _to_table(rows: Sequence[_Object], classes: Sequence[str]) -> ObjectTable:
    class_ids = {name: index for index, name in enumerate(classes)}
    boxes = [row.annotation.boxes_xyxy[row.number] for row in rows]
    return ObjectTable(
        np.array([row.image_index for row in rows], dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array([class_ids[row.class_name] for row in rows], dtype=np.int64),
        np.array([row.annotation.is_crowd[row.number] for row in rows], dtype=bool),
        np.array([row.annotation.areas[row.number] for row in rows], dtype=np.float64),
        np.arange(1, len(rows) + 1, dtype=np.int64),
    )


def _read_or_report(file: Path, problems: list[Problem]) -> Annotation | None:
    try:
        return parse_annotation(read_xml(file), str(file))
    except DataError as error:
        problems.append(problem_of(error, file, "invalid_annotation"))
        return None


def _classes_of(
    folder: Path, parts: Sequence[VocPart], parsed: dict[Path, Annotation | None]
) -> tuple[tuple[str, ...], str]:
    """Class names with their source: a list beside the annotations, or the objects of all splits."""
    for name in CLASS_FILES:
        if (folder / name).is_file():
            return read_names(folder / name), str(folder / name)
    names: set[str] = set()
    # Files that cannot be parsed are reported when their own split is read, so not here.
    for file in dict.fromkeys(file for part in parts for file in xml_files(part.xml_folder)):
        annotation = parsed[file] if file in parsed else _read_or_report(file, [])
        names.update(annotation.class_names if annotation else ())
    if not names:
        raise DataError(f"{folder}: no xml names an object, so there is nothing to detect")
    return tuple(sorted(names)), "the names of its objects"


def save(
    dataset: DetectionDataset, folder: Path, *, split: str = "train", images: Placement = "copy"
) -> tuple[Problem, ...]:
    """Write one split as `Annotations`, `JPEGImages`, `ImageSets/Main/<split>.txt` and `classes.txt`.

    Other splits in the folder stay as they are; images whose names they use are renamed. Ids are not written: they are
    numbered anew when the data set is read.

    Args:
        dataset: the split.
        folder: where to write it.
        split: its name.
        images: copy or link the image files.

    Returns:
        Problems for content that the format cannot hold: none.

    Raises:
        DataError: a class name cannot be written in these files, or the folder holds a data set of other classes.
        OutputError: a file cannot be written.
    """
    for name in dataset.classes:
        if name != name.strip() or not name.isprintable():
            raise DataError(f"{folder}: VOC cannot hold the class name {shown(name)}")
    listed = folder / CLASS_FILES[0]
    if listed.is_file() and read_names(listed) != dataset.classes:
        raise DataError(f"{folder}: this folder already holds a data set of other classes; choose another folder")
    lists = folder / "ImageSets" / "Main"
    taken = [stem for file in sorted(lists.glob("*.txt")) if file.stem != split for stem in read_text(file).split("\n")]
    names = unique_names(dataset.samples, taken)
    write_in(listed.parent, listed.name, "".join(f"{name}\n" for name in dataset.classes))
    for sample, name in zip(dataset.samples, names, strict=True):
        place_image(sample.path, folder / "JPEGImages" / name, images)
        write_in(folder / "Annotations", f"{Path(name).stem}.xml", annotation_text(sample, name, dataset.classes))
    write_in(lists, f"{split}.txt", "".join(f"{Path(name).stem}\n" for name in names))
    return ()


def annotation_text(sample: Sample, image_name: str, classes: Sequence[str]) -> str:
    """Text of the xml of one image."""
    root = Element("annotation")
    SubElement(root, "folder").text = "JPEGImages"
    SubElement(root, "filename").text = image_name
    size = SubElement(root, "size")
    for side, pixels in zip(("width", "height", "depth"), (*sample.size_wh, 3), strict=True):
        SubElement(size, side).text = str(pixels)
    own_areas = has_own_area(sample)
    for position, box in enumerate(sample.boxes_xyxy.tolist()):
        item = SubElement(root, "object")
        SubElement(item, "name").text = classes[int(sample.class_ids[position])]
        SubElement(item, "difficult").text = "0"
        if sample.is_crowd[position]:
            SubElement(item, "iscrowd").text = "1"
        if own_areas[position]:
            SubElement(item, "area").text = repr(float(sample.areas[position]))
        corners = SubElement(item, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            SubElement(corners, side).text = str(int(value)) if value.is_integer() else repr(value)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"
