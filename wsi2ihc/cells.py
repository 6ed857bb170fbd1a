"""The cells of CSV tables. Spreadsheets take text that begins like a formula for one, and execute it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\0＝＋－＠]")
"""How a cell begins that is a formula, or that would become one when an apostrophe is taken away."""

_NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf|nan)", re.ASCII)


def csv_table(rows: Iterable[Iterable[object]], line_end: str = "\r\n") -> str:
    """A table as CSV.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, by which spreadsheets know text;
    `original` takes it away. Numbers stay as they are, negative ones included.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def original(cell: str) -> str:
    """The text of a cell that `csv_table` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: object) -> object:
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"
