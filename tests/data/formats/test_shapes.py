import math
from collections import Counter

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.shapes import (
    box_around,
    box_around_all,
    box_around_ellipse,
    box_around_flat,
    box_around_turned,
    ignored_shapes,
    paired,
    read_points,
)


def test_around_points() -> None:
    assert box_around([(3.0, 9.0), (1.0, 2.0), (7.0, 4.0)]) == (1, 2, 7, 9)
    for points in ([], [(1.0, math.nan)], [(math.inf, 2.0), (1.0, 2.0)]):
        assert all(map(math.isnan, box_around(points)))


@pytest.mark.parametrize("degrees", [0, 30, 90, -45, 200])
def test_around_an_ellipse_by_its_outline(degrees: int) -> None:
    radians, around = math.radians(degrees), np.linspace(0, 2 * math.pi, 100_000)
    x, y = 7 * np.cos(around), 2 * np.sin(around)
    turned = np.stack([40 + x * np.cos(radians) - y * np.sin(radians), 30 + x * np.sin(radians) + y * np.cos(radians)])
    expected = [*turned.min(axis=1), *turned.max(axis=1)]
    assert box_around_ellipse((40.0, 30.0), (7.0, 2.0), radians) == pytest.approx(expected, abs=1e-6)


def test_bad_ellipses_give_bad_boxes() -> None:
    left, _, right, _ = box_around_ellipse((4.0, 3.0), (-2.0, 5.0), 0.3)
    assert right < left
    assert all(map(math.isnan, box_around_ellipse((4.0, math.inf), (2.0, 5.0))))


def test_around_a_turned_rectangle() -> None:
    box, center, corner = (10.0, 20.0, 16.0, 22.0), (13.0, 21.0), (10.0, 20.0)
    assert box_around_turned(box, 0.0, corner) == box
    # A quarter clockwise, as the y axis points down: the right end goes to the bottom.
    assert box_around_turned(box, 90.0, center) == pytest.approx((12, 18, 14, 24))
    assert box_around_turned(box, 90.0, corner) == pytest.approx((8, 20, 10, 26))
    assert box_around_turned(box, -90.0, corner) == pytest.approx((10, 14, 12, 20))
    reach = (6 + 2) / math.sqrt(2) / 2
    expected = (13 - reach, 21 - reach, 13 + reach, 21 + reach)
    assert box_around_turned(box, 45.0, center) == pytest.approx(expected)
    negative = (16.0, 20.0, 10.0, 22.0)
    assert all(map(math.isnan, box_around_turned(negative, 45.0, center)))
    assert box_around_turned(negative, 0.0, center) == negative


def test_points_of_a_file() -> None:
    assert read_points([[1, "2"], [3.5, 4]], "x", least=2) == [(1, 2), (3.5, 4)]
    assert paired([1, 3.5], [2, 4], "x", least=2) == [(1, 2), (3.5, 4)]
    for value in (None, [1, 2], [[1, 2, 3]], {"a": 1}):
        with pytest.raises(DataError, match="x: the points must be pairs of numbers"):
            read_points(value, "x", least=1)
    with pytest.raises(DataError, match="x: it has 1 points and needs 3 at least"):
        read_points([[1, 2]], "x", least=3)
    with pytest.raises(DataError, match="x: y of a point must be a number, not None"):
        read_points([[1, None]], "x", least=1)
    with pytest.raises(DataError, match="x: it has 2 values of x and 1 of y"):
        paired([1, 2], [1], "x", least=1)
    with pytest.raises(DataError, match="x: x and y of the points must be lists, not None and 3"):
        paired(None, 3, "x", least=1)


def test_ignored_shapes_are_counted() -> None:
    assert ignored_shapes(Counter({"line": 0}), "x") == []
    (problem,) = ignored_shapes(Counter({"line": 2, "point\n": 5}), "x")
    assert (problem.kind, problem.where, problem.fatal) == ("ignored_shape", "x", False)
    assert problem.message == r"shapes without a box: 7 (point\n 5, line 2); left out"


def test_boxes_around_numbers_and_boxes() -> None:
    assert box_around_flat([3.0, 9.0, 1.5, 4.0, 2.0, 7.25]) == (1.5, 4.0, 3.0, 9.0)
    assert box_around_all([(1.0, 5.0, 3.0, 8.0), (0.0, 6.0, 2.0, 9.0)]) == (0, 5, 3, 9)
    for strange in (math.nan, math.inf):
        assert all(map(math.isnan, box_around_flat([1.0, strange, 2.0, 3.0])))
        assert all(map(math.isnan, box_around_all([(1.0, 2.0, 3.0, 4.0), (1.0, strange, 3.0, 4.0)])))
    assert all(map(math.isnan, box_around_flat([])))
