"""Results of a batch: table and HTML page, updated while it runs."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from ..atomic_files import published, write_atomically
from ..errors import ManifestError, OutputBusyError, Wsi2IhcError
from ..models.registry import list_models
from ..pages import render_page
from ..tables import csv_rows, open_csv
from ..text import base_name, csv_table, listed, one_line_error, original, printable
from .scheduler import SlideState, Status
from .slide_manifest import ManifestShard, Problem, shards_of_other_manifests
from .task import has_size, marker_path, thumbnail_path

TABLE_NAME = "results.csv"

INTERRUPTED = "interrupted"
"""Status of a slide whose batch ended during its translation."""

_TABLE = re.compile(r"results(-(?P<number>[0-9]+)-of-(?P<shards>[0-9]+))?\.csv")

_NUMBERS = frozenset({"attempts", "seconds", "mpx", "mpx_per_s", "tissue_share", "seam_z"})

_STATUSES = frozenset({*get_args(Status), INTERRUPTED})

_LARGEST_BYTES = 1 << 30
"""Largest size of a table, for millions of slides."""

_ALIVE_S = 60.0
"""A table older than this belongs to a batch that has ended; running batches write theirs more often."""


@dataclass(frozen=True, slots=True)
class Result:
    """Row of the table, as text with base names only; ``output`` is "" if unknown."""

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
        """Convert the row to JSON values; missing numbers are None."""
        plain = {name: getattr(self, name) for name in COLUMNS}
        return {name: _number(text) if name in _NUMBERS else text for name, text in plain.items()}


COLUMNS = tuple(one.name for one in fields(Result))


def results_of(states: Sequence[SlideState], problems: Sequence[Problem] = ()) -> list[Result]:
    """Return the rows of all slides, including those with problems."""
    rows = [_result(state) for state in states]
    rows += [
        Result(one.name, one.output, status="failed", attempts="0", error=one.message.removeprefix(f"{one.name}: "))
        for one in problems
    ]
    return rows


def describe_models(results: Sequence[Result]) -> dict[str, str]:
    """Return the descriptions of the built-in models among the results."""
    used = {result.model for result in results}
    return {model.name: model.description for model in list_models() if model.name in used}


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write a table of results; `OutputError` if it cannot be written, or another process is writing it."""
    rows = ([getattr(result, column) for column in COLUMNS] for result in results)
    write_atomically(path, csv_table([COLUMNS, *rows]).encode())


def table_name(shard: ManifestShard | None) -> str:
    """Return the name of the table: ``results.csv``, or ``results-0-of-8.csv`` for a shard."""
    return f"results-{shard.number}-of-{shard.count}.csv" if shard else TABLE_NAME


def read_results(folder: Path, is_there: Callable[[Path], bool] = has_size) -> tuple[list[Result], list[str]]:
    """Read all tables of an output folder; return the newest row of every output, and notes.

    Slides that were running when their batch ended are `INTERRUPTED`, or done according to their markers; slides with
    missing outputs, by the check ``is_there``, have failed. Notes name shards that have no table, or belong to another
    manifest than the last one.

    Raises
    ------
    ManifestError
        If there is no table, or one cannot be read.
    """
    tables = {path: match for path in folder.glob("results*.csv") if (match := _TABLE.fullmatch(path.name))}
    if not tables:
        raise ManifestError(f"{folder} contains no {TABLE_NAME}; it is not the output folder of a batch")
    newest: dict[tuple[str, int], Result] = {}
    shards: list[re.Match[str]] = []
    for path in sorted(tables, key=lambda path: path.stat().st_mtime_ns):
        is_shard = bool(tables[path]["shards"])
        if not is_shard:  # a batch of all slides supersedes shards and their problems
            newest = {key: row for key, row in newest.items() if row.output}
        shards = [*shards, tables[path]] if is_shard else []
        counts: Counter[str] = Counter()
        for row in _read_table(path):
            name = row.output or row.slide
            newest[name, counts[name]] = _with_present_status(path, row, is_there)
            counts[name] += 1
    return list(newest.values()), _missing_shards(folder, shards)


def counts_text(results: Sequence[Result]) -> str:
    """Format the number of slides per status, as in "3 done, 1 failed"."""
    return ", ".join(f"{count} {status}" for status, count in count_statuses(results).items()) or "no slides"


def count_statuses(results: Sequence[Result]) -> Counter[str]:
    """Count the slides per status."""
    return Counter(result.status for result in results)


def _read_table(path: Path) -> list[Result]:
    try:
        with open_csv(path, _LARGEST_BYTES) as file:
            table = csv_rows(file)
            _, names = next(table, (1, ["slide"]))
            if "slide" not in names:
                raise ValueError("it has no column slide")
            results = []
            for line, fields in table:
                row = dict(zip(names, fields, strict=False))
                if not row["slide"]:
                    continue
                # columns that an earlier version did not have are empty
                result = Result(**{name: original(row.get(name, "")) for name in COLUMNS})
                if result.status not in _STATUSES:
                    raise ValueError(f"line {line}: the status {result.status!r:.40} is unknown")
                result.to_json()
                results.append(result)
    except (OSError, ValueError, csv.Error) as error:
        raise ManifestError(f"{path} cannot be read as a table of results ({error!s:.80})") from error
    return results


def _with_present_status(table: Path, row: Result, is_there: Callable[[Path], bool]) -> Result:
    """Return a row with its present status, since its batch may have ended before updating it.

    A done marker newer than the table was written by that batch.
    """
    if row.status.startswith("done") and not is_there(table.parent / row.output):
        return replace(row, status="failed", error="its output is missing or has changed; run the batch again")
    if row.status != "running":
        return row
    written_at, marker = table.stat().st_mtime, marker_path(table.parent / row.output)
    if is_there(table.parent / row.output) and marker.stat().st_mtime > written_at:
        return replace(row, status="done")
    return row if abs(time.time() - written_at) < _ALIVE_S else replace(row, status=INTERRUPTED)


def _missing_shards(folder: Path, tables: Sequence[re.Match[str]]) -> list[str]:
    """Return notes on missing and outdated shards, for each number of shards."""
    notes = []
    for count in sorted({int(table["shards"]) for table in tables}):
        there = {int(table["number"]) for table in tables if int(table["shards"]) == count}
        if missing := [str(number) for number in range(count) if number not in there]:
            notes.append(f"{'shards' if len(missing) > 1 else 'shard'} {listed(missing, 20)} of {count} never started")
        if others := shards_of_other_manifests(folder, count):
            were = "were" if len(others) > 1 else "was"
            notes.append(
                f"of {count} shards, {listed(others, 20)} {were} made from another manifest than the last; run "
                "them again, or some slides may be missing"
            )
    return notes


def _result(state: SlideState) -> Result:
    facts = {name: state.facts.get(name) for name in COLUMNS}
    plain = {name: "" if facts[name] is None else str(facts[name]) for name in COLUMNS}
    slide, task = base_name(state.task.slide), state.task
    error = "" if state.status.startswith("done") else state.error.removeprefix(f"{slide}: ")
    if state.status == "failed" and task.output.exists():
        error += f" ({task.name} exists, possibly from an earlier run)"
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


PAGE_NAME = "summary.html"


def write_page(folder: Path, results: Sequence[Result], notes: Sequence[str] = ()) -> None:
    """Write the HTML page of an output folder.

    Raises
    ------
    OutputError
        If it cannot be written, or another process is writing it.
    """
    ordered = sorted(results, key=lambda result: (result.status != "failed", result.slide, result.output))
    models = (f"{name}: {description}" for name, description in describe_models(results).items())
    text = render_page(
        "batch.html",
        counts=counts_text(results),
        notes=[printable(note) for note in (*models, *notes)],
        cards=[_card(folder, result) for result in ordered],
    )
    with published(folder / PAGE_NAME, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _card(folder: Path, result: Result) -> dict[str, Any]:
    is_done = result.status.startswith("done")
    thumbnail = thumbnail_path(folder / result.output)
    metrics = [
        f"{result.seconds} s" if result.seconds else "",
        f"{result.mpx_per_s} Mpx/s" if result.mpx_per_s else "",
        f"seam z {result.seam_z}" if result.seam_z else "no seams to measure" if is_done else "",
        result.device,
        f"{result.attempts} attempts" if result.attempts not in ("", "0", "1") else "",
    ]
    made = f"{result.slide} by {result.model}" if result.model else result.slide
    lines = [made, " · ".join(filter(None, metrics)), result.warnings, result.error]
    has_thumbnail = is_done and thumbnail.exists()
    return {
        "status": result.status,
        "title": printable(result.output or result.slide),
        "link": quote(result.output) if is_done else "",
        "thumbnail": quote(thumbnail.relative_to(folder).as_posix()) if has_thumbnail else "",
        "lines": [printable(line) for line in lines if line],
    }


TABLE_EVERY_S, PAGE_EVERY_S = 5.0, 60.0
"""Intervals of writing; with thousands of slides each takes a while."""

WRITE_TIMEOUT_S = 20.0

_WRITE_ERRORS = (Wsi2IhcError, OSError, ValueError)
"""Errors of writing a table or page, such as a full disk, which do not end a batch."""

_log = logging.getLogger(__name__)


class ResultsWriter:
    """Writer of the table of a running batch, or of its shard, and of the page of its folder.

    Both are written at intervals. A failure (another batch is writing, the disk is full) is retried at the next
    interval; only the last one is reported.
    """

    def __init__(self, folder: Path, shard: ManifestShard | None = None) -> None:
        self._folder, self._path = folder, folder / table_name(shard)
        self._table_at = self._page_at = -math.inf

    def update(self, results: Callable[[], Sequence[Result]]) -> None:
        """Write the table and page if their intervals have passed."""
        now = time.monotonic()
        if now - self._table_at >= TABLE_EVERY_S:
            # again soon after the first time, when all slides are waiting
            self._table_at = now if self._table_at > -math.inf else now - TABLE_EVERY_S + 1
            with contextlib.suppress(*_WRITE_ERRORS):
                write_table(self._path, results())
        if now - self._page_at >= PAGE_EVERY_S:
            self._page_at = now
            with contextlib.suppress(*_WRITE_ERRORS):
                write_page(self._folder, *read_results(self._folder))

    def finish(self, results: Sequence[Result]) -> list[str]:
        """Write both at the end, waiting for other batches, and return the names of the written files."""
        page = self._folder / PAGE_NAME
        writings: dict[Path, Callable[[], None]] = {
            self._path: lambda: write_table(self._path, results),
            page: lambda: write_page(self._folder, *read_results(self._folder)),
        }
        return [path.name for path, write in writings.items() if _retry_while_locked(write, path)]


def _retry_while_locked(write: Callable[[], None], path: Path) -> bool:
    until = time.monotonic() + WRITE_TIMEOUT_S
    while True:
        try:
            write()
        except _WRITE_ERRORS as error:
            if not isinstance(error, OutputBusyError) or time.monotonic() > until:
                _log.warning("%s was not written: %s", path.name, one_line_error(error, path))
                return False
            time.sleep(0.1)
        else:
            return True
