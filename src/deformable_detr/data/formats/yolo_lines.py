"""Lines of YOLO label files, and what their columns mean; boxes are shares of the image.

A line says nothing about itself but how many columns it has: 9 can be a polygon of four points, a rotated box, or a box
with two keypoints. So what a number of columns means is decided for all lines of a split that have it, from
`kpt_shape` in the yaml or from what the numbers can and cannot be; where both are possible, nothing is read.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.formats.shapes import Box, box_around_flat

# Corners of polygons are rounded, and drawn a little past the border; those of rotated boxes reach far past it.
_PAST_BORDER = 0.01
_ROTATED_PAST_BORDER = 0.5
# Columns that may follow a box: numbers for each keypoint, and numbers at the end (a confidence, a track id). Without
# visibility these either make the number of columns even, or look like one more keypoint.
_KEYPOINT_LAYOUTS = ((2, 0), (3, 0), (3, 1), (3, 2))
# Lines may be boxes with keypoints if nearly all boxes are in their images and most keypoints in their boxes. Polygons
# that are read so have no more than half of these boxes in the images, or three quarters if they are near the centre.
_LEAST_BOXES_IN_IMAGE = 0.9
_LEAST_PERCENT_IN_BOX = 50
_COLUMNS = "a box has 5 (class, centre x, centre y, width, height), a polygon 7, 9, ..."


class KeypointShape(NamedTuple):
    """Keypoints of a data set, as `kpt_shape` in its yaml says; no keypoints if it says null."""

    number: int
    """Number of keypoints of an object; 0 for none."""
    dim: int
    """Numbers of each keypoint: 2, or 3 with its visibility."""


class LabelLine(NamedTuple):
    """Object in one line of a label file, in all forms that it may be meant in."""

    line: int
    """Number of the line, from 1."""
    class_number: int
    """Class as the file has it."""
    num_columns: int
    """Number of columns, the class included."""
    box_xyxy: Box
    """Box with its centre and size in the columns 2 to 5."""
    hull_xyxy: Box | None = None
    """Box around the points in the columns from 2 on; None where these are not three pairs or more."""
    extra: tuple[float, ...] = ()
    """Columns from 6 on, where they are one or two."""
    percent_in_box: tuple[int, ...] = ()
    """Percentage of keypoints that are in the box, for each layout of keypoints; -1 where the numbers do not fit it.

    Empty if the box itself is not in the image."""
    has_flags: bool = False
    """Whether every third number after a box in the image is a visibility: 0, 1 or 2."""
    is_rectangle: bool = False
    """Whether the columns from 2 on are the corners of a rectangle, upright or rotated."""


class LabelFault(NamedTuple):
    """Fault in one line of a label file, which cannot be used."""

    line: int
    """Number of the line, from 1."""
    message: str
    """Sentence that says what is wrong."""


class Reading(NamedTuple):
    """Meaning of all lines that have one number of columns."""

    kind: Literal["box", "polygon", "nothing"]
    """Kind of object; nothing if the lines cannot be read."""
    remark: str = ""
    """Words that say what is left out of the lines, or why they cannot be read."""


def parse_labels(text: str) -> list[LabelLine | LabelFault]:
    """Objects and faults of a label file, one for each line that is not empty."""
    parsed: list[LabelLine | LabelFault] = []
    for line, content in enumerate(text.splitlines(), start=1):
        words = content.split()
        if not words:
            continue
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            parsed.append(LabelFault(line, f"expected numbers, not {shown(content)}"))
            continue
        if len(numbers) < 5:
            parsed.append(LabelFault(line, f"{len(numbers)} columns; {_COLUMNS}"))
        elif not numbers[0].is_integer() or numbers[0] < 0:
            parsed.append(LabelFault(line, f"the class must be a whole number from 0, not {shown(words[0])}"))
        elif len(numbers) == 5:
            parsed.append(LabelLine(line, int(numbers[0]), 5, _box_at(numbers)))
        else:
            parsed.append(_long_line(line, numbers))
    return parsed


def _box_at(numbers: Sequence[float]) -> Box:
    x, y, width, height = numbers[1:5]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _long_line(line: int, numbers: Sequence[float]) -> LabelLine:
    box_xyxy = _box_at(numbers)
    values = numbers[1:]
    is_polygon = len(values) >= 6 and len(values) % 2 == 0
    percent_in_box: tuple[int, ...] = ()
    # A box that is not in the image rules all layouts out, which for polygons it mostly does.
    if _is_box_in_image(box_xyxy):
        percent_in_box = tuple(_percent_in_box(box_xyxy, values[4:], *layout) for layout in _KEYPOINT_LAYOUTS)
    return LabelLine(
        line,
        int(numbers[0]),
        len(numbers),
        box_xyxy,
        box_around_flat(values) if is_polygon else None,
        tuple(values[4:]) if len(values) <= 6 else (),
        percent_in_box,
        bool(percent_in_box) and percent_in_box[1] >= 0 and set(values[6::3]) <= {0.0, 1.0, 2.0},
        len(values) == 8 and _is_rectangle(values),
    )


def _is_box_in_image(box_xyxy: Box) -> bool:
    left, top, right, bottom = box_xyxy
    return _is_within(box_xyxy, _PAST_BORDER) and left < right and top < bottom


def _is_within(box_xyxy: Box, past_border: float) -> bool:
    return all(-past_border <= value <= 1 + past_border for value in box_xyxy)


def _percent_in_box(box_xyxy: Box, values: Sequence[float], dim: int, num_last: int) -> int:
    """Percentage of keypoints in their box; -1 if the numbers after the box cannot be keypoints and a few more."""
    number, rest = divmod(len(values) - num_last, dim)
    if rest or number < 1:
        return -1
    points, last = values[: number * dim], values[number * dim :]
    if dim == 3 and not all(0 <= value <= 2 for value in points[2::3]):
        return -1
    if last and not 0 <= last[0] <= 1:
        return -1
    margin = 0.001 + 0.02 * max(box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1])
    left, top, right, bottom = box_xyxy[0] - margin, box_xyxy[1] - margin, box_xyxy[2] + margin, box_xyxy[3] + margin
    # A keypoint that is not to be seen has zeros.
    num_inside = sum(
        (left <= x <= right and top <= y <= bottom) or x == y == 0
        for x, y in zip(points[::dim], points[1::dim], strict=True)
    )
    return 100 * num_inside // number


def _is_rectangle(values: Sequence[float]) -> bool:
    """Whether four points are the corners of a parallelogram; shares of width and height make one of a rectangle."""
    x1, y1, x2, y2, x3, y3, x4, y4 = values
    extent = max(max(values[::2]) - min(values[::2]), max(values[1::2]) - min(values[1::2]))
    tolerance = 0.00001 + 0.05 * extent
    area = abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1))
    return area > 0 and abs(x1 + x3 - x2 - x4) <= tolerance and abs(y1 + y3 - y2 - y4) <= tolerance


def readings_of(
    lines: Iterable[LabelLine], keypoints: KeypointShape | None, lengths_elsewhere: Callable[[], set[int]]
) -> dict[int, Reading]:
    """Meaning of every number of columns that occurs.

    Args:
        lines: all lines of a split.
        keypoints: keypoints as the data set's yaml declares them; None if it does not.
        lengths_elsewhere: function that gives the numbers of columns in other splits, called only where those of this
            split leave a doubt.
    """
    groups: dict[int, list[LabelLine]] = defaultdict(list)
    for line in lines:
        groups[line.num_columns].append(line)
    lengths = _polygon_lengths(groups)

    @cache
    def several_lengths() -> bool:
        return len(lengths) > 1 or len(lengths | _polygon_lengths(lengths_elsewhere())) > 1

    return {
        num_columns: _reading(num_columns, group, keypoints, several_lengths) for num_columns, group in groups.items()
    }


def _polygon_lengths(lengths: Iterable[int]) -> set[int]:
    return {length for length in lengths if length >= 7 and length % 2}


def _reading(
    num_columns: int,
    lines: Sequence[LabelLine],
    keypoints: KeypointShape | None,
    several_lengths: Callable[[], bool],
) -> Reading:
    """Meaning of the lines of one number of columns.

    Lines of keypoints and of tracks are all equally long, so polygons of several lengths in one data set are polygons.
    """
    if num_columns == 5:
        return Reading("box")
    if keypoints and keypoints.number:
        return _declared(num_columns, keypoints)
    if num_columns == 6:
        return _with_confidence(lines)
    if num_columns == 7 and all(map(_may_be_track, lines)):
        # The first object may be the only one that is tracked, and 1 is a coordinate, too.
        if any(line.extra[1] > 1 for line in lines):
            return Reading("box", "the box alone is read, not the confidence and the track id after it")
        if not several_lengths():
            text = "7 columns may be a box with confidence and track id, or a polygon of three points"
            return Reading("nothing", f"{text}: leave out the last two columns if this is a box")
    if keypoints is None and _have_flags(lines) and not (num_columns % 2 and several_lengths()):
        number = (num_columns - 5) // 3
        return Reading("box", f"the box alone is read, not the {_keypoints(number)} with visibility after it")
    if num_columns % 2 == 0:
        return Reading("nothing", f"{num_columns} columns; {_COLUMNS}")
    is_rotated_boxes = 2 * sum(line.is_rectangle for line in lines) >= len(lines)
    layout = None if keypoints or is_rotated_boxes else _likely_layout(lines)
    if layout is not None and not several_lengths():
        return _undecided(num_columns, *layout)
    return Reading("polygon")


def _keypoints(number: int) -> str:
    return f"{number} keypoint{'s' * (number != 1)}"


def _declared(num_columns: int, keypoints: KeypointShape) -> Reading:
    number, dim = keypoints
    declared = f"kpt_shape: [{number}, {dim}]"
    if num_columns == 5 + number * dim:
        return Reading("box", f"the box alone is read, not the {_keypoints(number)} after it ({declared})")
    text = f"{num_columns} columns; {declared} needs {5 + number * dim}, or 5 for a box without keypoints"
    return Reading("nothing", text)


def _with_confidence(lines: Sequence[LabelLine]) -> Reading:
    values = [line.extra[0] for line in lines]
    # Whole numbers can be ids, angles in degrees and much else; other angles are not always from 0 to 1.
    confidences = all(0 <= value <= 1 for value in values) and not all(value.is_integer() for value in values)
    if confidences and _are_in_image(lines):
        return Reading("box", "the box alone is read, not the confidence after it")
    text = f"6 columns; {_COLUMNS}; these are no boxes with a confidence from 0 to 1 after them"
    return Reading("nothing", f"{text}: leave the sixth out if it is anything but an angle")


def _are_in_image(lines: Sequence[LabelLine]) -> bool:
    return sum(bool(line.percent_in_box) for line in lines) >= _LEAST_BOXES_IN_IMAGE * len(lines)


def _may_be_track(line: LabelLine) -> bool:
    confidence, track_id = line.extra
    return 0 <= confidence <= 1 and track_id.is_integer() and track_id >= 0 and _is_box_in_image(line.box_xyxy)


def _have_flags(lines: Sequence[LabelLine]) -> bool:
    """Whether every keypoint of all lines has a visibility; of a single keypoint, that could be any whole number."""
    if not all(line.has_flags for line in lines):
        return False
    percents = [line.percent_in_box[1] for line in lines]
    return lines[0].num_columns > 8 or sum(percents) >= _LEAST_PERCENT_IN_BOX * len(lines)


def _likely_layout(lines: Sequence[LabelLine]) -> tuple[int, int] | None:
    """Layout of keypoints that the lines may well have; None if there is none."""
    if not _are_in_image(lines):
        return None
    in_image = [line.percent_in_box for line in lines if line.percent_in_box]
    for position, layout in enumerate(_KEYPOINT_LAYOUTS):
        percents = [percents[position] for percents in in_image]
        num_fitting = sum(percent >= 0 for percent in percents)
        if num_fitting >= _LEAST_BOXES_IN_IMAGE * len(lines) and sum(percents) >= _LEAST_PERCENT_IN_BOX * num_fitting:
            return layout
    return None


def _undecided(num_columns: int, dim: int, num_last: int) -> Reading:
    number = (num_columns - 5 - num_last) // dim
    points = (num_columns - 1) // 2
    text = f"{num_columns} columns may be a box with {_keypoints(number)} or a polygon of {points} points"
    declare = "keep the first 5 columns alone" if num_last else f"write kpt_shape: [{number}, {dim}] into a data.yaml"
    return Reading("nothing", f"{text}: {declare} if these are keypoints, or kpt_shape: null if polygons")


def object_of(line: LabelLine, reading: Reading) -> Box | LabelFault:
    """Box of a line by the meaning of its columns, or the fault that keeps it from having one; shares of the image."""
    box_xyxy = line.hull_xyxy if reading.kind == "polygon" else line.box_xyxy
    if reading.kind == "nothing" or box_xyxy is None:
        return LabelFault(line.line, reading.remark)
    past_border = _ROTATED_PAST_BORDER if line.is_rectangle else _PAST_BORDER
    polygon_is_outside = box_xyxy is line.hull_xyxy and not _is_within(box_xyxy, past_border)
    if polygon_is_outside and all(map(math.isfinite, box_xyxy)):
        x1, y1, x2, y2 = (f"{value:.7g}" for value in box_xyxy)
        text = (
            f"its {line.num_columns} columns are no polygon: its points would reach from ({x1}, {y1}) to ({x2}, {y2}), "
            "and shares of the image are from 0 to 1; write pixels as shares, boxes with 5 columns, and for keypoints "
            "kpt_shape in the data.yaml"
        )
        return LabelFault(line.line, text)
    return box_xyxy
