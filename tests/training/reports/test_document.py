"""Cells of tables: formatting, and CSV in full precision."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2ihc.text import original
from wsi2ihc.training.reports.document import (
    Cell,
    Column,
    Estimate,
    FormattedCell,
    Table,
    csv_text,
    format_cell,
    number,
    numeric_columns,
    reason_marks,
)


def table(*rows: tuple[Cell, ...], columns: int | None = None) -> Table:
    heads = tuple(Column(f"c{place}") for place in range(len(rows[0]) if columns is None else columns))
    return Table("t", "T", heads, rows)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.8125, 2, "0.81"),
        (1234567, 3, "1,234,567"),
        (1234.5, 1, "1,234.5"),
        (3.0, 3, "3.000"),
        (-0.25, 2, "−0.25"),
        (-0.0001, 2, "0.00"),
        (-1200, 0, "−1,200"),
        (np.int64(4000), 2, "4,000"),
        (float(np.float32(0.5)), 3, "0.500"),
        (math.nan, 3, "–"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
    ],
)
def test_number_formatting(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Estimate(0.812, 0.75, 0.8801), FormattedCell("0.812", "(0.750 to 0.880)")),
        (Estimate(-0.1, -0.2, 0.0), FormattedCell("−0.100", "(−0.200 to 0.000)")),
        (Estimate(0.5), FormattedCell("0.500")),
        (Estimate(0.5, 0.4), FormattedCell("0.500")),
        (Estimate(0.5, math.nan, math.nan), FormattedCell("0.500")),
        (Estimate(None, reason="no weights"), FormattedCell("–", reason="no weights")),
        (Estimate(math.nan, 0.1, 0.2, "one image"), FormattedCell("–", reason="one image")),
        (None, FormattedCell("")),
        ("2+", FormattedCell("2+")),
        (12, FormattedCell("12")),
    ],
)
def test_cell_formatting(cell: Cell, expected: FormattedCell) -> None:
    assert format_cell(cell, 3) == expected


def test_reasons_get_letters_in_order() -> None:
    rows = [(Estimate(None, reason=f"reason {place % 28}"), Estimate(1.0, reason="not used")) for place in range(40)]
    marks = reason_marks(table(*rows))
    assert list(marks) == [f"reason {place}" for place in range(28)]
    assert list(marks.values())[:3] == ["a", "b", "c"]
    assert list(marks.values())[25:] == ["z", "aa", "ab"]


def test_numeric_columns() -> None:
    found = numeric_columns(table(("a", 1, None, Estimate(None), None), ("b", None, "x", 2.0, None)))
    assert found == [False, True, False, True, False]


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50)
@given(st.lists(st.tuples(finite, finite, finite, st.integers(), st.text(st.characters(codec="utf-8")))))
def test_csv_round_trip(rows: list[tuple[float, float, float, int, str]]) -> None:
    cells = [(name, count, Estimate(value, low, high), value) for value, low, high, count, name in rows]
    text = csv_text(Table("t", "T", tuple(map(Column, ("name, as given", "n", "x", "y"))), tuple(cells)))
    head, *found = csv.reader(io.StringIO(text, newline=""))
    assert head == ["name, as given", "n", *(["x", "x low", "x high"] if rows else ["x"]), "y"]
    assert [(float(x), float(low), float(high), int(n), original(name)) for name, n, x, low, high, _ in found] == rows
    assert [float(line[-1]) for line in found] == [row[0] for row in rows]


def test_csv_of_missing_values() -> None:
    text = csv_text(table((Estimate(None, reason="r"), None, math.nan), (2.5, Estimate(1.0, 0.5, None), math.inf)))
    assert text.splitlines() == [
        "c0,c0 low,c0 high,c1,c1 low,c1 high,c2",
        ",,,,,,",
        "2.5,,,1.0,0.5,,inf",
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [((1, 2), (3,)), ((1, 2), (3, 4, 5))])
def test_row_of_wrong_length_is_rejected(rows: tuple[tuple[Cell, ...], ...]) -> None:
    with pytest.raises(ValueError, match="table t has a row of"):
        csv_text(table(*rows))
