"""Cells of CSV tables, made safe for spreadsheets, which execute text that begins like a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\0＝＋－＠]")
"""Beginning of a cell that is a formula, or becomes one if an apostrophe is removed."""

_NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf|nan)", re.ASCII)


def csv_table(rows: Iterable[Iterable[object]], line_end: str = "\r\n") -> str:
    """Format a table as CSV.

    Text that a spreadsheet would execute as a formula is prefixed by an apostrophe, which marks text there; `original`
    removes it. Numbers, including negative ones, are unchanged.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def original(cell: str) -> str:
    """Return the text of a cell that `csv_table` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: object) -> object:
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"
