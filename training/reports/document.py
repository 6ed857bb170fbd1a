"""Content of a report, independent of its output format.

A `Report` consists of sections with tables and figures. `attachments_of` encodes every table as CSV and every figure as
PNG or JPEG; `html_page` and `markdown_text` lay out the text and refer to these files; `write` writes all of them.
"""

from __future__ import annotations

import io
import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from wsi2ihc.geometry import RGBImage
from wsi2ihc.text import csv_table


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric with its confidence interval."""

    value: float | None  # none if undefined or not computed
    # ends of the interval; None without one
    low: float | None = None
    high: float | None = None
    reason: str = ""  # why there is no value, for display
    digits: int | None = None  # decimal places; None for those of the column


Cell: TypeAlias = str | int | float | Estimate | None
"""Content of a table cell; None is an empty cell."""


@dataclass(frozen=True, slots=True)
class Column:
    """Header of a table column."""

    title: str
    digits: int = 3  # decimal places of floating-point values


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a report."""

    name: str  # stem of the CSV file
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()  # paragraphs below the table
    is_shown: bool = True  # false for a table that is too long to display; the report then links to its CSV file


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """An image with a caption."""

    name: str  # stem of the image file
    title: str
    pixels: RGBImage
    caption: str = ""
    kind: Literal["plot", "photograph"] = "plot"  # plots are saved as PNG, photographs as JPEG


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A section of a report: paragraphs, then tables and figures in the given order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    contents: tuple[Table | Figure, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A complete report."""

    title: str
    lead: tuple[str, ...]  # paragraphs before the first section
    sections: tuple[Section, ...]
    # all results as JSON values under stable names, without NaN and infinity
    data: Mapping[str, Any] = field(default_factory=dict)


NO_VALUE = "–"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class FormattedCell:
    """A cell formatted for display: its value or a dash, its interval in parentheses, or why there is no value."""

    text: str
    interval: str = ""
    reason: str = ""


def format_cell(cell: Cell, digits: int) -> FormattedCell:
    """Format a cell with this number of decimal places."""
    if cell is None:
        return FormattedCell("")
    if isinstance(cell, str):
        return FormattedCell(cell)
    if not isinstance(cell, Estimate):
        return FormattedCell(number(cell, digits))
    value, digits = _known(cell.value), digits if cell.digits is None else cell.digits
    if value is None:
        return FormattedCell(NO_VALUE, reason=cell.reason)
    low, high = _known(cell.low), _known(cell.high)
    if low is None or high is None:
        return FormattedCell(number(value, digits))
    return FormattedCell(number(value, digits), f"({number(low, digits)} to {number(high, digits)})")


def number(value: float, digits: int) -> str:
    """Format a number for display: with thousands separators, a typographic minus and no negative zero.

    Integers have no decimal places.
    """
    if isinstance(value, (int, np.integer)):
        text = f"{int(value):,d}"
    elif math.isnan(value):
        text = NO_VALUE
    elif math.isinf(value):
        text = "∞" if value > 0 else "-∞"
    else:
        text = f"{value:z,.{digits}f}"
    return text.replace("-", MINUS)


def reason_marks(table: Table) -> dict[str, str]:
    """Return the reasons for missing values in order of appearance, each with the letters of its footnote."""
    cells = (cell for row in table.rows for cell in row)
    reasons = [cell.reason for cell in cells if isinstance(cell, Estimate) and format_cell(cell, 0).reason]
    return {reason: _letters(index) for index, reason in enumerate(dict.fromkeys(reasons))}


def numeric_columns(table: Table) -> list[bool]:
    """Return for each column whether it contains numbers and no text."""
    kinds: list[set[bool]] = [set() for _ in table.columns]
    for row in table.rows:
        for found, cell in zip(kinds, row, strict=True):
            found |= set() if cell is None else {isinstance(cell, str)}
    return [found == {False} for found in kinds]


def csv_text(table: Table) -> str:
    """Return a table as CSV with all numbers in full precision; a cell without a value is empty.

    A column with at least one `Estimate` becomes three: value, low and high.

    Raises
    ------
    ValueError
        If the number of cells in a row differs from the number of columns.
    """
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"table {table.name} has a row of {len(row)} cells for {len(table.columns)} columns")
    rows: list[list[str]] = [[] for _ in range(1 + len(table.rows))]
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        parts = 3 if any(isinstance(cell, Estimate) for cell in cells) else 1
        rows[0] += [f"{column.title}{suffix}" for suffix in ("", " low", " high")[:parts]]
        for line, cell in zip(rows[1:], cells, strict=True):
            values = (cell.value, cell.low, cell.high) if isinstance(cell, Estimate) else (cell, None, None)
            line += map(_exact, values[:parts])
    return csv_table(rows)


def _exact(value: str | float | None) -> str:
    """Return the shortest text that parses to the same value."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return "" if math.isnan(value) else repr(float(value))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _letters(index: int) -> str:
    """Return the letters of a footnote: a, b, ... z, aa, ab, ..."""
    more, last = divmod(index, len(string.ascii_lowercase))
    return (_letters(more - 1) if more else "") + string.ascii_lowercase[last]


JPEG_QUALITY = 90
JPEG_MOST_PX = 65_535
"""Largest side of a JPEG; larger photographs are saved as PNG."""

LONGEST_STEM = 80
"""Maximum characters of a file's stem: file systems allow 255 bytes."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that belongs to a report; its path is relative to the report's folder and needs no escapes in URLs."""

    path: str
    media_type: str
    content: bytes


def attachments_of(report: Report) -> tuple[tuple[Attachment, ...], ...]:
    """Encode the contents of each section, in order.

    Raises
    ------
    ValueError
        If the number of cells in a row differs from the number of columns.
    """
    taken: set[str] = set()
    return tuple(tuple(_attachment(content, taken) for content in section.contents) for section in report.sections)


def encoded_text(text: str) -> bytes:
    """Encode text as UTF-8; undecodable bytes of file names become escape sequences."""
    return text.encode("utf-8", "backslashreplace")


def _attachment(content: Table | Figure, taken: set[str]) -> Attachment:
    if isinstance(content, Table):
        return Attachment(_free_path("tables", content.name, "csv", taken), "text/csv", encoded_text(csv_text(content)))
    is_photograph = content.kind == "photograph" and max(content.pixels.shape) <= JPEG_MOST_PX
    ending, media_type = ("jpg", "image/jpeg") if is_photograph else ("png", "image/png")
    image, buffer = Image.fromarray(np.ascontiguousarray(content.pixels)), io.BytesIO()
    if is_photograph:
        # no chroma subsampling: it blurs edges between brown and blue
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, format="PNG")
    return Attachment(_free_path("figures", content.name, ending, taken), media_type, buffer.getvalue())


def _free_path(folder: str, name: str, ending: str, taken: set[str]) -> str:
    """Return a path with URL-safe characters that is unique even on case-insensitive file systems."""
    stem = re.sub(r"[^A-Za-z0-9_+.-]+", "-", name)[:LONGEST_STEM].strip("-.") or "unnamed"
    path, times = f"{folder}/{stem}.{ending}", 1
    while path.lower() in taken:
        times += 1
        path = f"{folder}/{stem}-{times}.{ending}"
    taken.add(path.lower())
    return path
