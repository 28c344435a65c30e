"""Pascal VOC format: an xml per image, found by the stem of its name; boxes are corners, taken as they are.

Objects marked difficult are ordinary objects here. `<iscrowd>1</iscrowd>` and `<area>` within an object are additions
of this package, so that nothing is lost between formats. Classes are in the order of a `classes.txt` or `labels.txt`
in the data set's folder, else alphabetical over all of its splits. An image without an xml counts as one without
objects and is reported; if more than half of a split has none, that is fatal.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample
from deformable_detr.data.formats.assemble import ImageEntry, ObjectTable, assemble, problem_of, unannotated
from deformable_detr.data.formats.label_names import near_misses
from deformable_detr.data.formats.parsing import read_names, read_text, read_xml, shown
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits
from deformable_detr.data.formats.voc_document import Annotation, parse_annotation
from deformable_detr.data.formats.voc_folders import xml_files
from deformable_detr.data.formats.voc_layouts import ListedImage, VocPart, find_parts
from deformable_detr.data.formats.writing import (
    Placement,
    has_own_area,
    place_image,
    unique_names,
    write_in,
)
from deformable_detr.data.images import image_size

LOOKED_FOR = (
    "VOC: xml files beside images or in any folder next to one that has images of the same names, such as Annotations/ "
    "and JPEGImages/, in the folder itself or in train/, val/, test/"
)
_CLASS_FILES = ("classes.txt", "labels.txt")


def find_splits(path: Path) -> SplitLoaders:
    """VOC splits of a folder; empty if there are none."""
    parts = find_parts(path)
    annotations = _XmlAnnotations()
    return name_splits((part.split, partial(_load_part, part, path, parts, annotations)) for part in parts)


def load(folder: Path, *, split: str = "train") -> DetectionDataset:
    """Data set of one split of a VOC folder; faults of single files are listed in its problems.

    Raises:
        DataError: there is no such split, or no class has a name.
    """
    splits = find_splits(folder)
    if split not in splits:
        raise DataError(f"{folder}: no VOC split {split!r} here; there are {', '.join(splits) or 'none'}")
    return splits[split]()


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


class _XmlAnnotations:
    """Xml files of a data set, each parsed once for all of its splits."""

    def __init__(self) -> None:
        self._parsed: dict[Path, Annotation | Problem] = {}

    def of(self, file: Path, problems: list[Problem]) -> Annotation | None:
        """Content of a file; None, with a problem, if it cannot be read."""
        if file not in self._parsed:
            try:
                self._parsed[file] = parse_annotation(read_xml(file), str(file))
            except DataError as error:
                self._parsed[file] = problem_of(error, file, "invalid_annotation")
        parsed = self._parsed[file]
        if isinstance(parsed, Annotation):
            return parsed
        problems.append(parsed)
        return None


def _load_part(part: VocPart, folder: Path, parts: Sequence[VocPart], annotations: _XmlAnnotations) -> DetectionDataset:
    problems: list[Problem] = []
    parsed = {file: annotations.of(file, problems) for file in part.xml_paths()}
    classes, class_source = _classes_of(folder, parts, annotations)
    problems += _shapes_left_out(part, parsed.values())
    entries, rows = _match_images(part, parsed, problems)
    unknown = [row for row in rows if row.class_name not in classes]
    problems += [
        Problem("unknown_class", row.where, f"{class_source} does not list {shown(row.class_name)}", True)
        for row in unknown
    ]
    rows = [row for row in rows if row.class_name in classes]
    samples, box_problems = assemble(
        entries, _to_table(rows, classes), lambda index: rows[index].where, where=part.where, given="corners"
    )
    if not entries:
        problems.append(Problem("invalid_annotation", part.where, "there are no images to read here", True))
    return DetectionDataset(
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        samples=samples,
        problems=(*problems, *box_problems),
        source=f"VOC {part.where}, classes from {class_source}",
    )


def _shapes_left_out(part: VocPart, annotations: Iterable[Annotation | None]) -> list[Problem]:
    """Problems that say once what becomes a box, or is left out, in all files of a split."""
    readable = [annotation for annotation in annotations if annotation is not None]
    counts = [
        (sum(one.num_rotated for one in readable), "a rotated box (<robndbox>) becomes the box around it"),
        (sum(one.num_polygons for one in readable), "a polygon without <bndbox> becomes the box around it"),
        (sum(one.num_deleted for one in readable), "an object marked <deleted> is left out"),
    ]
    return [
        Problem("not_kept", part.where, f"{text}, in {count} case{'s' * (count != 1)}", False)
        for count, text in counts
        if count
    ]


def _match_images(
    part: VocPart, parsed: dict[Path, Annotation | None], problems: list[Problem]
) -> tuple[list[ImageEntry], list[_Object]]:
    """Images of a split that exist and whose size is known, and all of their objects."""
    matches = _Matches(part, parsed)
    entries: list[ImageEntry] = []
    rows: list[_Object] = []
    bare: list[str] = []
    for image, xml in matches.pairs(problems):
        annotation = parsed[xml] if xml is not None else None
        try:
            size_wh = (annotation.size_wh if annotation else None) or image_size(image)
        except DataError as error:
            problems.append(problem_of(error, image, "unreadable_image"))
            continue
        if xml is None or annotation is None:
            bare.append(str(image))
        else:
            rows += [_Object(len(entries), xml, number, annotation) for number in range(len(annotation.class_names))]
        entries.append(ImageEntry(image, size_wh, len(entries) + 1))
    problems += unannotated(bare, len(entries), part.where, "xml")
    return entries, rows


class _Matches:
    """Images of a split with the xml of each: of the same stem, or one that names the image."""

    def __init__(self, part: VocPart, parsed: dict[Path, Annotation | None]) -> None:
        self._part = part
        self._parsed = parsed

    def pairs(self, problems: list[Problem]) -> list[tuple[Path, Path | None]]:
        """Images in the order of the split, each with its xml, or None for one that has none.

        Images whose xml is broken are left out, as that has been reported. All else that does not fit together is added
        to the problems.
        """
        pairs: list[tuple[Path, Path | None]] = []
        lost: list[tuple[Path | None, Problem]] = []
        for item in self._part.items(problems):
            if len(item.xmls) > 1:
                names = listed([shown(xml.name) for xml in item.xmls])
                text = f"{names} are of one stem; keep one of them"
                problems.append(Problem("duplicate_image", str(item.xmls[0]), text, True))
            elif not item.xmls:
                pairs += [(image, None) for image in item.images]
                if not item.images:
                    lost.append((None, self._missing(item.stem, self._part.where)))
            elif self._parsed[item.xmls[0]] is not None:
                xml = item.xmls[0]
                image = self._image_of(xml, item, problems)
                if image is not None:
                    pairs.append((image, xml))
                elif not item.images:
                    lost.append((xml, self._missing(item.stem, str(xml))))
        annotated = {image for image, xml in pairs if xml is not None}
        pairs = [(image, xml) for image, xml in pairs if xml is not None or image not in annotated]
        problems += self._shared(pairs)
        named = {xml for _, xml in pairs}
        orphans = [xml for xml in self._part.orphans() if xml not in named]
        near = near_misses((image for image, xml in pairs if xml is None), orphans)
        problems += near
        explained = {problem.where for problem in near}
        problems += [problem for xml, problem in lost if str(xml) not in explained]
        return pairs

    def _image_of(self, xml: Path, item: ListedImage, problems: list[Problem]) -> Path | None:
        """Image of a readable xml; None if there is none, or if there are twins and it names neither of them."""
        annotation = self._parsed[xml]
        named = self._part.image_named(annotation.image_name if annotation else None)
        if len(item.images) < 2:
            return item.images[0] if item.images else named
        names = listed([shown(image.name) for image in item.images])
        if named in item.images:
            text = f"of the images {names} it names {shown(named.name)}: the others are ignored"
            problems.append(Problem("duplicate_image", str(xml), text, False))
            return named
        text = f"the images {names} are of its stem, and its <filename> names neither; move away what is not meant"
        problems.append(Problem("duplicate_image", str(xml), text, True))
        return None

    def _missing(self, stem: str, where: str) -> Problem:
        text = f"the image is missing: no file {shown(stem)} with an image's ending in {self._part.image_folder}"
        return Problem("missing_image", where, text, True)

    def _shared(self, pairs: Iterable[tuple[Path, Path | None]]) -> list[Problem]:
        """Problems of images that several xml files are for."""
        first: dict[Path, Path | None] = {}
        problems = []
        for image, xml in pairs:
            if first.setdefault(image, xml) != xml:
                text = f"its image {shown(image.name)} is that of {first[image]}, too; is its own image missing?"
                problems.append(Problem("duplicate_image", str(xml), text, True))
        return problems


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


def _classes_of(folder: Path, parts: Sequence[VocPart], annotations: _XmlAnnotations) -> tuple[tuple[str, ...], str]:
    """Class names with their source: a list beside the annotations, or the objects of all splits."""
    for name in _CLASS_FILES:
        if (folder / name).is_file():
            return read_names(folder / name), str(folder / name)
    names: set[str] = set()
    # Files that cannot be parsed are reported when their own split is read, so not here unless there are no others.
    unread: list[Problem] = []
    for file in dict.fromkeys(file for part in parts for file in xml_files(part.xml_folder)):
        annotation = annotations.of(file, unread)
        names.update(annotation.class_names if annotation else ())
    if not names and unread:
        others = f" (and {len(unread) - 1} more xml files that cannot be read)" if len(unread) > 1 else ""
        raise DataError(f"{unread[0].where}: {unread[0].message}{others}")
    if not names:
        raise DataError(f"{folder}: no xml names an object, so there is nothing to detect")
    return tuple(sorted(names)), "the names of its objects"


def save(
    dataset: DetectionDataset,
    folder: Path,
    *,
    split: str = "train",
    images: Placement = "copy",
    on_image: Callable[[], object] | None = None,
) -> tuple[Problem, ...]:
    """Write one split as `Annotations`, `JPEGImages`, `ImageSets/Main/<split>.txt` and `classes.txt`.

    Other splits in the folder stay as they are; images whose names they use are renamed. Ids are not written: they are
    numbered anew when the data set is read.

    Args:
        dataset: the split.
        folder: where to write it.
        split: its name.
        images: copy or link the image files.
        on_image: called after each image that is written.

    Returns:
        Problems for content that the format cannot hold: none.

    Raises:
        DataError: a class name cannot be written in these files, or the folder holds a data set of other classes.
        OutputError: a file cannot be written.
    """
    for name in dataset.classes:
        if name != name.strip() or not name.isprintable():
            raise DataError(f"{folder}: VOC cannot hold the class name {shown(name)}")
    class_file = folder / _CLASS_FILES[0]
    if class_file.is_file() and read_names(class_file) != dataset.classes:
        raise DataError(f"{folder}: this folder already holds a data set of other classes; choose another folder")
    lists = folder / "ImageSets" / "Main"
    taken = [stem for file in sorted(lists.glob("*.txt")) if file.stem != split for stem in read_text(file).split("\n")]
    names = unique_names(dataset.samples, taken)
    write_in(folder, class_file.name, "".join(f"{name}\n" for name in dataset.classes))
    for sample, name in zip(dataset.samples, names, strict=True):
        place_image(sample.path, folder / "JPEGImages" / name, images)
        write_in(folder / "Annotations", f"{Path(name).stem}.xml", annotation_text(sample, name, dataset.classes))
        if on_image is not None:
            on_image()
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
