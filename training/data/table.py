"""``pairs.csv`` and ``dataset.json``: data sets that say what they are."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from wsi2ihc.errors import DatasetError
from wsi2ihc.files import read_json
from wsi2ihc.slide.resolution import MPP_RANGE
from wsi2ihc.text import original

from .files import Table, read_lines
from .pairs import ROLE_NAMES, Pair, PairedData, Role

TABLE_NAME = "pairs.csv"
STATEMENT_NAME = "dataset.json"

LEVELS = ("0", "1+", "2+", "3+")
"""Of HER2, weakest first."""

_LEVEL_NAMES = {level: level for level in LEVELS} | {level.rstrip("+"): level for level in LEVELS}
_MPP_TOLERANCE = 0.01
"""Share by which µm per px may differ within a data set: less than anybody can see, more than rounding does."""


def read_table(path: Path) -> tuple[tuple[Pair, ...], float | None]:
    """The pairs of a ``pairs.csv``, in its order, and their µm per px (None if it does not say).

    Columns: ``he`` and ``ihc``, paths relative to the table; and where wanted ``number``, ``split`` (train, val, valid,
    validation, test), ``group``, ``patient``, ``slide``, ``her2`` (0, 1+, 2+, 3+, or without the plus), ``mpp``, and
    ``half``: where the H&E lies ("left", "right") in an image that holds both; ``he`` and ``ihc`` are then the same
    file. Others are left alone, as the place for what is known of other stains.

    Raises
    ------
    DatasetError
        If a column, a cell or a file is missing, or a cell has no meaning.
    """
    rows = read_rows(path).rows
    if lacking := {"he", "ihc"} - rows[0].keys():
        raise DatasetError(f"{path} has no column {', '.join(sorted(lacking))} (it needs he and ihc)")
    pairs = tuple(_pair(path, number, row) for number, row in enumerate(rows, 2))
    _check_files(path, pairs)
    return pairs, _common_mpp(path, [row.get("mpp", "") for row in rows])


def read_rows(path: Path) -> Table:
    """The rows of a ``pairs.csv``, with the names that were written into it.

    Raises
    ------
    DatasetError
        As `read_lines`.
    """
    table = read_lines(path)
    return replace(table, rows=tuple({name: original(cell) for name, cell in row.items()} for row in table.rows))


def _pair(path: Path, row_number: int, row: Mapping[str, str]) -> Pair:
    where = f"{path}, row {row_number}"
    for column in ("he", "ihc"):
        if not row[column]:
            raise DatasetError(f"{where}: no file in the column {column}")
    number = row.get("number", "")
    if number and not (number.isascii() and number.isdigit()):
        raise DatasetError(f"{where}: the number is {number!r:.40}")
    he, ihc = path.parent / row["he"], path.parent / row["ihc"]
    return Pair(
        name=he.stem,
        he=he,
        ihc=ihc,
        half=_half(where, row),
        role=role_in_table(where, row.get("split", "")),
        group=row.get("group") or None,
        patient=row.get("patient") or None,
        slide=row.get("slide") or None,
        her2=_level(where, row.get("her2", "")),
        number=int(number) if number else None,
    )


def _level(where: str, text: str) -> str | None:
    """The level that a cell names; None if it is empty."""
    if not text:
        return None
    level = _LEVEL_NAMES.get(text.replace(" ", ""))
    if level is None:
        raise DatasetError(
            f"{where}: the HER2 level is {text!r:.40}, not one of {', '.join(LEVELS)} (leave it empty if unknown)"
        )
    return level


def _half(where: str, row: Mapping[str, str]) -> Literal["", "left", "right"]:
    text = row.get("half", "").lower()
    if text not in ("", "left", "right"):
        raise DatasetError(f"{where}: the half is {text!r:.40}, not left or right (the side of the H&E)")
    if text and row["he"] != row["ihc"]:
        raise DatasetError(f"{where}: a half is for one image of both stains, but he and ihc are two files")
    return text  # type: ignore[return-value]


def role_in_table(where: str, text: str) -> Role | None:
    """The role that a cell names; None if it is empty."""
    if not text:
        return None
    if text.lower() not in ROLE_NAMES:
        raise DatasetError(f"{where}: the split is {text!r:.40}, not one of {', '.join(ROLE_NAMES)}")
    return ROLE_NAMES[text.lower()]


def _check_files(path: Path, pairs: tuple[Pair, ...]) -> None:
    missing = [file for pair in pairs for file in (pair.he, pair.ihc) if not file.is_file()]
    if missing:
        raise DatasetError(f"{path} names {missing[0]}, which is not there{and_more(len(missing))}")
    seen: dict[str, tuple[int, str]] = {}
    for number, pair in enumerate(pairs, 2):
        files = (("side-by-side image", pair.he),) if pair.half else (("H&E", pair.he), ("IHC", pair.ihc))
        for stain, file in files:
            # the real path: a file may be spelt in several ways (a/../b, links), and so pass for several patches
            first, other = seen.setdefault(os.path.realpath(file), (number, stain))
            if first != number and other == stain:
                raise DatasetError(f"{path}: rows {first} and {number} have the same {stain} {file.name}")
            if other != stain:
                rows = f"row {number}" if first == number else f"rows {first} and {number}"
                raise DatasetError(f"{path}, {rows}: {file.name} is given as {other} and as {stain}")


def _common_mpp(path: Path, cells: list[str]) -> float | None:
    values = []
    for number, cell in enumerate(cells, 2):
        if cell:
            values.append(_mpp(f"{path}, row {number}", cell))
    if not values:
        return None
    if max(values) > min(values) * (1 + _MPP_TOLERANCE):
        raise DatasetError(f"{path}: patches of {min(values):g} and of {max(values):g} µm/px; bring them to one mpp")
    return sorted(values)[len(values) // 2]


def _mpp(where: str, value: object) -> float:
    try:
        mpp = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        mpp = math.nan
    low, high = MPP_RANGE
    if not low <= mpp <= high:  # NaN is not, either
        raise DatasetError(f"{where}: mpp is {value!r:.40}, not a number of µm per px between {low:g} and {high:g}")
    return mpp


def with_statement(data: PairedData) -> PairedData:
    """The data set with what the ``dataset.json`` in its folder states: mpp, stain, licence and name, each optional.

    Raises
    ------
    DatasetError
        If that file is no JSON object, has impossible values, or another mpp than the table.
    """
    path = data.folder / STATEMENT_NAME
    try:
        statement = read_json(path)
    except FileNotFoundError:
        return data
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON ({getattr(error, 'strerror', None) or error!s:.80})"
        ) from error
    if not isinstance(statement, dict):
        raise DatasetError(f"{path} is no JSON object")
    for name in ("stain", "licence", "name"):
        if not isinstance(statement.get(name, ""), str | None):
            raise DatasetError(f"{path}: {name} is no text")
    mpp = data.mpp
    if statement.get("mpp") is not None:
        mpp = _mpp(str(path), statement["mpp"])
        if data.mpp and not (1 / (1 + _MPP_TOLERANCE) <= mpp / data.mpp <= 1 + _MPP_TOLERANCE):
            raise DatasetError(f"{path} says {mpp:g} µm/px, but {TABLE_NAME} {data.mpp:g}")
    options = statement.get("options")
    icc = options.get("icc") if isinstance(options, dict) else None
    stain, licence, called = (statement.get(key) or None for key in ("stain", "licence", "name"))
    return dataclasses.replace(
        data, mpp=mpp, stain=stain, licence=licence, name=called, icc=icc if icc in ("keep", "srgb") else None
    )


def and_more(count: int) -> str:
    """The end of a message that names the first of ``count``."""
    return f" (nor are {count - 1} more)" if count > 1 else ""
