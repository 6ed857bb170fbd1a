"""A report as one web page that needs nothing else: no file beside it, no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape

from .attachments import Attachment
from .document import Cell, Picture, Report, Table
from .stylesheet import STYLE
from .tables import numeric_columns, reason_marks, worded

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Browsers hold the page to it: whatever text came into it, nothing is loaded and nothing runs."""

PLOT_SCALE = 0.7
"""Plots are shown smaller than they are drawn, so that they are sharp on dense screens and on paper."""


def html_page(report: Report, attachments: Sequence[Sequence[Attachment]]) -> str:
    """The report as one HTML document, with its pictures inside.

    Parameters
    ----------
    report
        What to write.
    attachments
        As `attachments_of` gives them.
    """
    return "\n".join(_lines(report, attachments)) + "\n"


def escaped(text: str) -> str:
    """Text for HTML, in attributes too; control characters, which HTML does not know, are replaced."""
    return escape("".join(one if one.isprintable() or one in "\t\r\n" else _stand_in(one) for one in text), quote=True)


def _stand_in(one: str) -> str:
    """Controls as a replacement character; spaces, and what joins or turns letters, stay as they are."""
    return "\N{REPLACEMENT CHARACTER}" if ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0 else one


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
            yield from _table(content, file) if isinstance(content, Table) else _picture(content, file)
        yield "</section>"
    yield "</main>\n</body>\n</html>"


def _contents(report: Report) -> Iterator[str]:
    """The table of contents; the header comes before it in the document, and beside it on a wide screen."""
    if not report.sections:
        return
    yield '<nav aria-label="Contents">\n<p>Contents</p>\n<ol>'
    for number, section in enumerate(report.sections, 1):
        yield f'<li><a href="#section-{number}">{escaped(section.title)}</a></li>'
    yield "</ol>\n</nav>"


def _paragraphs(texts: Sequence[str]) -> Iterator[str]:
    return (f"<p>{escaped(text)}</p>" for text in texts)


def _table(table: Table, file: Attachment) -> Iterator[str]:
    """A table in a box of its own, which can be scrolled with the keyboard as well."""
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
            _cell(cell, column.digits, marks, is_head=place == 0)
            for place, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody>\n</table>\n</div>"
    if marks or table.notes:
        yield '<div class="notes">'
        yield from (f"<p><sup>{mark}</sup> {escaped(reason)}</p>" for reason, mark in marks.items())
        yield from _paragraphs(table.notes)
        yield "</div>"


def _cell(cell: Cell, digits: int, marks: dict[str, str], is_head: bool) -> str:
    wording = worded(cell, digits)
    text = escaped(wording.text)
    if wording.interval:
        low, high = wording.interval.split(" ", 1)
        text += f' <span class="interval">{low} <span>{high}</span></span>'
    if wording.reason:
        text = f'<span title="{escaped(wording.reason)}">{text}</span><sup>{marks[wording.reason]}</sup>'
    if isinstance(cell, str):
        text = f'<span class="words">{text}</span>'
    kind = _kind(not isinstance(cell, str))
    return f'<th scope="row"{kind}>{text}</th>' if is_head else f"<td{kind}>{text}</td>"


def _kind(is_numeric: bool) -> str:
    return f' class="{"number" if is_numeric else "text"}"'


def _picture(picture: Picture, file: Attachment) -> Iterator[str]:
    scale = PLOT_SCALE if picture.kind == "plot" else 1.0
    height, width = (max(1, round(side * scale)) for side in picture.pixels.shape[:2])
    data = base64.b64encode(file.content).decode("ascii")
    if picture.title:
        yield f"<h3>{escaped(picture.title)}</h3>"
    yield f'<figure class="{picture.kind}">'
    yield (
        f'<img alt="{escaped(picture.title or picture.caption)}" width="{width}" height="{height}" '
        f'src="data:{file.media_type};base64,{data}">'
    )
    if picture.caption:
        yield f"<figcaption>{escaped(picture.caption)}</figcaption>"
    yield "</figure>"
