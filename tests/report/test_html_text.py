import numpy as np

from deformable_detr.core.short_text import LONGEST_LINE
from deformable_detr.report.charts import Series, column_chart, heat_map, line_chart
from deformable_detr.report.html_text import html_text
from deformable_detr.report.page import Section, cards, matrix_table, page, table

LONG = "<cat>" * 200_000


def test_text_is_escaped_and_cut():
    assert html_text('a < "b"') == "a &lt; &quot;b&quot;"
    assert html_text("a" * LONGEST_LINE) == "a" * LONGEST_LINE
    assert len(html_text(LONG)) < 6 * LONGEST_LINE
    assert html_text(LONG + "end").startswith("&lt;cat&gt;&lt;cat&gt;")
    assert html_text(LONG + "end").endswith("&gt;end")


def test_a_class_name_of_a_million_letters_does_not_fill_the_page():
    line = Series(LONG, [0.0, 1.0], [0.25, 0.5])
    parts = [
        table(LONG, (LONG, "AP"), [(LONG, "1"), (LONG, "2")]),
        matrix_table(LONG, LONG, [LONG, "b"], [[1, 2], [3, 4]], [[0.1, 0.9], [0.2, 0.8]]),
        cards([(LONG, LONG)]),
        line_chart(LONG, [line], x_label=LONG, y_label=LONG),
        column_chart(LONG, [LONG, "b"], [line], x_label=LONG, y_label=LONG),
        heat_map(LONG, np.array([[0.5, 0.25]]), [LONG], [LONG, "b"], "{row} found as {column}: {share}"),
    ]
    assert all("&lt;cat&gt;" in part for part in parts)
    assert all(len(part) < 200_000 for part in parts), [len(part) for part in parts]
    assert len(page(LONG, LONG, [LONG], [Section("one", LONG, "".join(parts))])) < 1_000_000
