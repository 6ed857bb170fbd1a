"""Markdown version of a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .document import Attachment, Cell, Figure, Report, Table, format_cell, numeric_columns, reason_marks

_INLINE_MARKUP = re.compile(r"([\\`*_\[\]<>|~$]|&(?=#?\w+;))")
"""Characters with a meaning anywhere in a line, and the start of entities."""

_BLOCK_MARKUP = re.compile(r"^(\d{0,9})([#+=-]|[.)](?=\s|$))")
"""Prefixes that turn a paragraph into a heading, list or rule."""


def markdown_text(report: Report, attachments: Sequence[Sequence[Attachment]]) -> str:
    """Return the report as Markdown that links to the files that `attachments_of` made."""
    return "\n\n".join(_blocks(report, attachments)) + "\n"


def escaped(text: str) -> str:
    """Escape inline markup of a text on one line; `paragraph` also escapes block markup."""
    return _INLINE_MARKUP.sub(r"\\\1", " ".join(text.split()))


def paragraph(text: str) -> str:
    """Escape a text that forms a paragraph."""
    return _BLOCK_MARKUP.sub(r"\1\\\2", escaped(text))


def _blocks(report: Report, attachments: Sequence[Sequence[Attachment]]) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield from map(paragraph, report.lead)
    for section, files in zip(report.sections, attachments, strict=True):
        yield f"## {escaped(section.title)}"
        yield from map(paragraph, section.paragraphs)
        for content, file in zip(section.contents, files, strict=True):
            if content.title:
                yield f"### {escaped(content.title)}"
            yield from _table(content, file) if isinstance(content, Table) else _figure(content, file)


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
    formatted = format_cell(cell, digits)
    mark = f"({marks[formatted.reason]})" if formatted.reason else ""
    return " ".join(filter(None, (escaped(formatted.text), formatted.interval, mark)))


def _figure(figure: Figure, file: Attachment) -> Iterator[str]:
    yield f"![{escaped(figure.title or figure.caption)}]({file.path})"
    if figure.caption:
        yield paragraph(figure.caption)
