"""CVAT format ("CVAT for images 1.1"): an xml with an `<image>` for each image; its shapes have labels and pixels.

Boxes (also turned ones), polygons, ellipses, masks and cuboids become the boxes around them. Polylines, points,
skeletons and tags are left out and counted. The classes are those of the task or project in `<meta>`. `subset` of the
images makes the splits. Tracks, from "CVAT for video", name no image files and are refused.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from html import unescape
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import open_file
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.parsing import class_text, name_text, read_bytes, read_xml, real_number, shown
from deformable_detr.data.formats.records import (
    ImageRecord,
    NamedClasses,
    ObjectRecord,
    RecordPart,
    load_part,
    size_of,
)
from deformable_detr.data.formats.shapes import (
    Box,
    box_around,
    box_around_ellipse,
    box_around_turned,
    ignored_shapes,
    read_points,
)
from deformable_detr.data.formats.split_files import image_folders, names_of_parts, split_files
from deformable_detr.data.formats.split_names import SplitLoaders, name_splits

LOOKED_FOR = (
    "CVAT: an xml of <annotations> with <image> elements, such as annotations.xml, in the folder, in annotations/ or "
    "in train/, val/, test/"
)
_SNIFFED_BYTES = 1 << 16
# Atomic groups, because what is no CVAT file may hold thousands of comments.
_BEGINS = re.compile(rb"\s*+(?>(?:<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>]*>)\s*+)*+<annotations[\s>]", re.DOTALL)
_PARTS = re.compile(rb"<(meta|image|track)[\s>]")
_SUBSETS = re.compile(rb"<image\s[^<]*?\ssubset\s*+=\s*+(?:\"([^\"<]*)\"|'([^'<]*)')")
_IMAGES = re.compile(rb"<image[\s>]")
_WITHOUT_BOX = frozenset({"polyline", "points", "skeleton", "tag"})
_CUBOID = ("xtl1", "ytl1", "xbl1", "ybl1", "xtr1", "ytr1", "xbr1", "ybr1",
           "xtl2", "ytl2", "xbl2", "ybl2", "xtr2", "ytr2", "xbr2", "ybr2")  # fmt: skip


class _XmlPart(NamedTuple):
    """Part of an xml that is one split."""

    split: str
    file: Path
    subset: str | None
    """Subset whose images belong here; None for all images, "" for those of none of the named subsets."""
    named: frozenset[str] = frozenset()
    """All subsets that have a split."""


class _Subset:
    """Images of an xml that are one split."""

    def __init__(self) -> None:
        self.records: list[ImageRecord] = []
        self.problems: list[Problem] = []
        self.ignored: Counter[str] = Counter()
        self.error: DataError | None = None


class _XmlContent(NamedTuple):
    """Content of an xml, for all of its splits."""

    labels: list[tuple[int, str | None]]
    """Number and name of each label."""
    subsets: dict[str | None, _Subset]
    """Images by the subset of `_XmlPart`."""


def find_splits(path: Path) -> SplitLoaders:
    """CVAT splits of a folder or of one xml; empty if there are none."""
    found = [
        (part, split)
        for split, file in split_files(path, (".xml",), starts_like_cvat)
        for part in _by_subset(split, file)
    ]
    content_of = cache(_content_of)
    names = names_of_parts([(part.split, split) for part, split in found])
    parts = [_record_part(part, content_of) for part, _ in found]

    def load(position: int) -> DetectionDataset:
        file, named = found[position][0].file, found[position][0].named
        return load_part(parts[position], parts, "CVAT", _classes_of(content_of(file, named).labels, file))

    return name_splits((name, partial(load, position)) for position, name in enumerate(names))


def starts_like_cvat(file: Path) -> bool:
    """Whether an xml file begins as this format does, which other formats of xml files leave to it."""
    try:
        with open_file(file) as stream:
            head = stream.read(_SNIFFED_BYTES)
    except (OSError, ValueError):
        return False
    head = head.removeprefix(b"\xef\xbb\xbf")
    return _BEGINS.match(head) is not None and _PARTS.search(head) is not None


def _by_subset(split: str, file: Path) -> list[_XmlPart]:
    """Splits of a file: one for each subset that its images name, if they name any."""
    try:
        content = read_bytes(file)
    except DataError:
        return [_XmlPart(split, file, None)]  # It is explained when it is read.
    found = _SUBSETS.findall(content)
    names = dict.fromkeys(unescape((double or single).decode("utf-8", "replace")) for double, single in found)
    if not names:
        return [_XmlPart(split, file, None)]
    if len(found) < len(_IMAGES.findall(content)):
        names[""] = None  # Some images name no subset.
    named = frozenset(names)
    return [_XmlPart(name or split, file, name, named) for name in names]


def _classes_of(labels: Sequence[tuple[int, str | None]], file: Path) -> NamedClasses | None:
    names = [class_text(name, f"{file}: label {number}") for number, name in labels]
    return NamedClasses(list(dict.fromkeys(names)), f"<labels> in {file}") if names else None


def _record_part(part: _XmlPart, content_of: Callable[[Path, frozenset[str]], _XmlContent]) -> RecordPart:
    def read(problems: list[Problem]) -> list[ImageRecord]:
        subset = content_of(part.file, part.named).subsets.get(part.subset, _Subset())
        if subset.error is not None:
            raise subset.error
        problems += subset.problems
        problems += ignored_shapes(subset.ignored, str(part.file))
        return subset.records

    return RecordPart(part.split, str(part.file), image_folders(part.file, part.split), read)


def _root_of(file: Path) -> Element:
    root = read_xml(file)
    if root.tag != "annotations":
        raise DataError(f"{file}: not CVAT annotations: the outer element is <{shown(root.tag)[1:-1]}>")
    if root.find("track") is not None:
        raise DataError(
            f"{file}: these are tracks of a video, which name no image files; export the task as 'CVAT for images 1.1' "
            "or as COCO, with its images"
        )
    return root


def _content_of(file: Path, named: frozenset[str]) -> _XmlContent:
    """Content of an xml, whose images are told apart by the subsets that have a split.

    Raises:
        DataError: it cannot be read. What makes one split unusable is raised when that is read.
    """
    root = _root_of(file)
    labels = [
        (number, label.findtext("name"))
        for number, label in enumerate(root.iterfind("meta/*/labels/label"), start=1)
        if label.find("parent") is None  # A part of a skeleton is no class of its own.
    ]
    subsets: dict[str | None, _Subset] = {}
    for number, image in enumerate(root.findall("image"), start=1):
        name = image.get("subset") or ""
        subset = subsets.setdefault(None if not named else name if name in named else "", _Subset())
        if subset.error is not None:
            continue
        try:
            place = f"{file}: image {number}"
            subset.records.append(parse_image(image, place, subset.ignored, subset.problems))
        except DataError as error:
            subset.error = error
    return _XmlContent(labels, subsets)


def parse_image(image: Element, where: str, ignored: Counter[str], problems: list[Problem]) -> ImageRecord:
    """Image of an `<image>` element with its objects; shapes that cannot be used are added to the problems.

    Args:
        image: the element.
        where: its place in the file, for messages.
        ignored: counts shapes without a box by their kind.
        problems: to add to.

    Raises:
        DataError: the image has no name, or its size is none.
    """
    name = name_text(image.get("name"), where, "the name of the image")
    size_wh = size_of(image.get("width"), image.get("height"), where)
    objects = []
    for number, shape in enumerate(image, start=1):
        place = f"{where} ({shown(name)}), shape {number}"
        if shape.tag in _WITHOUT_BOX:
            ignored[shape.tag] += 1
            continue
        try:
            box = _box_of_element(shape, place)
            if box is None:
                ignored[str(shape.tag)] += 1
            else:
                objects.append(ObjectRecord(class_text(shape.get("label"), place, "the label"), box, place))
        except DataError as error:
            problems.append(problem_of(error, place, "invalid_annotation"))
    return ImageRecord(name, where, objects, size_wh)


def _box_of_element(shape: Element, where: str) -> Box | None:
    """Box around a shape; None for a kind that has none."""

    def numbers(*names: str) -> list[float]:
        return [real_number(shape.get(name), where, name) for name in names]

    degrees = real_number(shape.get("rotation") or 0, where, "rotation")
    if shape.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return box_around_turned((left, top, right, bottom), degrees, ((left + right) / 2, (top + bottom) / 2))
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        return box_around_ellipse((x, y), (radius_x, radius_y), math.radians(degrees))
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair.strip()]
        return box_around(read_points(pairs, where, least=3))
    if shape.tag == "mask":
        left, top, width, height = numbers("left", "top", "width", "height")
        return left, top, left + width, top + height
    if shape.tag == "cuboid":
        corners = numbers(*_CUBOID)
        return box_around(zip(corners[::2], corners[1::2], strict=True))
    return None
