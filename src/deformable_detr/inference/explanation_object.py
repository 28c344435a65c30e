"""Object of an explanation in its picture: its box, the way of the box, and the place that was asked for."""

from collections.abc import Sequence

from PIL import Image

from deformable_detr.inference.drawing import class_color, one_line
from deformable_detr.inference.explanation import Explanation
from deformable_detr.inference.explanation_view import View, draw_cross, draw_dashed, draw_label, draw_solid
from deformable_detr.inference.pictures import ImageLike, picture_of

# Boxes that are nearer than this are drawn as one.
_SAME_PX = 5.0
_LONGEST_NAME = 24


def shown_image(image: ImageLike, explanation: Explanation) -> Image.Image:
    """Image that was explained, as displayed.

    Args:
        image: the image.
        explanation: its explanation.

    Raises:
        ValueError: it is another image.
    """
    picture = picture_of(image)
    if picture.size != explanation.size_wh:
        (width, height), (own_width, own_height) = explanation.size_wh, picture.size
        raise ValueError(
            f"the explanation is of an image of {width} x {height} pixels, and this one has {own_width} x {own_height}"
        )
    return picture


def around(explanation: Explanation, index: int) -> list[float]:
    """Box that the view is around: that of the object, with the place that was asked for.

    Args:
        explanation: the explanation.
        index: position in its detections.
    """
    left, top, right, bottom = explanation.detections.boxes_xyxy[index].tolist()
    width, height = (float(side) for side in explanation.size_wh)
    left, right = (min(max(value, 0.0), width) for value in (left, right))
    top, bottom = (min(max(value, 0.0), height) for value in (top, bottom))
    if explanation.missed is not None:
        x, y = explanation.missed.place
        left, top, right, bottom = min(left, x), min(top, y), max(right, x), max(bottom, y)
    return [left, top, right, bottom]


def draw_boxes(view: View, explanation: Explanation, index: int, *, with_path: bool = False) -> None:
    """Draw the final box of an object in the colour of its class, above the way of its box.

    Args:
        view: view to draw on.
        explanation: the explanation.
        index: position in its detections.
        with_path: whether to draw the way: dashed boxes from the first reference on, thin to thick.
    """
    steps = _steps(view, explanation, index) if with_path else []
    for order, (_, box) in enumerate(steps):
        draw_dashed(view, box, 1.5 + 2.0 * order / max(1, len(steps) - 1))
    one = explanation.detections[index]
    draw_solid(view, one.box_xyxy, class_color(one.class_id))


def draw_names(view: View, explanation: Explanation, index: int, *, with_path: bool = False) -> None:
    """Draw the names of an object's boxes, the point that it started from, and the place that was asked for.

    Args:
        view: view to draw on.
        explanation: the explanation.
        index: position in its detections.
        with_path: whether the way of the box is drawn, too.
    """
    one = explanation.detections[index]
    left, top, _, _ = view.box(one.box_xyxy)
    text = f"{_short(one.class_name)} {one.score:.2f}"
    draw_label(view, left, top, text, class_color(one.class_id), size=24)
    steps = _steps(view, explanation, index) if with_path else []
    for order, (name, box) in enumerate(steps):
        # They stand on the lower edges, side by side; the name of the class is at the upper one.
        left, _, right, bottom = view.box(box)
        draw_label(view, left + (right - left) * (order + 0.5) / len(steps), bottom, name, centred=True)
    start = _start_point(explanation, index) if with_path else None
    if start is not None:
        draw_cross(view, *start)
        x, y = view.place(*start)
        draw_label(view, x + 14 * view.unit, y - 6 * view.unit, "b0")
    if explanation.missed is not None:
        draw_cross(view, *explanation.missed.place)
        x, y = view.place(*explanation.missed.place)
        draw_label(view, x + 14 * view.unit, y - 6 * view.unit, "asked for", size=22)


def _start_point(explanation: Explanation, index: int) -> tuple[float, float] | None:
    """First reference if it is a point."""
    if explanation.reference_xyxy is None:
        return None
    left, top, right, bottom = explanation.reference_xyxy[index].tolist()
    return (left, top) if left == right and top == bottom else None


def _steps(view: View, explanation: Explanation, index: int) -> list[tuple[str, list[float]]]:
    """Boxes of the way with their names; those that would be drawn on each other become one."""
    if explanation.reference_xyxy is None:
        return []
    boxes = explanation.path_xyxy[:, index].tolist() if explanation.reference_moves else []
    first = 1
    if _start_point(explanation, index) is None:
        boxes, first = [explanation.reference_xyxy[index].tolist(), *boxes], 0
    groups: list[list[int]] = []
    for number in range(len(boxes)):
        if groups and _moved(boxes[groups[-1][0]], boxes[number]) * view.scale < _SAME_PX * view.unit:
            groups[-1].append(number)
        else:
            groups.append([number])
    names = [f"b{first + group[0]}" + (f"-b{first + group[-1]}" if len(group) > 1 else "") for group in groups]
    return [(name, boxes[group[-1]]) for name, group in zip(names, groups, strict=True)]


def _moved(before: Sequence[float], after: Sequence[float]) -> float:
    return max(abs(first - second) for first, second in zip(before, after, strict=True))


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
