"""Cells of tables: how they read on a page, and, for programs, their values in full."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wsi2ihc.text import csv_table

from .document import Cell, Estimate, Table

NO_VALUE = "–"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Wording:
    """How a cell reads.

    text:      of the value; a dash where there is none
    interval:  in parentheses, or empty
    reason:    why there is no value, or empty
    """

    text: str
    interval: str = ""
    reason: str = ""


def worded(cell: Cell, digits: int) -> Wording:
    """How a cell reads, with so many digits behind the point."""
    if cell is None:
        return Wording("")
    if isinstance(cell, str):
        return Wording(cell)
    if not isinstance(cell, Estimate):
        return Wording(number(cell, digits))
    value, digits = _known(cell.value), digits if cell.digits is None else cell.digits
    if value is None:
        return Wording(NO_VALUE, reason=cell.reason)
    low, high = _known(cell.low), _known(cell.high)
    if low is None or high is None:
        return Wording(number(value, digits))
    return Wording(number(value, digits), f"({number(low, digits)} to {number(high, digits)})")


def number(value: float, digits: int) -> str:
    """A number for people: thousands apart, a true minus, no negative zero; whole numbers have no digits behind."""
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
    """The reasons for which values are missing, in order, each with the letters that stand for it."""
    cells = (cell for row in table.rows for cell in row)
    reasons = [cell.reason for cell in cells if isinstance(cell, Estimate) and worded(cell, 0).reason]
    return {reason: _letters(place) for place, reason in enumerate(dict.fromkeys(reasons))}


def numeric_columns(table: Table) -> list[bool]:
    """For each column, whether it holds numbers and no text."""
    kinds: list[set[bool]] = [set() for _ in table.columns]
    for row in table.rows:
        for found, cell in zip(kinds, row, strict=True):
            if cell is not None:
                found.add(isinstance(cell, str))
    return [found == {False} for found in kinds]


def csv_text(table: Table) -> str:
    """A table as CSV, with every number in full; a cell without a value is empty.

    A column with at least one `Estimate` becomes three: its title, and the same with " low" and " high" behind it.

    Raises
    ------
    ValueError
        If a row has not one cell for each column.
    """
    wide = [
        any(isinstance(row[place], Estimate) for row in table.rows if place < len(row))
        for place in range(len(table.columns))
    ]
    head = [
        f"{column.title}{ending}"
        for column, is_wide in zip(table.columns, wide, strict=True)
        for ending in (("", " low", " high") if is_wide else ("",))
    ]
    rows = [head]
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"table {table.name} has a row of {len(row)} cells for {len(table.columns)} columns")
        rows.append([value for cell, is_wide in zip(row, wide, strict=True) for value in _csv_values(cell, is_wide)])
    return csv_table(rows)


def _csv_values(cell: Cell, is_wide: bool) -> Iterator[str]:
    parts = (cell.value, cell.low, cell.high) if isinstance(cell, Estimate) else (cell, None, None)
    yield from map(_exact, parts if is_wide else parts[:1])


def _exact(value: str | float | None) -> str:
    """The shortest text that gives the same value back."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return "" if math.isnan(value) else repr(float(value))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _letters(place: int) -> str:
    """Letters for a place: a, b, ... z, aa, ab, ..."""
    more, last = divmod(place, len(string.ascii_lowercase))
    return (_letters(more - 1) if more else "") + string.ascii_lowercase[last]
