"""VIA format (VGG Image Annotator 2): regions of each image, in a project or an export as json, or in a csv.

Rectangles, circles, ellipses and polygons become the boxes around them. Polylines and points are left out and counted.
A region has attributes that its annotator defined; the class is the one that is called so, else the only one that all
regions have. Where none is, the data set is refused; regions without any attribute are of one class.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.core.reading import json_value
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.delimited import first_rows, read_table
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.parsing import class_text, name_text, read_json, real_number, shown
from deformable_detr.data.formats.records import (
    ONLY_CLASS,
    ImageRecord,
    ObjectRecord,
    RecordPart,
    only_class_problem,
    part_loaders,
    read_once,
)
from deformable_detr.data.formats.shapes import Box, box_around, box_around_ellipse, ignored_shapes, paired
from deformable_detr.data.formats.split_files import image_folders, split_files
from deformable_detr.data.formats.split_names import SplitLoaders

LOOKED_FOR = (
    "VIA: a json of images with filename and regions, such as via_region_data.json or a project, or a csv with "
    "region_shape_attributes, in the folder or in train/, val/, test/"
)
_CLASS_ATTRIBUTES = (
    frozenset({"class", "classname", "classid", "label", "labelname", "labelid", "category", "categoryname", "labels"}),
    frozenset({"name", "type", "object", "objectname", "objecttype", "species", "kind"}),
)
_CSV_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


class _Region(NamedTuple):
    """Region of an image, as it stands in the file."""

    where: str
    box: Box
    attributes: dict[str, Any]


class _Image(NamedTuple):
    """Image with its regions, as it stands in the file."""

    name: str
    where: str
    regions: list[_Region]


def find_splits(path: Path, starts: JsonStarts = start_of_json) -> SplitLoaders:
    """VIA splits of a folder, or of one json or csv; empty if there are none."""
    found = split_files(path, (".json",), lambda file: starts(file).kind == "via")
    found = found or split_files(path, (".csv",), _is_via_table)
    files = _ViaFiles([file for _, file in found])
    parts = [
        RecordPart(split, str(file), image_folders(file, split), partial(files.records_of, file))
        for split, file in found
    ]
    return part_loaders(parts, "VIA")


def _is_via_table(file: Path) -> bool:
    rows = first_rows(file)
    return bool(rows) and set(_CSV_COLUMNS) <= {cell.removeprefix("#").strip() for cell in rows[0].cells}


class _ViaFiles:
    """Files of a data set, each read once. Which attribute is the class, all of them decide together."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._images_of = {file: read_once(partial(_images_in, file)) for file in files}
        self._decided: list[str | None] = []

    def records_of(self, file: Path, problems: list[Problem]) -> list[ImageRecord]:
        """Records of one file.

        Raises:
            DataError: it cannot be read, or several attributes could be the class.
        """
        images = self._images_of[file](problems)
        if not self._decided:
            self._decided.append(class_attribute(self._attributes(), str(file)))
        attribute = self._decided[0]
        if attribute is None:
            problems.append(only_class_problem(str(file)))
        records = []
        for image in images:
            objects = []
            for region in image.regions:
                try:
                    name = ONLY_CLASS if attribute is None else _value_of(region, attribute)
                    objects.append(ObjectRecord(name, region.box, region.where))
                except DataError as error:
                    problems.append(problem_of(error, region.where, "invalid_annotation"))
            records.append(ImageRecord(image.name, image.where, objects))
        return records

    def _attributes(self) -> Iterator[dict[str, Any]]:
        """Attributes of every region, in all files."""
        for images_of in self._images_of.values():
            try:
                found = images_of([])
            except DataError:
                continue  # It is explained when it is read itself.
            yield from (region.attributes for image in found for region in image.regions)


def class_attribute(regions: Iterable[dict[str, Any]], where: str) -> str | None:
    """Attribute of regions that is their class; None if no region has any.

    Args:
        regions: attributes of each region; empty ones do not count.
        where: file, for the message.

    Raises:
        DataError: it could be one of several.
    """
    num_regions = 0
    counts: Counter[str] = Counter()
    for attributes in regions:
        num_regions += 1
        counts.update(name for name, value in attributes.items() if value not in (None, "", {}, []))
    if not counts:
        return None
    for names in _CLASS_ATTRIBUTES:
        called_so = [name for name in counts if "".join(filter(str.isalnum, name.lower())) in names]
        if len(called_so) == 1:
            return called_so[0]
        if called_so:
            raise _not_certain(called_so, where)
    everywhere = [name for name in counts if counts[name] == num_regions]
    if len(counts) == 1 or len(everywhere) == 1:
        return (everywhere or list(counts))[0]
    raise _not_certain(everywhere or list(counts), where)


def _not_certain(names: Sequence[str], where: str) -> DataError:
    return DataError(
        f"{where}: which attribute of a region is its class? It could be {listed([shown(name) for name in names], 5)}; "
        "name the right one class, and no other so"
    )


def _value_of(region: _Region, attribute: str) -> str:
    """Class of a region: text, or the one box that is ticked."""
    value = region.attributes.get(attribute)
    if isinstance(value, dict):
        ticked = [name for name, is_ticked in value.items() if is_ticked is True]
        if len(ticked) > 1:
            raise DataError(
                f"{region.where}: {attribute} has several values: {listed([shown(name) for name in ticked])}"
            )
        value = ticked[0] if ticked else None
    if value is None or value == "":
        raise DataError(f"{region.where}: it has no {shown(attribute)}, which is the class of the others")
    return class_text(value, region.where, shown(attribute))


def _images_in(file: Path, problems: list[Problem]) -> list[_Image]:
    ignored: Counter[str] = Counter()
    items = _csv_items(file, problems) if file.suffix.lower() == ".csv" else _json_items(file)
    images = []
    for where, name, regions in items:
        found = []
        for number, (shape, attributes) in enumerate(regions, start=1):
            place = f"{where}, region {number}"
            try:
                region = _parse_region(shape, attributes, place, ignored)
            except DataError as error:
                problems.append(problem_of(error, place, "invalid_annotation"))
                continue
            found += [region] if region else []
        images.append(_Image(name, where, found))
    problems += ignored_shapes(ignored, str(file))
    return images


_Item = tuple[str, str, list[tuple[Any, Any]]]
"""Place and name of an image, and the shape and the attributes of each of its regions."""


def _json_items(file: Path) -> Iterator[_Item]:
    document = read_json(file)
    images = document.get("_via_img_metadata", document) if isinstance(document, dict) else document
    if not isinstance(images, dict):
        raise DataError(f"{file}: not VIA annotations: expected an object of images, found {shown(images)}")
    for key, item in images.items():
        where = f"{file}: {shown(key)[1:-1]}"
        if not isinstance(item, dict):
            raise DataError(f"{where} is {shown(item)}, not an object")
        regions = item.get("regions") or []
        if isinstance(regions, dict):  # VIA 1 numbers them.
            regions = list(regions.values())
        if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
            raise DataError(f"{where}: regions must be a list of objects, not {shown(regions)}")
        shapes = [(region.get("shape_attributes"), region.get("region_attributes")) for region in regions]
        yield where, name_text(item.get("filename"), where, "filename"), shapes


def _csv_items(file: Path, problems: list[Problem]) -> list[_Item]:
    rows = read_table(file)
    header = [cell.removeprefix("#").strip() for cell in rows[0].cells]
    places = [header.index(name) for name in _CSV_COLUMNS]
    images: dict[str, _Item] = {}
    for line, cells in rows[1:]:
        where = f"{file}:{line}"
        try:
            if len(cells) < len(header):
                raise DataError(f"{where}: {len(cells)} columns, and {len(header)} are expected")
            name, *texts = (cells[place] for place in places)
            name_text(name, where, "filename")
            shape, attributes = (json_value(text or "{}") for text in texts)
        except (DataError, ValueError) as error:
            problems.append(problem_of(error, where, "invalid_annotation"))
            continue
        _, _, regions = images.setdefault(name, (where, name, []))
        if shape != {}:  # A row without a shape is an image without regions.
            regions.append((shape, attributes))
    return list(images.values())


def _parse_region(shape: object, attributes: object, where: str, ignored: Counter[str]) -> _Region | None:
    if not isinstance(shape, dict) or not isinstance(attributes, dict | None):
        raise DataError(f"{where}: expected shape_attributes and region_attributes, found {shown(shape)}")
    kind = shape.get("name")

    def numbers(*names: str) -> list[float]:
        return [real_number(shape.get(name), where, name) for name in names]

    box: Box
    if kind == "rect":
        left, top, width, height = numbers("x", "y", "width", "height")
        box = left, top, left + width, top + height
    elif kind == "circle":
        x, y, radius = numbers("cx", "cy", "r")
        box = box_around_ellipse((x, y), (radius, radius))
    elif kind == "ellipse":
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        radians = real_number(shape.get("theta") or 0, where, "theta")
        box = box_around_ellipse((x, y), (radius_x, radius_y), radians)
    elif kind == "polygon":
        box = box_around(paired(shape.get("all_points_x"), shape.get("all_points_y"), where, least=3))
    else:
        name_text(kind, where, "the name of the shape")
        ignored[str(kind)] += 1
        return None
    return _Region(where, box, attributes or {})
