"""Charts as inline SVG: in the page's colours, sharp at any size, with a description for screen readers."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from deformable_detr.core.short_text import LONGEST_NAME, shortened
from deformable_detr.report.html_text import html_text

# In CSS pixels, the width of a phone held upright: a chart is never scaled down, so that its letters stay readable.
_WIDTH, _HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 38
_MOST_POINTS = 200
# Colours repeat after six, dashes after five: the first thirty lines differ.
_NUM_COLORS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
_CELL, _NAME_WIDTH, _LETTER = 13, 110, 6


Number = int | float
Range = tuple[Number, Number]


class Series(NamedTuple):
    """Series of points: a line of a chart, or its columns."""

    label: str
    """Name in the legend."""
    xs: Sequence[float]
    """Positions on the x axis, ascending."""
    ys: Sequence[float]
    """Values, one for each of `xs`; NaN leaves a gap in the line."""
    faint: bool = False
    """Whether it is drawn pale, behind the others and without dots."""


class _Frame(NamedTuple):
    """Frame of a chart: from values on its axes to pixels."""

    x_range: Range
    y_range: Range

    def x(self, value: Number) -> float:
        low, high = self.x_range
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: Number) -> float:
        low, high = self.y_range
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    x_range: Range | None = None,
    y_range: Range | None = None,
    mark: tuple[Number, str] | None = None,
) -> str:
    """Line chart as HTML, with a legend below; lines differ in dash as well as in colour.

    Args:
        title: title above the chart.
        series: lines; the first is drawn last, on top of the others.
        x_label: name of the x axis, with its unit.
        y_label: name of the y axis, with its unit.
        x_range: range of the x axis; fitted to the points if left out.
        y_range: range of the y axis; from zero to the highest point if left out.
        mark: position on the x axis for a vertical line, and the text beside it.

    Returns:
        A figure element, or "" if there is nothing to draw.
    """
    series = [_thinned(one) for one in series]
    xs = [x for one in series for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(y)]
    ys = [y for one in series for y in one.ys if math.isfinite(y)]
    if not ys:
        return ""
    frame = _Frame(x_range or _room(min(xs), max(xs)), y_range or _room(min(0.0, *ys), max(ys)))
    parts = [_axes(frame, x_label, y_label)]
    parts += reversed([_line(frame, one, number) for number, one in enumerate(series)])
    if mark is not None:
        parts.append(_mark(frame, *mark))
    keys = [_key(one, number) for number, one in enumerate(series)] if len(series) > 1 else []
    legend = f'<div class="legend">{"".join(keys)}</div>' if keys else ""
    return _figure(title, _described(title, series), "".join(parts), legend)


def column_chart(title: str, labels: Sequence[str], series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Column chart as HTML: columns side by side, one for each label and series.

    Args:
        title: title above the chart.
        labels: names of the groups of columns.
        series: columns of one colour each; only their `ys` are used, one for each label.
        x_label: name of the x axis, with its unit.
        y_label: name of the y axis, with its unit.

    Returns:
        A figure element, or "" if there is nothing to draw.
    """
    highest = max((y for one in series for y in one.ys), default=0)
    if not labels or highest <= 0:
        return ""
    frame = _Frame((0, len(labels)), _room(0, highest))
    width = (frame.x(1) - frame.x(0)) * 0.8 / len(series)
    parts = [_axes(frame, x_label, y_label, x_names=labels)]
    for number, one in enumerate(series):
        for position, value in enumerate(one.ys):
            left, top = frame.x(position + 0.1) + number * width, frame.y(value)
            tip = f"<title>{html_text(one.label)}, {html_text(labels[position])}: {_number(value)}</title>"
            parts.append(
                f'<rect class="f{number}" x="{left:.1f}" y="{top}" width="{width:.1f}" '
                f'height="{max(0.0, frame.y(0) - top):.1f}">{tip}</rect>'
            )
    keys = "".join(
        f'<span class="key"><i class="swatch f{n}"></i>{html_text(s.label)}</span>' for n, s in enumerate(series)
    )
    words = "; ".join(f"{_in_words(one.label)}: {', '.join(_number(y) for y in one.ys)}" for one in series)
    return _figure(title, f"{_in_words(title)}. {words}", "".join(parts), f'<div class="legend">{keys}</div>')


def heat_map(
    title: str, shares: Num[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str], tips: str
) -> str:
    """Heat map as HTML, for a matrix that is too large for numbers: the higher a share, the darker its cell.

    Args:
        title: description for screen readers.
        shares: the matrix, 0..1; cells that are zero stay blank.
        rows: names of the rows, at the left.
        columns: names of the columns, above and rotated.
        tips: template of a cell's tooltip, with `{row}`, `{column}` and `{share}`.
    """
    width, height = _NAME_WIDTH + _CELL * len(columns) + 4, _NAME_WIDTH + _CELL * len(rows) + 4
    parts = []
    for row, name in enumerate(rows):
        y = _NAME_WIDTH + _CELL * row
        parts.append(f'<text class="end" x="{_NAME_WIDTH - 4}" y="{y + 10}">{_short(name)}</text>')
        if row % 2 == 0:
            parts.append(f'<rect class="stripe" x="{_NAME_WIDTH}" y="{y}" width="{width}" height="{_CELL}"/>')
    for column, name in enumerate(columns):
        x = _NAME_WIDTH + _CELL * column + 10
        parts.append(f'<text transform="translate({x} {_NAME_WIDTH - 4}) rotate(-90)">{_short(name)}</text>')
    for row, column in zip(*(place.tolist() for place in np.nonzero(shares)), strict=True):
        share = float(shares[row, column])
        tip = tips.format(row=rows[row], column=columns[column], share=f"{100 * share:.0f} %")
        parts.append(
            f'<rect class="ink" x="{_NAME_WIDTH + _CELL * column}" y="{_NAME_WIDTH + _CELL * row}" width="{_CELL}" '
            f'height="{_CELL}" fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{html_text(tip)}</title></rect>'
        )
    body, words = "".join(parts), html_text(title)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{words}"><svg class="heat" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">{body}</svg></div>'
    )


def _figure(title: str, words: str, body: str, legend: str) -> str:
    return (
        f'<figure><figcaption>{html_text(title)}</figcaption><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{escape(words)}">{body}</svg>{legend}</figure>'
    )


def _described(title: str, series: Sequence[Series]) -> str:
    """Description of a chart in words, for screen readers: where each line begins and ends."""
    words = []
    for one in series:
        points = [(x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(y)]
        if points and not one.faint:
            (x0, y0), (x1, y1) = points[0], points[-1]
            words.append(f"{_in_words(one.label)}: {_number(y0)} at {_number(x0)}, {_number(y1)} at {_number(x1)}")
    return f"{_in_words(title)}. {'; '.join(words)}"


def _thinned(series: Series) -> Series:
    """Series of at most 200 points, each the mean of neighbouring points."""
    count = len(series.ys)
    if count <= _MOST_POINTS:
        return series
    groups = np.array_split(np.arange(count), _MOST_POINTS)
    xs, ys = np.asarray(series.xs, dtype=np.float64), np.asarray(series.ys, dtype=np.float64)
    return series._replace(xs=[float(xs[g].mean()) for g in groups], ys=[float(ys[g].mean()) for g in groups])


def _room(low: Number, high: Number) -> Range:
    """Range of an axis: longer than zero, and up to a tick at or above `high`."""
    if high <= low:
        return low, low + (abs(low) or 1.0)
    return low, max(high, *_ticks(low, high))


def _ticks(low: Number, high: Number) -> list[float]:
    """Ticks of an axis: four to seven round numbers, the first at or above `low`, the last at or above `high`."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _axes(frame: _Frame, x_label: str, y_label: str, *, x_names: Sequence[str] | None = None) -> str:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in _ticks(*frame.y_range):
        if value <= frame.y_range[1] * 1.001:
            y = frame.y(value)
            parts.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
            parts.append(f'<text class="end" x="{left - 5}" y="{y + 4}">{_number(value)}</text>')
    if x_names is not None:
        places = [(frame.x(position + 0.5), name) for position, name in enumerate(x_names)]
    else:
        places = [(frame.x(v), _number(v)) for v in _ticks(*frame.x_range) if v <= frame.x_range[1] * 1.001]
    parts += [f'<text class="mid" x="{x}" y="{bottom + 15}">{html_text(name)}</text>' for x, name in places]
    parts.append(f'<path class="axis" d="M{left} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text class="mid" x="{(left + right) / 2}" y="{_HEIGHT - 5}">{html_text(x_label)}</text>')
    if y_label:
        parts.append(
            f'<text class="mid" transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)">{html_text(y_label)}</text>'
        )
    return "".join(parts)


def _line(frame: _Frame, series: Series, number: int) -> str:
    points = [(frame.x(x), frame.y(y)) if math.isfinite(y) else None for x, y in zip(series.xs, series.ys, strict=True)]
    path, pen_is_up = [], True
    for point in points:
        if point is None:
            pen_is_up = True
            continue
        path.append(f"{'M' if pen_is_up else 'L'}{point[0]} {point[1]}")
        pen_is_up = False
    drawn = [point for point in points if point is not None]
    marked = drawn if len(drawn) <= 12 else drawn[-1:]
    dots = "" if series.faint else "".join(f'<circle cx="{x}" cy="{y}" r="2.2"/>' for x, y in marked)
    dash = "" if series.faint or not _dash(number) else f' stroke-dasharray="{_dash(number)}"'
    faint = " faint" if series.faint else ""
    return f'<g class="s{number % _NUM_COLORS}{faint}"><path d="{"".join(path)}"{dash}/>{dots}</g>'


def _mark(frame: _Frame, place: Number, text: str) -> str:
    x = frame.x(place)
    at_right = x > _WIDTH / 2
    anchor, beside = ("end", x - 4) if at_right else ("start", x + 4)
    return (
        f'<path class="mark" d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        f'<text class="{anchor} halo" x="{beside}" y="{_HEIGHT - _BOTTOM - 6}">{html_text(text)}</text>'
    )


def _key(series: Series, number: int) -> str:
    dash = "" if series.faint or not _dash(number) else f' stroke-dasharray="{_dash(number)}"'
    faint = " faint" if series.faint else ""
    return (
        f'<span class="key"><svg width="26" height="10" aria-hidden="true"><g class="s{number % _NUM_COLORS}{faint}">'
        f'<path d="M1 5H25"{dash}/></g></svg>{html_text(series.label)}</span>'
    )


def _dash(number: int) -> str:
    return _DASHES[number % len(_DASHES)]


def _in_words(name: str) -> str:
    """Name among the words of a chart, of which there may be as many as there are values."""
    return shortened(name, LONGEST_NAME)


def _short(name: str) -> str:
    most = _NAME_WIDTH // _LETTER - 1
    return escape(name if len(name) <= most else name[: most - 1] + "…")


def _number(value: Number) -> str:
    """Number as text, with three digits that count, or as a whole number from 1000 on."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
