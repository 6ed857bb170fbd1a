"""Self-contained HTML page of a report."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape

from .document import Attachment, Cell, Figure, Report, Table, format_cell, numeric_columns, reason_marks

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1f2328; --soft: #5b636b; --line: #d9dbd8; --rule: #b9bdb9; --link: #0b5a8c;
  --hover: #f1f4f5;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #17191c; --ink: #e2e4e6; --soft: #a0a7ae; --line: #30343a; --rule: #4a5058; --link: #7db8e0;
    --hover: #202428;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 88rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 5rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; font-weight: 600; text-wrap: balance; break-after: avoid; }
h1 { font-size: 1.9rem; margin: 0 0 1rem; letter-spacing: -0.01em; max-width: 46rem; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 0.8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 2.2rem 0 0.6rem; }
p { margin: 0 0 0.9rem; max-width: 46rem; }
a { color: var(--link); text-underline-offset: 0.18em; text-decoration-thickness: 1px; }
nav { margin: 2rem 0; font-size: 0.92rem; line-height: 1.45; }
nav p { margin: 0 0 0.5rem; color: var(--soft); }
nav ol { margin: 0; padding: 0; list-style: none; }
nav li { margin: 0 0 0.4rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.scroll { overflow: auto; max-height: 85vh; max-width: 100%; width: fit-content;
  border-block: 1.5px solid var(--rule); }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; line-height: 1.4;
  font-variant-numeric: lining-nums tabular-nums; }
th, td { padding: 0.42rem 0.75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  background: var(--paper); }
tr > :first-child { padding-left: 0.2rem; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: var(--hover); }
thead th { position: sticky; top: 0; z-index: 1; vertical-align: bottom; font-weight: 600;
  border-bottom: 1px solid var(--rule); }
tr > :first-child { position: sticky; left: 0; z-index: 1; }
thead tr > :first-child { z-index: 2; }
tbody th { font-weight: 400; }
.words { display: block; width: max-content; max-width: min(26rem, 42vw); overflow-wrap: anywhere; }
.number { text-align: right; }
td.number, tbody th.number { white-space: nowrap; }
.interval { display: block; color: var(--soft); font-size: 0.86em; }
sup { font-size: 0.72em; line-height: 0; color: var(--soft); margin-left: 0.1em; }
.notes { margin-top: 0.6rem; font-size: 0.87rem; line-height: 1.5; color: var(--soft); }
.notes p { margin: 0 0 0.35rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 3px; }
figcaption { margin-top: 0.6rem; max-width: 46rem; font-size: 0.9rem; line-height: 1.5; color: var(--soft); }
@media screen and (min-width: 72rem) {
  body { display: grid; grid-template-columns: 12rem minmax(0, 1fr); column-gap: 3.5rem; }
  body > header, body > main { grid-column: 2; }
  body > nav { grid-column: 1; grid-row: 1 / span 2; position: sticky; top: 2.5rem; align-self: start; margin: 0;
    max-height: calc(100vh - 5rem); overflow: auto; }
}
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; background: #fff; color: #000; }
  a { color: inherit; text-decoration: none; }
  h2 { margin-top: 2rem; }
  p, li, figcaption { orphans: 3; widows: 3; }
  .scroll { overflow: visible; max-height: none; max-width: none; }
  table { font-size: 7.5pt; line-height: 1.3; }
  th, td { padding: 0.3rem 0.5rem; background: none; }
  thead { display: table-header-group; }
  thead th, tr > :first-child { position: static; }
  tr, figure, .notes { break-inside: avoid; }
  section > p { break-after: avoid; }
  .interval { white-space: normal; }
  .interval span { white-space: nowrap; }
  .words { max-width: 60mm; }
  tr > :first-child .words { max-width: 40mm; }
  img { max-height: 235mm; width: auto; }
  .plot img { max-width: 135mm; max-height: 105mm; }
}
"""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy: whatever text the page contains, browsers load nothing and run no script."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

PLOT_SCALE = 0.7
"""Displayed size of plots relative to their pixels, for sharp rendering on high-density screens and paper."""


def html_page(report: Report, attachments: Sequence[Sequence[Attachment]]) -> str:
    """Return the report as one HTML document with embedded figures.

    Parameters
    ----------
    report
        Report to render.
    attachments
        Output of `attachments_of`.
    """
    return "\n".join(_lines(report, attachments)) + "\n"


def escaped(text: str) -> str:
    """Escape text for HTML content and attributes; control characters are replaced."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), quote=True)


def _lines(report: Report, attachments: Sequence[Sequence[Attachment]]) -> Iterator[str]:
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escaped(report.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escaped(report.title)}</h1>"""
    yield from _paragraphs(report.lead)
    yield "</header>"
    yield from _contents(report)
    yield "<main>"
    for number, (section, files) in enumerate(zip(report.sections, attachments, strict=True), 1):
        yield f'<section id="section-{number}">'
        yield f"<h2>{escaped(section.title)}</h2>"
        yield from _paragraphs(section.paragraphs)
        for content, file in zip(section.contents, files, strict=True):
            yield from _table(content, file) if isinstance(content, Table) else _figure(content, file)
        yield "</section>"
    yield "</main>\n</body>\n</html>"


def _contents(report: Report) -> Iterator[str]:
    """Yield the table of contents, which is beside the text on wide screens."""
    if not report.sections:
        return
    yield '<nav aria-label="Contents">\n<p>Contents</p>\n<ol>'
    for number, section in enumerate(report.sections, 1):
        yield f'<li><a href="#section-{number}">{escaped(section.title)}</a></li>'
    yield "</ol>\n</nav>"


def _paragraphs(texts: Sequence[str]) -> Iterator[str]:
    return (f"<p>{escaped(text)}</p>" for text in texts)


def _table(table: Table, file: Attachment) -> Iterator[str]:
    """Yield a table in a box that can be scrolled with the keyboard."""
    marks = reason_marks(table)
    if table.title:
        yield f"<h3>{escaped(table.title)}</h3>"
    if not table.is_shown:
        yield from _paragraphs((f"{len(table.rows):,} rows, in {file.path}.", *table.notes))
        return
    label = escaped(table.title or table.name)
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n<table>\n<thead>\n<tr>'
    for column, is_numeric in zip(table.columns, numeric_columns(table), strict=True):
        yield f'<th scope="col"{_kind(is_numeric)}>{escaped(column.title)}</th>'
    yield "</tr>\n</thead>\n<tbody>"
    for row in table.rows:
        cells = [
            _cell(cell, column.digits, marks, is_head=index == 0)
            for index, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody>\n</table>\n</div>"
    if marks or table.notes:
        yield '<div class="notes">'
        yield from (f"<p><sup>{mark}</sup> {escaped(reason)}</p>" for reason, mark in marks.items())
        yield from _paragraphs(table.notes)
        yield "</div>"


def _cell(cell: Cell, digits: int, marks: dict[str, str], is_head: bool) -> str:
    formatted = format_cell(cell, digits)
    text = escaped(formatted.text)
    if formatted.interval:
        low, high = formatted.interval.split(" ", 1)
        text += f' <span class="interval">{low} <span>{high}</span></span>'
    if formatted.reason:
        text = f'<span title="{escaped(formatted.reason)}">{text}</span><sup>{marks[formatted.reason]}</sup>'
    if isinstance(cell, str):
        text = f'<span class="words">{text}</span>'
    kind = _kind(not isinstance(cell, str))
    return f'<th scope="row"{kind}>{text}</th>' if is_head else f"<td{kind}>{text}</td>"


def _kind(is_numeric: bool) -> str:
    return f' class="{"number" if is_numeric else "text"}"'


def _figure(figure: Figure, file: Attachment) -> Iterator[str]:
    scale = PLOT_SCALE if figure.kind == "plot" else 1.0
    height, width = (max(1, round(side * scale)) for side in figure.pixels.shape[:2])
    data = base64.b64encode(file.content).decode("ascii")
    if figure.title:
        yield f"<h3>{escaped(figure.title)}</h3>"
    yield f'<figure class="{figure.kind}">'
    yield (
        f'<img alt="{escaped(figure.title or figure.caption)}" width="{width}" height="{height}" '
        f'src="data:{file.media_type};base64,{data}">'
    )
    if figure.caption:
        yield f"<figcaption>{escaped(figure.caption)}</figcaption>"
    yield "</figure>"
