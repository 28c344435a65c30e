"""Legends of pictures of explanations: what the dots and colours mean, with the figures that belong to them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from deformable_detr.inference.drawing import PAPER, Color, font_of, one_line
from deformable_detr.inference.explanation import Explanation, LayerPoints
from deformable_detr.inference.explanation_colors import diverging, level_color
from deformable_detr.inference.explanation_view import INK, WHITE, View
from deformable_detr.inference.explanation_words import percent_of, stride_of

PointSize = Literal["effect", "weight"]
"""Meaning of the size of a point in a picture."""
_PANEL, _MARGIN, _FONT = 430, 18, 22
_LEAST_MAP, _BAR, _GAP = 130, 22, 7
_SOFT: Color = (95, 95, 95)
# Boxes nearer than this are the same; sums round.
_SAME_PX = 0.1


class LegendRow(NamedTuple):
    """Row of a legend."""

    text: str
    """Text, which is broken where it is too long."""
    swatch: Color | None = None
    """Colour of a dot in front of it."""
    bar: tuple[Color, ...] = ()
    """Colours of a bar above the text, from left to right."""
    hollow: bool = False
    """Whether it is an empty square instead of a dot."""
    bold: bool = False
    """Whether it is a title."""


class Counts(NamedTuple):
    """Numbers of dots in a picture."""

    all: int
    """Dots that were chosen."""
    shown: int
    """Dots that are drawn."""
    small: int
    """Dots that are too small to be drawn."""
    beyond: int
    """Dots outside of the view."""
    only: str
    """Choice of head and level in words; empty if all are chosen."""


def title_rows(explanation: Explanation, index: int, what: str) -> list[LegendRow]:
    """Rows that name the detection, and what is shown of it.

    Args:
        explanation: the explanation.
        index: position in its detections.
        what: name of what is shown.
    """
    one = explanation.detections[index]
    rows = [LegendRow(f"{one.class_name} {one.score:.2f}", bold=True), LegendRow(f"{what}, query {one.query_id}")]
    if explanation.missed is not None:
        x, y = (f"{value:.0f}" for value in explanation.missed.place)
        rows[0] = LegendRow(f"No detection at {x},{y}", bold=True)
        rows.insert(1, LegendRow(f"Shown is the query that came nearest: {explanation.missed.reason()}."))
    return rows


def size_rows(explanation: Explanation, index: int, size: PointSize, largest: float) -> list[LegendRow]:
    """Rows on what the areas and the colours of the dots mean.

    Args:
        explanation: the explanation.
        index: position in its detections.
        size: meaning of the areas.
        largest: largest value, as an absolute number.
    """
    if size == "weight":
        return [LegendRow(f"Area: attention weight; the largest is {largest:.3f}. Those of a head sum to 1.")]
    name = explanation.detections[index].class_name
    bar = tuple(diverging(number / 10) for number in range(-10, 11))
    return [
        LegendRow(
            f"-{largest:.2g} to {largest:.2g}: fall of the logit of {name} if the dot is left out. "
            "Blue speaks for it, red against.",
            bar=bar,
        ),
    ]


def level_rows(explanation: Explanation, points: LayerPoints, index: int, size: PointSize) -> list[LegendRow]:
    """Rows on the share of the weight on each level.

    Args:
        explanation: the explanation.
        points: points of the layer.
        index: position in the detections.
        size: meaning of the areas; the colours are those of levels if it is the weight.
    """
    rows = [LegendRow("Weight by level, finest first, all heads:")]
    for level, share in enumerate(points.level_shares()[index].tolist()):
        height, width = explanation.spatial_shapes[level]
        text = f"stride {stride_of(explanation, level)}, {height} x {width} cells: {percent_of(share)}"
        rows.append(LegendRow(text, swatch=level_color(level), hollow=size == "effect"))
    rows.append(LegendRow("Square: as large as a cell, at the largest dots. A dot reads the four cells next to it."))
    return rows


def count_rows(explanation: Explanation, points: LayerPoints, index: int, counts: Counts) -> list[LegendRow]:
    """Rows on the dots that are not drawn, and on how much the pattern says.

    Args:
        explanation: the explanation.
        points: points of the layer.
        index: position in the detections.
        counts: numbers of dots.
    """
    hidden = [f"{counts.small} below 1 % of the largest"] if counts.small else []
    hidden += [f"{counts.beyond} outside this view"] if counts.beyond else []
    text = f"{counts.shown} of {counts.all} dots shown{counts.only}"
    if hidden:
        text += f"; hidden: {', '.join(hidden)}"
    half, every = int(points.points_for_half()[index]), points.weights[0].numel()
    return [
        LegendRow(text),
        LegendRow(
            f"Half of all weight in {half} of {every} dots; outside the image: "
            f"{percent_of(float(points.outside(explanation.size_wh)[index]))} of it"
        ),
        LegendRow(
            f"From query to query, offsets vary by {percent_of(points.offset_variation)}, weights by "
            f"{percent_of(points.weight_variation)}"
        ),
    ]


def path_rows(explanation: Explanation, index: int, layer: int) -> list[LegendRow]:
    """Row on the dashed boxes: where the query started, and where a layer looked from.

    Args:
        explanation: the explanation.
        index: position in its detections.
        layer: position of the layer, from 0.
    """
    if explanation.reference_xyxy is None:
        return []
    start = "b0: learned reference"
    if explanation.proposals:
        level, row, column = explanation.proposals[index]
        start = f"b0: proposal of stride {stride_of(explanation, level)}, row {row}, column {column}"
    if not explanation.reference_moves:
        return [LegendRow(f"{start}; every layer looks from it.")]
    last = len(explanation.path_xyxy)
    before = explanation.reference_xyxy if layer == 0 else explanation.path_xyxy[layer - 1]
    apart = float((explanation.layers[layer].reference_xyxy[index] - before[index]).abs().max())
    near = "near " if apart > _SAME_PX else ""
    return [LegendRow(f"{start}. b1 to b{last}: boxes after the layers; this one looks from {near}b{layer}.")]


def zoom_rows(view: View) -> list[LegendRow]:
    """Row on how much the photo is enlarged.

    Args:
        view: the view.
    """
    text = f"Part of the image, {view.scale:.1f} times" if view.is_cropped else f"Whole image, {view.scale:.1f} times"
    return [LegendRow(f"{text} as large")]


def beside_legend(view: View, rows: Sequence[LegendRow], image: Image.Image | None = None) -> Image.Image:
    """Picture with the view on the left and a legend on the right.

    Args:
        view: the view.
        rows: rows of the legend, from top to bottom.
        image: whole image, for a small picture below the rows that shows where the view is; None leaves it out.
    """
    panel = panel_of(rows)
    parts = [panel]
    if image is not None and view.is_cropped:
        parts.append(_map_of(view, image, view.picture.height - panel.height - _MARGIN))
    height = max(view.picture.height, sum(part.height for part in parts) + _MARGIN)
    canvas = Image.new("RGB", (view.picture.width + _PANEL, height), PAPER)
    canvas.paste(view.picture, (0, 0))
    top = 0
    for part in parts:
        canvas.paste(part, (view.picture.width, top))
        top += part.height
    return canvas


def panel_of(rows: Sequence[LegendRow]) -> Image.Image:
    """Legend alone, as high as its rows need.

    Args:
        rows: rows of the legend, from top to bottom.
    """
    plain = all(row.text.isascii() for row in rows)
    usual, title = font_of(_FONT, is_plain=plain), font_of(round(_FONT * 1.35), is_plain=plain)
    inner = _PANEL - 2 * _MARGIN
    broken = [_broken(one_line(row.text), title if row.bold else usual, float(inner - _indent(row))) for row in rows]
    heights = [
        (_BAR if row.bar else 0) + len(lines) * _line_height(row) + _GAP
        for row, lines in zip(rows, broken, strict=True)
    ]
    panel = Image.new("RGB", (_PANEL, _MARGIN + sum(heights)), PAPER)
    draw = ImageDraw.Draw(panel)
    top = _MARGIN
    for row, lines, height in zip(rows, broken, heights, strict=True):
        below = top
        if row.bar:
            cell = inner / len(row.bar)
            for number, color in enumerate(row.bar):
                left = _MARGIN + number * cell
                draw.rectangle((left, top, left + cell, top + _BAR - 4), fill=color)
            draw.rectangle((_MARGIN, top, _MARGIN + inner, top + _BAR - 4), outline=_SOFT)
            below += _BAR
        if row.swatch is not None:
            place = (_MARGIN, below + 5, _MARGIN + 17, below + 22)
            if row.hollow:
                draw.rectangle(place, outline=row.swatch, width=3)
            else:
                draw.ellipse(place, fill=row.swatch)
        for number, text in enumerate(lines):
            place_of_line = (_MARGIN + _indent(row), below + number * _line_height(row))
            draw.text(place_of_line, text, fill=INK, font=title if row.bold else usual)
        top += height
    return panel


def _indent(row: LegendRow) -> int:
    return 26 if row.swatch is not None else 0


def _line_height(row: LegendRow) -> int:
    return round(_FONT * (1.7 if row.bold else 1.25))


def _broken(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> list[str]:
    """Lines of a text that fit into a width; a word that is too long is cut."""
    lines: list[str] = []
    for word in text.split():
        wider = f"{lines[-1]} {word}" if lines else word
        if lines and letters.getlength(wider) <= room:
            lines[-1] = wider
            continue
        while letters.getlength(word) > room and len(word) > 1:
            word = word[:-4] + "..." if len(word) > 8 else word[:-1]
        lines.append(word)
    return lines


def _map_of(view: View, image: Image.Image, room: int) -> Image.Image:
    """Small picture of the whole image, with the part of the view marked, about as high as there is room."""
    inner = _PANEL - 2 * _MARGIN
    ratio = min(inner / image.width, max(_LEAST_MAP, min(room, inner)) / image.height)
    small = image.convert("RGB").resize(
        (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), reducing_gap=2.0
    )
    draw = ImageDraw.Draw(small)
    left, top, right, bottom = (round(edge * ratio) for edge in view.window)
    edges = (left, top, max(left + 2, right - 1), max(top + 2, bottom - 1))
    draw.rectangle((edges[0] - 1, edges[1] - 1, edges[2] + 1, edges[3] + 1), outline=WHITE, width=4)
    draw.rectangle(edges, outline=INK, width=2)
    part = Image.new("RGB", (_PANEL, small.height + _MARGIN), PAPER)
    part.paste(small, (_MARGIN, 0))
    return part
