"""Pictures of the sampling points of a detection, beside a legend."""

from typing import NamedTuple

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from deformable_detr.inference.drawing import Color
from deformable_detr.inference.explanation import Explanation
from deformable_detr.inference.explanation_colors import diverging, level_color
from deformable_detr.inference.explanation_legend import (
    Counts,
    PointSize,
    beside_legend,
    count_rows,
    level_rows,
    path_rows,
    size_rows,
    title_rows,
    zoom_rows,
)
from deformable_detr.inference.explanation_maps import draw_dense
from deformable_detr.inference.explanation_object import around, draw_boxes, draw_names, shown_image
from deformable_detr.inference.explanation_view import LONG_SIDE, View, draw_dots, draw_square, view_of
from deformable_detr.inference.pictures import ImageLike

_LARGEST_DOT, _SMALLEST_DOT = 17.0, 2.0
# Points below this share of the largest are not drawn.
_LEAST = 0.01
_WITH_CELLS = 4


class _Dot(NamedTuple):
    """Sampling point to be drawn."""

    x: float
    y: float
    value: float
    level: int


def draw_points(
    image: ImageLike,
    explanation: Explanation,
    index: int,
    *,
    layer: int = -1,
    size: PointSize | None = None,
    head: int | None = None,
    level: int | None = None,
    long_side: int = LONG_SIDE,
    legend: bool = True,
) -> Image.Image:
    """Picture of the sampling points of one detection in one decoder layer; for DETR, of its attention in that layer.

    Args:
        image: image that was explained.
        explanation: the explanation.
        index: position in its detections.
        layer: position of the decoder layer; -1 is the last.
        size: meaning of the dots' areas: "effect" also colours them by it, "weight" by their level. The effect where
            it was measured, if left out.
        head: only the points of this head, from 0; all if left out.
        level: only the points of this level, from 0; all if left out.
        long_side: longer side of the view in pixels.
        legend: whether there is a legend on the right.

    Raises:
        ValueError: the image has another size, the effects of this layer were not measured, or there is no such head
            or level.
        IndexError: there is no such layer.
    """
    number = range(len(explanation.layers or explanation.dense_maps))[layer]
    if explanation.dense_maps:
        return draw_dense(image, explanation, index, layer=number, head=head, long_side=long_side, legend=legend)
    points = explanation.layers[number]
    _, heads, levels, _ = points.weights.shape
    for name, value, count in (("head", head, heads), ("level", level, levels)):
        if value is not None and not 0 <= value < count:
            raise ValueError(f"there is no {name} {value}: the network has {name}s 0 to {count - 1}")
    size = size or ("weight" if points.effects is None else "effect")
    if size == "effect" and points.effects is None:
        raise ValueError(f"the effects of layer {number + 1} were not measured: explain(..., effects='all') does that")
    values = (points.weights if size == "weight" else points.effects)[index]  # type: ignore[index]
    chosen = _dots(points.locations_px[index], values, head, level)
    picture = shown_image(image, explanation)
    view = view_of(picture, around(explanation, index), long_side=long_side)
    largest = max((abs(dot.value) for dot in chosen), default=0.0)
    drawn = [dot for dot in chosen if abs(dot.value) >= _LEAST * largest and dot.value != 0]
    placed = [dot._replace(x=x, y=y) for dot in drawn for x, y in [view.place(dot.x, dot.y)]]
    seen = sorted((dot for dot in placed if view.holds(dot.x, dot.y)), key=lambda dot: abs(dot.value))
    draw_boxes(view, explanation, index, with_path=True)
    for dot in seen[-_WITH_CELLS:]:
        height, width = explanation.spatial_shapes[dot.level]
        cell = explanation.size_wh[0] / width * view.scale, explanation.size_wh[1] / height * view.scale
        draw_square(view, dot.x, dot.y, cell, level_color(dot.level))
    draw_dots(view, [(dot.x, dot.y, _radius(dot, largest, view), _dot_color(dot, size, largest)) for dot in seen])
    draw_names(view, explanation, index, with_path=legend)  # the legend says what b0 is
    if not legend:
        return view.picture
    only = [f"{name} {value}" for name, value in (("head", head), ("level", level)) if value is not None]
    counts = Counts(
        len(chosen),
        len(seen),
        len(chosen) - len(drawn),
        len(drawn) - len(seen),
        f", {' and '.join(only)} alone" if only else "",
    )
    rows = [
        *title_rows(explanation, index, f"Decoder layer {number + 1} of {len(explanation.layers)}"),
        *size_rows(explanation, index, size, largest),
        *level_rows(explanation, points, index, size),
        *count_rows(explanation, points, index, counts),
        *path_rows(explanation, index, number),
        *zoom_rows(view),
    ]
    return beside_legend(view, rows, picture)


def _dots(
    locations: Float[Tensor, "heads levels points 2"],
    values: Float[Tensor, "heads levels points"],
    head: int | None,
    level: int | None,
) -> list[_Dot]:
    heads, levels, points = values.shape
    return [
        _Dot(float(locations[h, k, p, 0]), float(locations[h, k, p, 1]), float(values[h, k, p]), k)
        for h in range(heads)
        for k in range(levels)
        for p in range(points)
        if head in (None, h) and level in (None, k)
    ]


def _radius(dot: _Dot, largest: float, view: View) -> float:
    return float(max(_SMALLEST_DOT, _LARGEST_DOT * view.unit * (abs(dot.value) / largest) ** 0.5))


def _dot_color(dot: _Dot, size: PointSize, largest: float) -> Color:
    return level_color(dot.level) if size == "weight" else diverging(dot.value / largest)
