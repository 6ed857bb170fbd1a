"""What came of a batch: a table of all slides, rewritten as they end; and what all tables of a folder say together."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from ..errors import ManifestError
from ..files import open_regular
from ..generator.registry import list_models
from ..notation import listed
from ..pyramid import published
from ..text import csv_table, original
from .manifest import Problem
from .marker import has_size
from .places import marker_path
from .privacy import base_name
from .runner import SlideState, Status
from .shards import dealt_otherwise

TABLE_NAME = "results.csv"

INTERRUPTED = "interrupted"
"""Status of a slide whose batch has ended in the middle of it."""

_TABLE = re.compile(r"results(-(?P<number>[0-9]+)-of-(?P<shards>[0-9]+))?\.csv")

_NUMBERS = frozenset({"attempts", "seconds", "mpx", "mpx_per_s", "tissue_share", "seam_z"})

_STATUSES = frozenset({*get_args(Status), INTERRUPTED})

_LARGEST_BYTES = 1 << 30
"""Size of a table: millions of slides."""

_ALIVE_S = 60.0
"""A running batch writes its table much more often than that."""


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


COLUMNS = tuple(one.name for one in fields(Result))


def results_of(states: Sequence[SlideState], problems: Sequence[Problem] = ()) -> list[Result]:
    """Rows of all slides, and of those that could not even be begun with."""
    rows = [_result(state) for state in states]
    rows += [
        Result(one.name, one.output, status="failed", attempts="0", error=one.message.removeprefix(f"{one.name}: "))
        for one in problems
    ]
    return rows


def describe_models(results: Sequence[Result]) -> dict[str, str]:
    """What those models are for that come with the program, which their names alone do not say."""
    used = {result.model for result in results}
    return {model.name: model.description for model in list_models() if model.name in used}


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write a table of results, in one piece.

    Raises
    ------
    OutputError
        If it cannot be written, or another process is writing it.
    """
    rows = ([getattr(result, column) for column in COLUMNS] for result in results)
    with published(path, overwrite=True) as partial:
        partial.write_text(csv_table([COLUMNS, *rows]), encoding="utf-8", newline="")


def table_name(shard: str) -> str:
    """The table's name: ``results.csv``, or ``results-0-of-8.csv`` of a shard."""
    return f"results-{shard.replace('/', '-of-')}.csv" if shard else TABLE_NAME


def read_results(folder: Path, is_there: Callable[[Path], bool] = has_size) -> tuple[list[Result], list[str]]:
    """What is known of all slides of an output folder, from all its tables: of every output the newest row.

    Parameters
    ----------
    folder
        Of the outputs.
    is_there
        Whether an output that a table calls done is as it was written (`is_intact`), or may be.

    Returns
    -------
    results
        Slides of a batch that has ended in the middle of them are `INTERRUPTED`, or done if their markers say so; those
        whose outputs are gone have failed.
    notes
        What is missing: shards that have no table, or were dealt from another list than the last.

    Raises
    ------
    ManifestError
        If there is no table, or one cannot be read.
    """
    tables = {path: match for path in folder.glob("results*.csv") if (match := _TABLE.fullmatch(path.name))}
    if not tables:
        raise ManifestError(f"{folder} holds no {TABLE_NAME}; it is no output folder of a batch")
    newest: dict[tuple[str, int], Result] = {}
    shards: list[re.Match[str]] = []
    for path in sorted(tables, key=lambda path: path.stat().st_mtime_ns):
        is_shard = bool(tables[path]["shards"])
        if not is_shard:  # a batch of all slides knows of all that could not be begun with, and has done shards' work
            newest = {key: row for key, row in newest.items() if row.output}
        shards = [*shards, tables[path]] if is_shard else []
        places: Counter[str] = Counter()
        for row in _read_table(path):
            name = row.output or row.slide
            newest[name, places[name]] = _as_it_is(path, row, is_there)
            places[name] += 1
    return list(newest.values()), _missing_shards(folder, shards)


def counts_text(results: Sequence[Result]) -> str:
    """How many slides have each status, as in "3 done, 1 failed"."""
    return ", ".join(f"{count} {status}" for status, count in count_statuses(results).items()) or "no slides"


def count_statuses(results: Sequence[Result]) -> Counter[str]:
    """How many slides have each status."""
    return Counter(result.status for result in results)


def _read_table(path: Path) -> list[Result]:
    try:
        with io.TextIOWrapper(open_regular(path, _LARGEST_BYTES), encoding="utf-8", newline="") as file:
            # columns that an earlier version did not have are empty
            rows = [row for row in csv.DictReader(file) if row["slide"]]
            results = [Result(**{name: original(row.get(name) or "") for name in COLUMNS}) for row in rows]
        for number, result in enumerate(results, 2):
            if result.status not in _STATUSES:
                raise ValueError(f"line {number}: the status {result.status!r:.40} is none")
            result.to_json()
    except (OSError, ValueError, csv.Error, KeyError, TypeError) as error:
        raise ManifestError(f"{path} cannot be read as a table of results ({error!s:.80})") from error
    return results


def _as_it_is(table: Path, row: Result, is_there: Callable[[Path], bool]) -> Result:
    """A row, of which its batch may have been killed before it could say more.

    A marker that is younger than the table was written by that batch.
    """
    if row.status.startswith("done") and not is_there(table.parent / row.output):
        return replace(row, status="failed", error="its output is gone or was changed; run the batch again")
    if row.status != "running":
        return row
    written_at, marker = table.stat().st_mtime, marker_path(table.parent / row.output)
    if is_there(table.parent / row.output) and marker.stat().st_mtime > written_at:
        return replace(row, status="done")
    return row if abs(time.time() - written_at) < _ALIVE_S else replace(row, status=INTERRUPTED)


def _missing_shards(folder: Path, tables: Sequence[re.Match[str]]) -> list[str]:
    """What is wanting, for each number of shards that slides were dealt to."""
    notes = []
    for count in sorted({int(table["shards"]) for table in tables}):
        there = {int(table["number"]) for table in tables if int(table["shards"]) == count}
        if missing := [str(number) for number in range(count) if number not in there]:
            notes.append(f"{'shards' if len(missing) > 1 else 'shard'} {listed(missing, 20)} of {count} never began")
        if others := dealt_otherwise(folder, count):
            were = "were" if len(others) > 1 else "was"
            notes.append(
                f"of {count} shards, {listed(others, 20)} {were} dealt from another list of slides than the last; run "
                "them again, or some slides may be left out"
            )
    return notes


def _result(state: SlideState) -> Result:
    facts = {name: state.facts.get(name) for name in COLUMNS}
    plain = {name: "" if facts[name] is None else str(facts[name]) for name in COLUMNS}
    slide, task = base_name(state.task.slide), state.task
    error = "" if state.status.startswith("done") else state.error.removeprefix(f"{slide}: ")
    if state.status == "failed" and task.output.exists():
        error += f" ({task.name} is there, and may be of an earlier run)"
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
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r:.40} is not a finite number")
    return int(text) if text.isdecimal() else number
