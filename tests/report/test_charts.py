import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from deformable_detr.report.charts import Series, column_chart, heat_map, line_chart

NAN = math.nan


def parsed(html):
    return ElementTree.fromstring(html)


def paths(html):
    """The lines' points, of the groups in the chart."""
    svg = parsed(html).find(".//svg[@class='chart']")
    return [
        [tuple(map(float, point.split())) for point in re.split("[ML]", group.find("path").get("d")) if point]
        for group in svg.findall("g")
    ]


def test_points_lie_where_the_axes_say():
    html = line_chart("t", [Series("a", [0, 5, 10], [0, 1, 0.5])], x_label="x", x_range=(0, 10), y_range=(0, 1))
    (left, bottom), (middle, top), (right, half) = paths(html)[0]
    assert left < middle < right
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert top < half < bottom
    assert half == pytest.approx((top + bottom) / 2, abs=0.1)
    texts = {text.text: text for text in parsed(html).iter("text")}
    assert float(texts["10"].get("x")) == right
    assert float(texts["1"].get("y")) == pytest.approx(top + 4)


def test_nothing_is_drawn_outside():
    ys = [1e-9, 3.2e5, 17, 2e-3]
    html = line_chart("t", [Series("a", [3, 4, 5, 6], ys), Series("b", [4, 9], [-7, 0])], x_label="x")
    for line in paths(html):
        assert all(0 <= x <= 340 and 0 <= y <= 220 for x, y in line)


def test_what_is_no_number_leaves_a_gap():
    html = line_chart("t", [Series("a", [1, 2, 3, 4], [0.5, NAN, 0.25, 1])], x_label="x")
    d = parsed(html).find(".//svg/g/path").get("d")
    assert (d.count("M"), d.count("L")) == (2, 1)
    assert line_chart("t", [Series("a", [1, 2], [NAN, NAN])], x_label="x") == ""
    assert line_chart("t", [], x_label="x") == ""


@pytest.mark.parametrize("ys", [[0.0], [5.0], [0.0, 0.0], [-1.0, -1.0], [1e-12, 1e-12]])
def test_a_single_value_has_an_axis(ys):
    assert "nan" not in line_chart("t", [Series("a", list(range(len(ys))), ys)], x_label="x").lower()


def test_lines_differ_without_colour_and_are_named_in_the_legend():
    html = line_chart("t", [Series(f"line {i}", [0, 1], [i, i + 1]) for i in range(8)], x_label="x")
    groups = parsed(html).find(".//svg[@class='chart']").findall("g")
    looks = {(group.get("class"), group.find("path").get("stroke-dasharray")) for group in groups}
    assert len(looks) == 8
    assert [key.findtext(".") or "".join(key.itertext()) for key in parsed(html).findall(".//span")] == [
        f"line {i}" for i in range(8)
    ]


def test_charts_are_said_in_words_and_escape_names():
    html = line_chart("A <b> & c", [Series('"x"', [1, 2], [0.125, 0.5])], x_label="<i>")
    svg = parsed(html).find(".//svg[@class='chart']")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == 'A <b> & c. "x": 0.125 at 1, 0.5 at 2'
    assert "<b>" not in html
    assert "<i>" not in html


def test_many_points_become_means():
    html = line_chart("t", [Series("a", range(10000), [i % 2 for i in range(10000)])], x_label="x", y_range=(0, 1))
    line = paths(html)[0]
    assert len(line) == 200
    assert len({y for _, y in line}) == 1


def test_columns_are_as_high_as_their_values():
    series = [Series("train", (), [10, 0, 40]), Series("val", (), [20, 5, 0])]
    html = column_chart("t", ["<8", "8", "16"], series, x_label="px", y_label="%")
    rects = parsed(html).findall(".//svg/rect")
    heights = [float(rect.get("height")) for rect in rects]
    assert heights == pytest.approx([h * heights[2] / 40 for h in (10, 0, 40, 20, 5, 0)], abs=0.2)
    assert rects[3].find("title").text == "val, <8: 20"
    assert column_chart("t", ["a"], [Series("train", (), [0])], x_label="", y_label="") == ""


def test_a_large_matrix_shows_what_is_not_zero():
    shares = np.zeros((30, 30))
    shares[3, 4], shares[5, 5] = 0.25, 1
    names = [f"class {i}" for i in range(29)] + ["a name that is much too long & odd"]
    html = heat_map("m", shares, names, names, "{row} as {column}: {share}")
    cells = [rect for rect in parsed(html).findall(".//rect") if rect.get("class") == "ink"]
    assert [cell.find("title").text for cell in cells] == ["class 3 as class 4: 25 %", "class 5 as class 5: 100 %"]
    assert float(cells[0].get("fill-opacity")) < float(cells[1].get("fill-opacity"))
    assert any((text.text or "").endswith("…") for text in parsed(html).iter("text"))
