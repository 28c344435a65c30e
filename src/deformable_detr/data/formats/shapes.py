"""Boxes around the shapes that annotation tools draw: polygons, circles, ellipses, rectangles that are turned.

Lines and points have no inside, and so no box: readers leave them out and count them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.parsing import real_number, shown

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Point = tuple[float, float]
"""x and y."""

_NO_BOX = (math.nan, math.nan, math.nan, math.nan)


def box_around(points: Iterable[Point]) -> Box:
    """Box around points; NaN if there are none, or one of them is not finite."""
    columns = list(zip(*points, strict=True))
    if not columns or not all(math.isfinite(value) for column in columns for value in column):
        return _NO_BOX
    x, y = columns
    return min(x), min(y), max(x), max(y)


def box_around_flat(points: Sequence[float]) -> Box:
    """Box around points given as x, y, x, y, ...; NaN if there are none, or one of them is not finite."""
    return box_around(zip(points[::2], points[1::2], strict=True))


def box_around_all(boxes: Iterable[Box]) -> Box:
    """Box around boxes; NaN if there are none, or one of them is not finite."""
    return box_around(corner for box in boxes for corner in (box[:2], box[2:]))


def box_around_ellipse(center: Point, radii: Point, radians: float = 0.0) -> Box:
    """Box around an ellipse that is turned about its center by an angle.

    A negative radius gives a box of negative size, which is refused with the other bad boxes.
    """
    (x, y), (radius_x, radius_y) = center, radii
    if not all(map(math.isfinite, (x, y, radius_x, radius_y, radians))):
        return _NO_BOX
    if radians and min(radii) >= 0:
        cos, sin = math.cos(radians), math.sin(radians)
        radius_x, radius_y = (
            math.hypot(radius_x * cos, radius_y * sin),
            math.hypot(radius_x * sin, radius_y * cos),
        )
    return x - radius_x, y - radius_y, x + radius_x, y + radius_y


def box_around_turned(box_xyxy: Box, degrees: float, pivot: Point) -> Box:
    """Box around a rectangle that is turned clockwise about a point.

    Without a turn it is the rectangle itself, even if that has a negative size.
    """
    if degrees == 0:
        return box_xyxy
    left, top, right, bottom = box_xyxy
    if not all(map(math.isfinite, (*box_xyxy, degrees, *pivot))) or right < left or bottom < top:
        return _NO_BOX
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - pivot[0], y - pivot[1]) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
    return box_around((pivot[0] + x * cos - y * sin, pivot[1] + x * sin + y * cos) for x, y in corners)


def read_points(value: object, where: str, *, least: int) -> list[Point]:
    """Points of a list of pairs.

    Args:
        value: to read.
        where: place in the file, for messages.
        least: smallest number of points.

    Raises:
        DataError: it is something else, or has fewer points.
    """
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise DataError(f"{where}: the points must be pairs of numbers, not {shown(value)}")
    if len(value) < least:
        raise DataError(f"{where}: it has {len(value)} points and needs {least} at least")
    return [(real_number(x, where, "x of a point"), real_number(y, where, "y of a point")) for x, y in value]


def paired(x: object, y: object, where: str, *, least: int) -> list[Point]:
    """Points of a list of x and a list of y.

    Raises:
        DataError: they are no lists, differ in length, are too short, or hold something else than numbers.
    """
    if not isinstance(x, list) or not isinstance(y, list):
        raise DataError(f"{where}: x and y of the points must be lists, not {shown(x)} and {shown(y)}")
    if len(x) != len(y):
        raise DataError(f"{where}: it has {len(x)} values of x and {len(y)} of y")
    return read_points([list(point) for point in zip(x, y, strict=True)], where, least=least)


def ignored_shapes(counts: Mapping[str, int], where: str) -> list[Problem]:
    """Problem that counts the shapes left out because they have no box, by kind; none if there are none."""
    total = sum(counts.values())
    if not total:
        return []
    kinds = listed([f"{shown(kind)[1:-1]} {count}" for kind, count in Counter(counts).most_common()], 8)
    return [Problem("ignored_shape", where, f"shapes without a box: {total} ({kinds}); left out", False)]
