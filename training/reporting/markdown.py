"""A report as Markdown, with tables in GitHub's manner."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .attachments import Attachment
from .document import Cell, Picture, Report, Table
from .tables import numeric_columns, reason_marks, worded

_ANYWHERE = re.compile(r"([\\`*_\[\]<>|~$]|&(?=#?\w+;))")
"""What means something wherever it stands, entities included."""

_IN_FRONT = re.compile(r"^(\d{0,9})([#+=-]|[.)](?=\s|$))")
"""What makes a paragraph a heading, a list or a rule if it stands in front."""


def markdown_text(report: Report, attachments: Sequence[Sequence[Attachment]]) -> str:
    """The report, whose tables and pictures are in files beside it.

    Parameters
    ----------
    report
        What to write.
    attachments
        As `attachments_of` gives them.
    """
    return "\n\n".join(_blocks(report, attachments)) + "\n"


def escaped(text: str) -> str:
    """Text on one line of which nothing is taken for Markdown, except what stands in front (see `paragraph`)."""
    return _ANYWHERE.sub(r"\\\1", " ".join(text.split()))


def paragraph(text: str) -> str:
    """Text as a paragraph of its own."""
    return _IN_FRONT.sub(r"\1\\\2", escaped(text))


def _blocks(report: Report, attachments: Sequence[Sequence[Attachment]]) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield from map(paragraph, report.lead)
    for section, files in zip(report.sections, attachments, strict=True):
        yield f"## {escaped(section.title)}"
        yield from map(paragraph, section.paragraphs)
        for content, file in zip(section.contents, files, strict=True):
            if content.title:
                yield f"### {escaped(content.title)}"
            yield from _table(content, file) if isinstance(content, Table) else _picture(content, file)


def _table(table: Table, file: Attachment) -> Iterator[str]:
    if not table.is_shown:
        yield f"{len(table.rows):,} rows: [this table as CSV]({file.path})"
        yield from map(paragraph, table.notes)
        return
    marks = reason_marks(table)
    lines = [[escaped(column.title) for column in table.columns]]
    lines.append(["---:" if is_numeric else "---" for is_numeric in numeric_columns(table)])
    lines.extend(
        [_cell(cell, column.digits, marks) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    )
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for reason, mark in marks.items():
        yield f"({mark}) {escaped(reason)}"
    yield from map(paragraph, table.notes)
    yield f"[This table as CSV]({file.path})"


def _cell(cell: Cell, digits: int, marks: dict[str, str]) -> str:
    wording = worded(cell, digits)
    mark = f"({marks[wording.reason]})" if wording.reason else ""
    return " ".join(filter(None, (escaped(wording.text), wording.interval, mark)))


def _picture(picture: Picture, file: Attachment) -> Iterator[str]:
    yield f"![{escaped(picture.title or picture.caption)}]({file.path})"
    if picture.caption:
        yield paragraph(picture.caption)
