"""What came of a batch: a table of all slides, rewritten whenever one ends, and a page to look at."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..errors import ManifestError, OutputError, Wsi2IhcError
from ..pyramid import published
from .manifest import Problem
from .places import thumbnail_path
from .privacy import base_name
from .runner import SlideState

TABLE_NAME, PAGE_NAME = "results.csv", "summary.html"

EVERY_S = 5.0
"""Between two writings of the table: with thousands of slides each takes a while."""

PATIENCE_S = 20.0

_TABLE = re.compile(r"results(-[0-9]+-of-(?P<shards>[0-9]+))?\.csv")

_log = logging.getLogger(__name__)

COLUMNS = (
    "slide", "output", "status", "attempts", "seconds", "mpx", "mpx_per_s", "tissue_share", "seam_z", "device",
    "precision", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table; all text, and base names only."""

    slide: str
    output: str
    status: str
    attempts: str = ""
    seconds: str = ""
    mpx: str = ""
    mpx_per_s: str = ""
    tissue_share: str = ""
    seam_z: str = ""
    device: str = ""
    precision: str = ""
    error: str = ""


def results_of(states: Sequence[SlideState], problems: Sequence[Problem] = ()) -> list[Result]:
    """Rows of all slides, and of those that could not even be begun with."""
    rows = [_result(state) for state in states]
    rows += [
        Result(problem.name, "", "failed", "0", error=problem.message.removeprefix(f"{problem.name}: "))
        for problem in problems
    ]
    return rows


class ResultsWriter:
    """Keeps the table of a running batch up to date, without ever holding the batch up.

    It is written at most every few seconds, and where it cannot be (another batch is writing it, the disk is full) at
    the next occasion; only the last writing is worth a word.

    Parameters
    ----------
    folder
        Of the outputs.
    shard
        Shards have tables of their own, so that none replaces another's.
    """

    def __init__(self, folder: Path, shard: str = "") -> None:
        self._folder, self._path = folder, folder / table_name(shard)
        self._written_at = -math.inf

    def update(self, results: Callable[[], Sequence[Result]]) -> None:
        """Write the table if the last time is long enough ago."""
        now = time.monotonic()
        if now - self._written_at >= EVERY_S:
            self._written_at = now
            with contextlib.suppress(OutputError):
                write_table(self._path, results())

    def finish(self, results: Sequence[Result]) -> None:
        """Write the table, and the page of all tables of the folder; others may be doing so just now."""
        _patiently(lambda: write_table(self._path, results), self._path)
        _patiently(lambda: write_page(self._folder, read_results(self._folder)), self._folder / PAGE_NAME)


def _patiently(write: Callable[[], None], path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return write()
        except Wsi2IhcError as error:
            if not isinstance(error, OutputError) or time.monotonic() > until:
                _log.warning("%s was not written: %s", path.name, error)
                return None
            time.sleep(0.1)


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


def read_results(folder: Path) -> list[Result]:
    """The rows of the last batch in a folder: of its table, or of the tables of all its shards.

    Raises
    ------
    ManifestError
        If there is no table, or one cannot be read.
    """
    tables = {path: match for path in folder.glob("results*.csv") if (match := _TABLE.fullmatch(path.name))}
    if not tables:
        raise ManifestError(f"{folder} holds no {TABLE_NAME}; it is no output folder of a batch")
    newest = max(tables, key=lambda path: path.stat().st_mtime_ns)
    shards = tables[newest]["shards"]
    rows: list[Result] = []
    for path in sorted(path for path, match in tables.items() if match["shards"] == shards):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows += [Result(**{name: row[name] for name in COLUMNS}) for row in csv.DictReader(file)]
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError) as error:
            raise ManifestError(f"{path} cannot be read as a table of results ({error!s:.80})") from error
    return rows


def count_statuses(results: Sequence[Result]) -> Counter[str]:
    """How many slides have each status."""
    return Counter(result.status for result in results)


def write_page(folder: Path, results: Sequence[Result]) -> None:
    """Write the page: a thumbnail of every slide with its figures, failed ones first.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    counts = ", ".join(f"{count} {status}" for status, count in count_statuses(results).items())
    ordered = sorted(results, key=lambda result: (result.status != "failed", result.slide))
    text = _PAGE.format(counts=html.escape(counts), cards="\n".join(_cards(folder, ordered)))
    with published(folder / PAGE_NAME, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _result(state: SlideState) -> Result:
    facts = {name: state.facts.get(name) for name in COLUMNS}
    plain = {name: "" if facts[name] is None else str(facts[name]) for name in COLUMNS}
    slide = base_name(state.task.slide)
    return Result(**{
        **plain,
        "slide": slide,
        "output": state.task.name,
        "status": state.status,
        "attempts": str(state.attempts),
        "error": "" if state.status.startswith("done") else state.error.removeprefix(f"{slide}: "),
    })  # fmt: skip


def _cards(folder: Path, results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        thumbnail = thumbnail_path(folder / result.output) if result.output else None
        picture = (
            f'<img loading="lazy" src="{quote(thumbnail.relative_to(folder).as_posix())}" alt="">'
            if thumbnail and thumbnail.exists() and result.status.startswith("done")
            else '<div class="none">no picture</div>'
        )
        facts = [
            f"{result.seconds} s" if result.seconds else "",
            f"{result.mpx_per_s} Mpx/s" if result.mpx_per_s else "",
            f"seam z {result.seam_z}" if result.seam_z else "",
            result.device,
            f"{result.attempts} attempts" if result.attempts not in ("", "0", "1") else "",
        ]
        lines = [" · ".join(fact for fact in facts if fact), result.error]
        told = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
        yield (
            f'<article class="{html.escape(result.status.split()[0])}">{picture}<h2>{html.escape(result.slide)}</h2>'
            f"<p><b>{html.escape(result.status)}</b></p>{told}</article>"
        )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Batch</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; }}
article {{ border: 1px solid #8886; border-top: 4px solid #2a7; border-radius: 6px; padding: .8rem; }}
article.failed {{ border-top-color: #c33; }}
article.waiting, article.running {{ border-top-color: #888; }}
img, .none {{ width: 100%; height: 180px; object-fit: contain; background: #fff; }}
.none {{ display: grid; place-items: center; color: #888; background: #8881; }}
h2 {{ font-size: 1rem; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }}
p {{ margin: .1rem 0; overflow-wrap: anywhere; }}
</style></head><body>
<h1>Batch</h1><p>{counts}. Virtual stains are computed: research use only, not for diagnosis.</p>
<main>
{cards}
</main></body></html>
"""
