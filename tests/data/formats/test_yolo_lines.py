import random
from collections.abc import Iterable, Sequence

import pytest

from deformable_detr.data.formats.yolo_lines import (
    KeypointShape,
    LabelFault,
    LabelLine,
    Reading,
    object_of,
    parse_labels,
    readings_of,
)


def lines_of(text: str) -> list[LabelLine]:
    parsed = parse_labels(text)
    assert all(isinstance(line, LabelLine) for line in parsed), parsed
    return [line for line in parsed if isinstance(line, LabelLine)]


def read(
    text: str, keypoints: KeypointShape | None = None, elsewhere: Iterable[int] = ()
) -> tuple[dict[int, Reading], list[tuple[float, ...] | str]]:
    """Readings of a text, and the box or the fault of each of its lines, rounded."""
    lines = lines_of(text)
    readings = readings_of(lines, keypoints, lambda: set(elsewhere))
    found = [object_of(line, readings[line.num_columns]) for line in lines]
    return readings, [
        item.message if isinstance(item, LabelFault) else tuple(round(value, 6) for value in item) for item in found
    ]


def text_of(rows: Sequence[Sequence[float]]) -> str:
    return "".join("0 " + " ".join(f"{value:.6g}" for value in row) + "\n" for row in rows)


def test_lines() -> None:
    text = "3 .5 .5 1 .5\r\n  \n0 .1 .2 .5 .9 .3 .1\nx 1 2 3 4\n0 1 2\n1.5 1 2 3 4\n-1 1 2 3 4\n"
    box, polygon, *faults = parse_labels(text)
    assert box == LabelLine(1, 3, 5, (0, 0.25, 1, 0.75))
    assert isinstance(polygon, LabelLine)
    assert (polygon.line, polygon.num_columns, polygon.hull_xyxy) == (3, 7, (0.1, 0.1, 0.5, 0.9))
    columns = "a box has 5 (class, centre x, centre y, width, height), a polygon 7, 9, ..."
    assert faults == [
        LabelFault(4, "expected numbers, not 'x 1 2 3 4'"),
        LabelFault(5, f"3 columns; {columns}"),
        LabelFault(6, "the class must be a whole number from 0, not '1.5'"),
        LabelFault(7, "the class must be a whole number from 0, not '-1'"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "0 .1 .2 .5 .9 .3 .1",
        "0 .6 .2 .9 .2 .9 .8 .6 .8",
        "0 .3 .3 .7 .35 .7 .7 .45 .9 .3 .7",
        "0 0 0 1 0 1 1 0 1",
        "0 .2 1.000004 .6 .2 .4 -.000003",
        # A rotated box near the centre, which could be a box with two keypoints but for its right angles.
        "0 .5 .4 .6 .5 .5 .6 .4 .5",
        # One that reaches past the border.
        "0 .9 .4 1.1 .5 1.0 .7 .8 .6",
    ],
)
def test_polygons_become_the_boxes_around_them(line: str) -> None:
    numbers = [float(word) for word in line.split()[1:]]
    hull = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
    for text in (line, f"0 .5 .5 .2 .4\n{line}"):
        readings, found = read(text)
        assert found[-1] == pytest.approx(hull, abs=1e-6)
        assert all(not reading.remark for reading in readings.values())


@pytest.mark.parametrize(("number", "dim"), [(4, 2), (4, 3), (17, 3), (1, 2), (2, 3)])
def test_declared_keypoints_are_left_out(number: int, dim: int) -> None:
    point = [0.45, 0.55, 2][:dim]
    text = text_of([[0.5, 0.4, 0.8, 0.6, *point * number], [0.2, 0.3, 0.2, 0.4, *[0.0] * (number * dim)]])
    readings, found = read(text + "0 .5 .5 .2 .2\n", KeypointShape(number, dim))
    assert found == [(0.1, 0.1, 0.9, 0.7), (0.1, 0.1, 0.3, 0.5), (0.4, 0.4, 0.6, 0.6)]
    words = "1 keypoint" if number == 1 else f"{number} keypoints"
    remark = f"the box alone is read, not the {words} after it (kpt_shape: [{number}, {dim}])"
    assert readings[5 + number * dim].remark == remark


def test_declared_keypoints_and_other_columns() -> None:
    readings, _ = read("0 .1 .2 .5 .9 .3 .1\n", KeypointShape(4, 2))
    assert readings[7].kind == "nothing"
    assert readings[7].remark == "7 columns; kpt_shape: [4, 2] needs 13, or 5 for a box without keypoints"


def test_keypoints_with_visibility_are_known_without_a_declaration() -> None:
    text = "0 .5 .4 .8 .6 .3 .45 2 .9 .95 1 0 0 0\n0 .2 .3 .2 .4 .2 .3 1 .2 .2 1 .15 .3 1\n"
    readings, found = read(text)
    assert found == [(0.1, 0.1, 0.9, 0.7), (0.1, 0.1, 0.3, 0.5)]
    assert readings[14].remark == "the box alone is read, not the 3 keypoints with visibility after it"
    readings, found = read("0 .5 .4 .8 .6 .45 .45 2 .55 .45 1 .5 .5 0 .5 .55 2\n")
    assert found == [(0.1, 0.1, 0.9, 0.7)]


@pytest.mark.parametrize("number", [1, 2, 4, 17])
@pytest.mark.parametrize("extra", [[], [0.81], [0.81, 7]])
@pytest.mark.parametrize("dim", [2, 3])
def test_keypoints_that_nobody_declares_are_never_polygons(number: int, dim: int, extra: list[float]) -> None:
    rng = random.Random(number)
    rows = []
    for _ in range(7):
        width, height = rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.5)
        x, y = rng.uniform(width / 2, 1 - width / 2), rng.uniform(height / 2, 1 - height / 2)
        points = [
            value
            for _ in range(number)
            for value in (
                x + rng.uniform(-0.49, 0.49) * width,
                y + rng.uniform(-0.49, 0.49) * height,
                rng.uniform(0.3, 0.99),
            )[:dim]
        ]
        rows.append([x, y, width, height, *points, *extra])
    readings, found = read(text_of(rows))
    (reading,) = readings.values()
    columns = 5 + number * dim + len(extra)
    assert reading.kind == "nothing" or not isinstance(found[0], tuple)
    if columns % 2 and not extra:
        assert f"{columns} columns may be a box with {number} keypoint" in reading.remark
        assert f"write kpt_shape: [{number}, {dim}] into a data.yaml" in reading.remark
        assert "or kpt_shape: null if polygons" in reading.remark


def test_a_declaration_of_no_keypoints_makes_polygons() -> None:
    text = "0 .5 .4 .55 .45 .55 .5 .52 .55 .48 .55\n" * 3
    assert read(text)[0][11].kind == "nothing"
    assert read(text, KeypointShape(0, 2))[1] == [(0.48, 0.4, 0.55, 0.55)] * 3


def test_polygons_of_several_lengths_are_polygons_wherever_they_lie() -> None:
    text = "0 .5 .4 .55 .45 .55 .5 .52 .55 .48 .55\n"
    assert read(text + "0 .5 .4 .55 .45 .55 .5\n")[1] == [(0.48, 0.4, 0.55, 0.55), (0.5, 0.4, 0.55, 0.5)]
    assert read(text, elsewhere=(5, 13))[1] == [(0.48, 0.4, 0.55, 0.55)]
    assert read(text, elsewhere=(5, 11, 8))[0][11].kind == "nothing"


def test_quadrangles_all_over_the_image_are_polygons() -> None:
    rng = random.Random(3)
    rows = []
    for _ in range(60):
        x, y, size = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.02, 0.1)
        corners = ((-1, -0.5), (0.8, -1), (1, 0.7), (-0.4, 1))
        rows.append([value for dx, dy in corners for value in (x + size * dx, y + size * dy)])
    readings, found = read(text_of(rows))
    assert readings[9] == Reading("polygon")
    for row, box in zip(rows, found, strict=True):
        assert box == pytest.approx((min(row[::2]), min(row[1::2]), max(row[::2]), max(row[1::2])), abs=1e-5)


def test_tracks_are_boxes() -> None:
    readings, found = read("0 .5 .5 .2 .2 .91 3\n0 .3 .6 .1 .1 .4 1\n")
    assert found == [(0.4, 0.4, 0.6, 0.6), (0.25, 0.55, 0.35, 0.65)]
    assert readings[7].remark == "the box alone is read, not the confidence and the track id after it"
    readings, _ = read("0 .5 .5 .2 .2 .91 1\n0 .3 .6 .1 .1 .4 1\n")
    assert readings[7].kind == "nothing"
    assert "may be a box with confidence and track id, or a polygon of three points" in readings[7].remark
    # Triangles at the lower border, beside other polygons.
    _, found = read("0 .5 .5 .2 .2 .91 1\n0 .3 .6 .1 .1 .4 1 .2 .2\n")
    assert found[0] == (0.2, 0.2, 0.91, 1)


def test_confidences_are_left_out() -> None:
    readings, found = read("0 .5 .5 .2 .2 .91\n0 .3 .6 .1 .1 1\n")
    assert found == [(0.4, 0.4, 0.6, 0.6), (0.25, 0.55, 0.35, 0.65)]
    assert readings[6].remark == "the box alone is read, not the confidence after it"


@pytest.mark.parametrize(
    "text",
    [
        "0 .5 .5 .2 .2 3\n0 .3 .6 .1 .1 1\n",  # track ids
        "0 .5 .5 .2 .2 1.2\n0 .3 .6 .1 .1 .3\n",  # angles
        "0 .5 .5 .2 .2 -.4\n",
        "0 .91 .5 .5 .2 .3\n0 .85 .3 .3 .4 .1\n",  # the confidence first
        "0 .5 .5 .2 .2 nan\n",
    ],
)
def test_other_sixth_columns_stop(text: str) -> None:
    readings, _ = read(text)
    assert readings[6].kind == "nothing"
    assert readings[6].remark.startswith("6 columns; a box has 5")


@pytest.mark.parametrize("num_columns", [8, 10, 56])
def test_numbers_of_columns_that_mean_nothing(num_columns: int) -> None:
    readings, _ = read("0 .5 .5 .2 .2" + " .1" * (num_columns - 5) + "\n")
    assert readings[num_columns].kind == "nothing"
    assert readings[num_columns].remark.startswith(f"{num_columns} columns; a box has 5")


@pytest.mark.parametrize(
    ("line", "reach"),
    [
        ("0 10 20 60 20 60 80 10 80", r"from (10, 20) to (60, 80)"),  # pixels
        ("0 .2 .2 .6 .2 .4 1.2", r"from (0.2, 0.2) to (0.6, 1.2)"),
        ("0 .2 .2 .6 -.2 .4 .3", r"from (0.2, -0.2) to (0.6, 0.3)"),
        ("0 .1 .1 .5 .1 .5 .5 .1 .5 .3 7", r"from (0.1, 0.1) to (0.5, 7)"),
    ],
)
def test_points_outside_the_image_stop(line: str, reach: str) -> None:
    _, found = read(line)
    assert isinstance(found[0], str)
    assert reach in found[0]
    assert "shares of the image are from 0 to 1" in found[0]


def test_points_that_are_no_numbers_are_left_to_the_rules_for_boxes() -> None:
    (line,) = lines_of("0 .1 .1 .2 .2 nan .3\n")
    box = object_of(line, readings_of([line], None, set)[7])
    assert not isinstance(box, LabelFault)
    assert all(value != value for value in box)
