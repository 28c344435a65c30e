"""Self-contained HTML page and its elements: no network, no scripts, light and dark, readable on a phone."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from deformable_detr.core.version import __version__
from deformable_detr.report.html_text import html_text

# A table with more rows scrolls in a window of its own, in which the headings stay visible.
_MOST_ROWS = 25


class Section(NamedTuple):
    """Section of the page."""

    anchor: str
    """Name of the section in links."""
    title: str
    """Heading, as plain text."""
    content: str
    """Content as HTML; a section with an empty one is left out."""


def page(title: str, subtitle: str, notes: Sequence[str], sections: Sequence[Section]) -> str:
    """HTML page of all sections, with links to them at the top.

    Args:
        title: title of the page, as plain text.
        subtitle: line below the title, as plain text.
        notes: remarks above the sections, as plain text.
        sections: sections, from top to bottom; their contents are HTML.
    """
    shown = [one for one in sections if one.content]
    links = "".join(f'<a href="#{one.anchor}">{html_text(one.title)}</a>' for one in shown)
    warnings = "".join(f"<p>{html_text(note)}</p>" for note in notes)
    body = "".join(
        f'<section id="{one.anchor}"><h2>{html_text(one.title)}</h2>{one.content}</section>' for one in shown
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # The browser fetches nothing, even if a bug of ours put an address into the page.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="generator" content="deformable-detr {__version__}">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html_text(title)}</title><style>{_STYLE}</style></head><body>'
        f'<header><h1>{html_text(title)}</h1><p class="subtitle">{html_text(subtitle)}</p></header>'
        f'<nav aria-label="Sections">{links}</nav><main>'
        f'{f"""<div class="notes" role="note">{warnings}</div>""" if warnings else ""}{body}</main></body></html>\n'
    )


def paragraph(text: str) -> str:
    """Paragraph of plain text."""
    return f"<p>{html_text(text)}</p>"


def cards(facts: Sequence[tuple[str, str]]) -> str:
    """Cards with the main figures: a name and a value each."""
    cells = "".join(f"<div><dt>{html_text(name)}</dt><dd>{html_text(value)}</dd></div>" for name, value in facts)
    return f'<dl class="cards">{cells}</dl>'


def table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, bars: Sequence[float | None] | None = None
) -> str:
    """Table whose first column names the rows; on a narrow page it scrolls sideways.

    Args:
        caption: title of the table.
        headings: names of the columns.
        rows: cells as plain text; columns of numbers are aligned to the right.
        bars: share in 0..1 for each row, drawn as a bar after the second column; None draws no bar for a row. Screen
            readers skip the bars, which only repeat what the cells say.
    """
    classes = [' class="n"' if _is_numeric(column, rows) else "" for column in range(len(headings))]
    head = [f'<th scope="col"{name}>{html_text(text)}</th>' for name, text in zip(classes, headings, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = [f"<td{name}>{html_text(text)}</td>" for name, text in zip(classes[1:], row[1:], strict=True)]
        cells.insert(0, f'<th scope="row">{html_text(row[0])}</th>')
        if bars is not None:
            width = 100 * (bars[number] or 0)
            cells.insert(2, f'<td class="track" aria-hidden="true"><i class="bar" style="width:{width:.1f}%"></i></td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if bars is not None:
        head.insert(2, '<td class="track" aria-hidden="true"></td>')
    body = f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return _scrolling(caption, body, is_long=len(rows) > _MOST_ROWS)


def matrix_table(
    caption: str, corner: str, names: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]
) -> str:
    """Table of a square matrix of counts, with cells coloured by their shares.

    Args:
        caption: title of the table.
        corner: text of the first cell of the head.
        names: names of the rows and of the columns.
        counts: numbers to show, by row and column.
        shares: colour of each cell, 0..1, also shown in percent.
    """
    head = "".join(f'<th scope="col" class="n">{html_text(name)}</th>' for name in names)
    lines = []
    for name, row, inks in zip(names, counts, shares, strict=True):
        cells = "".join(
            f'<td class="n cell" style="--share:{100 * ink:.0f}%">{count}<small>{100 * ink:.0f} %</small></td>'
            if count
            else '<td class="n cell">·</td>'
            for count, ink in zip(row, inks, strict=True)
        )
        lines.append(f'<tr><th scope="row">{html_text(name)}</th>{cells}</tr>')
    return _scrolling(
        caption, f"<thead><tr><th>{html_text(corner)}</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    )


def pictures(items: Sequence[tuple[str, str, str, str, tuple[int, int]]]) -> str:
    """Pictures side by side, each given as (title, explanation, small print, URI, width and height in pixels)."""
    shown = "".join(
        f'<figure class="photo"><img src="{uri}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{html_text(f"{title}: {text}")}"><figcaption><b>{html_text(title)}</b> {html_text(text)}'
        f"<small>{html_text(small)}</small></figcaption></figure>"
        for title, text, small, uri, (width, height) in items
    )
    return f'<div class="photos">{shown}</div>' if shown else ""


def grid(charts: Sequence[str], *, columns: Literal[2, 3] = 3) -> str:
    """Charts or tables side by side, in fewer columns than `columns` where the page is narrow."""
    shown = "".join(charts)
    return f'<div class="grid{" wide" if columns == 2 else ""}">{shown}</div>' if shown else ""


def command(text: str) -> str:
    """Command to type, in a box."""
    return f'<pre tabindex="0"><code>{html_text(text)}</code></pre>'


def folded(summary: str, content: str) -> str:
    """Content that is hidden until the reader opens it, by a click on `summary`."""
    return f"<details><summary>{html_text(summary)}</summary>{content}</details>" if content else ""


def _scrolling(caption: str, body: str, *, is_long: bool = False) -> str:
    return (
        f'<div class="scroll{" long" if is_long else ""}" tabindex="0" role="group" aria-label="{html_text(caption)}">'
        f"<table><caption>{html_text(caption)}</caption>{body}</table></div>"
    )


def _is_numeric(column: int, rows: Sequence[Sequence[str]]) -> bool:
    texts = [row[column] for row in rows]
    return column > 0 and bool(texts) and all(text[:1] in "0123456789-+.<" for text in texts)


# Colours of Okabe and Ito, darkened on white and lightened on black until each has a contrast of at least 3.
_STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--wash:#f6f8fa;--accent:#0b63b8;--warn:#fff4d6;
--c0:#0b63b8;--c1:#c04e00;--c2:#00785a;--c3:#a8407f;--c4:#8a6d00;--c5:#4a4a4a}
@media (prefers-color-scheme:dark){:root{--paper:#0f1318;--ink:#e6edf3;--soft:#a1abb6;--line:#353d47;--wash:#181e25;
--accent:#6cb6ff;--warn:#3a3010;--c0:#6cb6ff;--c1:#ff9d5c;--c2:#3ecf9f;--c3:#ec8fc4;--c4:#e6c84f;--c5:#c4c9cf}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
header,nav,main{max-width:1180px;margin:0 auto;padding:0 16px}
header{padding-top:24px}
h1{font-size:1.6rem;line-height:1.2;margin:0}
h2{font-size:1.25rem;margin:40px 0 8px;padding-top:12px;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:24px 0 4px}
p{max-width:75ch;margin:8px 0}
.subtitle,small,caption,figcaption,.legend{color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;padding-top:12px;padding-bottom:4px;font-size:.95rem}
a{color:var(--accent)}
.notes{background:var(--warn);border-left:4px solid var(--c4);padding:4px 16px;margin-top:16px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:10px;margin:12px 0}
.cards div{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:8px 12px}
dt{font-size:.85rem;color:var(--soft)}dd{margin:0;font-size:1.15rem;font-weight:600}
.scroll{overflow-x:auto;margin:12px 0;max-width:100%}
.long{max-height:34em;overflow-y:auto;border-bottom:1px solid var(--line)}
.long thead th,.long thead td{position:sticky;top:0;background:var(--paper);z-index:2}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;padding:4px 0;caption-side:top}
th,td{padding:5px 12px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th,thead td{border-bottom:2px solid var(--line);white-space:nowrap}
tbody th{font-weight:500;min-width:6.2em;max-width:14em}
tbody th,thead th:first-child{position:sticky;left:0;background:var(--paper);z-index:1}
td:last-child:not(.n){min-width:13em}
.n{text-align:right;white-space:nowrap}
small{font-size:.82rem}td small,figcaption small{display:block}
.track{min-width:110px;padding-left:0;vertical-align:middle}
.bar{display:block;height:10px;background:var(--c0);border-radius:2px;min-width:1px}
pre{overflow-x:auto;background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:8px 12px;margin:8px 0;
max-width:75ch;font-size:.92rem}
.cell{background:color-mix(in srgb,var(--c0) calc(var(--share,0%)*.45),transparent)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px 24px;margin:12px 0}
.grid.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr))}
.grid>*{min-width:0}
figure{margin:0;min-width:0}
figure>figcaption{font-weight:600;color:var(--ink);font-size:.95rem}
.chart{display:block;width:100%;max-width:460px;height:auto}
svg text{font-size:11px;fill:var(--soft)}
.halo{stroke:var(--paper);stroke-width:4px;paint-order:stroke;stroke-linejoin:round}
.heat text{font-size:10px}
.end{text-anchor:end}.mid{text-anchor:middle}.start{text-anchor:start}
.grid path.grid,path.grid{stroke:var(--line);stroke-width:1;fill:none}
.axis{stroke:var(--soft);stroke-width:1;fill:none}
.mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3;fill:none}
[class^=s] path{fill:none;stroke-width:2;stroke-linejoin:round}
.s0 path{stroke:var(--c0)}.s1 path{stroke:var(--c1)}.s2 path{stroke:var(--c2)}
.s3 path{stroke:var(--c3)}.s4 path{stroke:var(--c4)}.s5 path{stroke:var(--c5)}
.s0 circle,.f0{fill:var(--c0)}.s1 circle,.f1{fill:var(--c1)}.s2 circle{fill:var(--c2)}
.s3 circle{fill:var(--c3)}.s4 circle{fill:var(--c4)}.s5 circle{fill:var(--c5)}
.faint path{stroke-width:1;opacity:.5}
.ink{fill:var(--c0)}.stripe{fill:var(--wash)}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.85rem}
.key{display:inline-flex;align-items:center;gap:6px}
.swatch{display:inline-block;width:12px;height:12px}
i.f0{background:var(--c0)}i.f1{background:var(--c1)}
.photos{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,265px),1fr));gap:16px;margin:12px 0}
.photo img{display:block;width:100%;height:auto;max-width:300px;background:var(--wash)}
.photo figcaption{font-weight:400;font-size:.88rem;color:var(--ink);padding-top:4px}
details{margin:12px 0}summary{cursor:pointer;color:var(--accent)}
@media (max-width:600px){th,td{padding:5px 7px}.track{display:none}}
@media print{.long{max-height:none}details{display:block}nav{display:none}}
"""
