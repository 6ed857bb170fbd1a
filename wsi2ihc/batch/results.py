"""What came of a batch: a table of all slides, rewritten as they end; and what all tables of a folder say together."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ManifestError, OutputBusyError, OutputError
from ..locks import locked
from ..pyramid import published
from .manifest import Problem
from .places import locks_folder, marker_path
from .privacy import base_name
from .runner import SlideState

TABLE_NAME = "results.csv"

INTERRUPTED = "interrupted"
"""Status of a slide whose batch has ended in the middle of it."""

_TABLE = re.compile(r"results(-(?P<number>[0-9]+)-of-(?P<shards>[0-9]+))?\.csv")

COLUMNS = (
    "slide", "output", "model", "status", "attempts", "seconds", "mpx", "mpx_per_s", "tissue_share", "seam_z", "device",
    "precision", "warnings", "error",
)  # fmt: skip

_NUMBERS = frozenset({"attempts", "seconds", "mpx", "mpx_per_s", "tissue_share", "seam_z"})


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table; all text, and base names only. ``output`` is "" where not even that is known."""

    slide: str
    output: str
    model: str = ""
    status: str = ""
    attempts: str = ""
    seconds: str = ""
    mpx: str = ""
    mpx_per_s: str = ""
    tissue_share: str = ""
    seam_z: str = ""
    device: str = ""
    precision: str = ""
    warnings: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Figures as numbers, and None where there are none."""
        plain = {name: getattr(self, name) for name in COLUMNS}
        return {name: _number(text) if name in _NUMBERS else text for name, text in plain.items()}


def results_of(states: Sequence[SlideState], problems: Sequence[Problem] = ()) -> list[Result]:
    """Rows of all slides, and of those that could not even be begun with."""
    rows = [_result(state) for state in states]
    rows += [
        Result(one.name, one.output, status="failed", attempts="0", error=one.message.removeprefix(f"{one.name}: "))
        for one in problems
    ]
    return rows


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write a table of results, in one piece.

    Raises
    ------
    OutputError
        If it cannot be written, or another process is writing it.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows([getattr(result, column) for column in COLUMNS] for result in results)
    with published(path, overwrite=True) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")


def table_name(shard: str) -> str:
    """The table's name: ``results.csv``, or ``results-0-of-8.csv`` of a shard."""
    return f"results-{shard.replace('/', '-of-')}.csv" if shard else TABLE_NAME


def read_results(folder: Path) -> tuple[list[Result], list[str]]:
    """What is known of all slides of an output folder, from all its tables: of every output the newest row.

    Returns
    -------
    results
        Slides of a batch that has ended in the middle of them are `INTERRUPTED`, or done if their markers say so.
    notes
        What is missing: shards that have no table.

    Raises
    ------
    ManifestError
        If there is no table, or one cannot be read.
    """
    tables = {path: match for path in folder.glob("results*.csv") if (match := _TABLE.fullmatch(path.name))}
    if not tables:
        raise ManifestError(f"{folder} holds no {TABLE_NAME}; it is no output folder of a batch")
    newest: dict[str, Result] = {}
    shards: list[re.Match[str]] = []
    for path in sorted(tables, key=lambda path: path.stat().st_mtime_ns):
        newest.update({row.output or row.slide: row for row in _read_table(path)})
        shards = [*shards, tables[path]] if tables[path]["shards"] else []  # a batch of all slides has done theirs
    return [_as_it_is(folder, row) for row in newest.values()], _missing_shards(shards)


def count_statuses(results: Sequence[Result]) -> Counter[str]:
    """How many slides have each status."""
    return Counter(result.status for result in results)


def _read_table(path: Path) -> list[Result]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            # columns that an earlier version did not have are empty
            rows = [row for row in csv.DictReader(file) if row["slide"]]
            return [Result(**{name: row.get(name) or "" for name in COLUMNS}) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError) as error:
        raise ManifestError(f"{path} cannot be read as a table of results ({error!s:.80})") from error


def _as_it_is(folder: Path, row: Result) -> Result:
    """A row, of which its batch may have been killed before it could say more."""
    if row.status != "running" or _is_worked_on(folder, row.output):
        return row
    is_done = marker_path(folder / row.output).is_file() and (folder / row.output).is_file()
    fields: Mapping[str, str] = {name: getattr(row, name) for name in COLUMNS}
    return Result(**{**fields, "status": "done" if is_done else INTERRUPTED})


def _is_worked_on(folder: Path, output: str) -> bool:
    if not (locks_folder(folder) / output).is_file():
        return False
    try:
        with locked(locks_folder(folder), "busy", output, make=False):
            return False
    except OutputBusyError:
        return True
    except OutputError:  # a folder that only others may write
        return True


def _missing_shards(tables: Sequence[re.Match[str]]) -> list[str]:
    """A note for every way of dealing that is not complete; most are: one."""
    notes = []
    for count in sorted({int(table["shards"]) for table in tables}):
        there = {int(table["number"]) for table in tables if int(table["shards"]) == count}
        if missing := [str(number) for number in range(count) if number not in there]:
            several = "shards" if len(missing) > 1 else "shard"
            more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
            notes.append(f"{several} {', '.join(missing[:20])}{more} of {count} never began")
    return notes


def _result(state: SlideState) -> Result:
    facts = {name: state.facts.get(name) for name in COLUMNS}
    plain = {name: "" if facts[name] is None else str(facts[name]) for name in COLUMNS}
    slide, task = base_name(state.task.slide), state.task
    error = "" if state.status.startswith("done") else state.error.removeprefix(f"{slide}: ")
    if state.status == "failed" and task.output.exists():
        error += f" ({task.name} is of an earlier run)"
    return Result(**{
        **plain,
        "slide": slide,
        "output": task.name,
        "model": base_name(task.model),
        "status": state.status,
        "attempts": str(state.attempts),
        "warnings": "; ".join(state.facts.get("warnings") or []),
        "error": error,
    })  # fmt: skip


def _number(text: str) -> float | int | None:
    if not text:
        return None
    return int(text) if text.isdecimal() else float(text)
