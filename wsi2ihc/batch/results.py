"""What came of a batch: a table of all slides, rewritten whenever one ends, and a page to look at."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ManifestError
from ..pyramid import published
from .manifest import Problem
from .runner import SlideState
from .task import DONE_FOLDER
from .thumbnail import thumbnail_path

TABLE_NAME, PAGE_NAME = "results.csv", "summary.html"

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


def write_results(folder: Path, results: Sequence[Result], shard: str = "") -> None:
    """Write the table, in one piece. Shards have tables of their own, so that none replaces another's.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows([getattr(result, column) for column in COLUMNS] for result in results)
    with published(folder / table_name(shard), overwrite=True) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")


def table_name(shard: str) -> str:
    """The table's name: ``results.csv``, or ``results-0-of-8.csv`` of a shard."""
    return f"results-{shard.replace('/', '-of-')}.csv" if shard else TABLE_NAME


def read_results(folder: Path) -> list[Result]:
    """The rows of all tables of a folder: of the whole batch, or of all its shards.

    Raises
    ------
    ManifestError
        If there is no table, or one cannot be read.
    """
    tables = sorted(folder.glob("results*.csv"))
    if not tables:
        raise ManifestError(f"{folder} holds no {TABLE_NAME}; it is no output folder of a batch")
    rows: dict[tuple[str, str], Result] = {}
    for path in tables:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    rows[row["slide"], row["output"]] = Result(**{name: row[name] for name in COLUMNS})
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError) as error:
            raise ManifestError(f"{path} cannot be read as a table of results ({error!s:.80})") from error
    return list(rows.values())


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
    slide = state.task.slide.rstrip("/").rpartition("/")[2]
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
            f'<img loading="lazy" src="{html.escape(f"{DONE_FOLDER}/thumbnails/{thumbnail.name}")}" alt="">'
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
