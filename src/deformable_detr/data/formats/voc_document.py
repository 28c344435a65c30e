"""Content of one VOC xml: the image it names, and its objects as boxes, whatever shape they have there."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.assemble import LARGEST_SIDE
from deformable_detr.data.formats.parsing import class_name_text, shown
from deformable_detr.data.formats.shapes import Box, Point, box_around

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_NUMBERED_COORDINATE = re.compile(r"([xy])(\d{1,9})")


class Annotation(NamedTuple):
    """Content of one xml; the lists have an entry for each object."""

    size_wh: tuple[int, int] | None
    """Width and height in pixels; None where they are missing or are no size."""
    image_name: str | None
    """File name of the image; None where it is missing."""
    class_names: list[str]
    """Class name of each object."""
    boxes_xyxy: list[Box]
    """Left, top, right, bottom of each object in pixels."""
    is_crowd: list[bool]
    """Whether each object is a region of many."""
    areas: list[float]
    """Area of each object in square pixels; NaN where there is none."""
    num_rotated: int
    """Number of objects that are rotated boxes, of which the box around them is taken."""
    num_polygons: int
    """Number of objects that are polygons without a box, of which the box around them is taken."""
    num_deleted: int
    """Number of objects that are marked as deleted, and left out."""


def parse_annotation(root: Element, where: str) -> Annotation:
    """Annotation in the root element of a VOC xml, whose names are taken without their namespaces.

    Raises:
        DataError: the xml is something else, or an object lacks a name or a shape.
    """
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag.lower() != "annotation":
        raise DataError(f"{where}: not a VOC annotation: the outer element is <{shown(root.tag)[1:-1]}>")
    objects = root.findall("object")
    elsewhere = [element.tag for element in root.iter() if element.tag.lower() in ("object", "bndbox", "robndbox")]
    if not objects and elsewhere:
        text = f"it has <{shown(elsewhere[0])[1:-1]}>, but no <object> directly within <annotation>, where VOC has them"
        raise DataError(f"{where}: {text}")
    names, boxes, crowd, areas, shapes = [], [], [], [], []
    for number, item in enumerate(objects, start=1):
        if (item.findtext("deleted") or "").strip() == "1":
            continue
        place = f"{where}: object {number}"
        names.append(class_name_text((item.findtext("name") or "").strip(), place, "<name>"))
        shape, box = _shape_of(item, place)
        shapes.append(shape)
        boxes.append(box)
        crowd.append((item.findtext("iscrowd") or "").strip() == "1")
        areas.append(_float_or_nan(item.findtext("area")))
    return Annotation(
        _size_of(root),
        (root.findtext("filename") or "").strip() or None,
        names,
        boxes,
        crowd,
        areas,
        num_rotated=shapes.count("robndbox"),
        num_polygons=shapes.count("polygon"),
        num_deleted=len(objects) - len(names),
    )


def _shape_of(item: Element, where: str) -> tuple[str, Box]:
    """Name of the element that has an object's shape, and the box around it; a box goes before any other shape."""
    found = [name for name in ("bndbox", "robndbox", "polygon") if item.find(name) is not None]
    if not found:
        raise DataError(f"{where} has no <bndbox>, <robndbox> or <polygon>")
    shape = found[0]
    if shape != "polygon" and len(item.findall(shape)) > 1:
        raise DataError(f"{where} has {len(item.findall(shape))} elements <{shape}>; write an object for each")
    if shape == "bndbox":
        left, top, right, bottom = _coordinates(item, shape, ("xmin", "ymin", "xmax", "ymax"), where)
        return shape, (left, top, right, bottom)
    if shape == "robndbox":
        return shape, _around_rotated(_coordinates(item, shape, ("cx", "cy", "w", "h", "angle"), where), where)
    return shape, _around_points([point for part in item.findall(shape) for point in _points_of(part, where)], where)


def _coordinates(item: Element, shape: str, sides: Sequence[str], where: str) -> list[float]:
    numbers = []
    for side in sides:
        text = item.findtext(f"{shape}/{side}")
        if text is None:
            raise DataError(f"{where} has no <{side}> in a <{shape}>")
        numbers.append(_coordinate(text, side, where))
    return numbers


def _coordinate(text: str, side: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        comma = "; write decimals with a point" if _DECIMAL_COMMA.fullmatch(text.strip()) else ""
        raise DataError(f"{where}: <{side}> must be a number, not {shown(text)}{comma}") from error


def _around_rotated(numbers: Sequence[float], where: str) -> Box:
    x, y, width, height, angle = numbers
    if not all(map(math.isfinite, numbers)):
        return math.nan, math.nan, math.nan, math.nan
    if abs(angle) > 2 * math.pi:
        raise DataError(f"{where}: <angle> must be in radians, not {angle:g}")
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    half_width, half_height = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def _points_of(polygon: Element, where: str) -> list[Point]:
    """Points of a polygon: `<x1>`, `<y1>`, `<x2>` and so on, or `<pt>` with `<x>` and `<y>`."""
    points = [
        (_coordinate(point.findtext("x") or "", "x", where), _coordinate(point.findtext("y") or "", "y", where))
        for point in polygon.findall("pt")
    ]
    coordinates: dict[int, dict[str, float]] = {}
    for element in polygon:
        numbered = _NUMBERED_COORDINATE.fullmatch(element.tag)
        if numbered:
            value = _coordinate(element.text or "", element.tag, where)
            coordinates.setdefault(int(numbered[2]), {})[numbered[1]] = value
    for number, values in sorted(coordinates.items()):
        if len(values) < 2:
            raise DataError(f"{where}: point {number} of its <polygon> lacks its x or y")
        points.append((values["x"], values["y"]))
    return points


def _around_points(points: Sequence[Point], where: str) -> Box:
    if len(points) < 3:
        raise DataError(f"{where}: an area needs 3 points or more, and its <polygon> has {len(points)}")
    return box_around(points)


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
