"""``wsi2ihc batch``: many slides, on one machine or many, and nothing lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from wsi2ihc.batch.checking import check_folder, check_rows
from wsi2ihc.batch.engine import Engine
from wsi2ihc.batch.local import LocalEngine
from wsi2ihc.batch.manifest import Problem, read_rows, shard_of
from wsi2ihc.batch.options import BatchOptions
from wsi2ihc.batch.results import (
    PAGE_NAME,
    Result,
    ResultsWriter,
    count_statuses,
    read_results,
    results_of,
    table_name,
)
from wsi2ihc.batch.runner import Board, SlideState, run_batch
from wsi2ihc.batch.task import SlideTask
from wsi2ihc.cli.board import LiveBoard
from wsi2ihc.cli.main import EXIT_SOME_FAILED
from wsi2ihc.cli.parameters import echo_json, json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.translate import command as translate_command
from wsi2ihc.cli.translate import translate_options
from wsi2ihc.errors import ManifestError
from wsi2ihc.translation.options import TranslateOptions

_OWN = frozenset(
    {"slide", "output", "region", "preview", "dry_run", "overwrite", "mpp", "model", "json", "verbose", "quiet"}
)
"""Parameters of ``translate`` that have no meaning for many slides, or one of their own."""


@click.command("batch")
@click.argument("source", required=False)
@click.argument("out_dir", type=click.Path(path_type=Path), required=False)
@click.option("--status", type=click.Path(path_type=Path), metavar="OUT_DIR", help="Tell how far a batch is, instead.")
@click.option("--model", default="counterstain", show_default=True, help="Name or file of a generator (see `models`).")
@click.option("--shard", default="", metavar="I/N", help="Only every N-th slide, from the I-th on (0-based): for array "
              "jobs without a scheduler of their own.")  # fmt: skip
@click.option("--scheduler", default=None, metavar="ADDRESS|FILE", help="A running Dask scheduler, or its file.")
@click.option("--slurm", is_flag=True, help="Start Dask workers through SLURM (needs wsi2ihc[cluster]; dask-jobqueue's "
              "settings say how).")  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Begin although some slides cannot be translated; they have failed.")
@click.option("--dry-run", is_flag=True, help="Check everything, and translate nothing.")
@options_of(BatchOptions)
@json_option
@verbosity_options
def command(
    source: str | None, out_dir: Path | None, status: Path | None, model: str, shard: str, scheduler: str | None,
    slurm: bool, keep_going: bool, dry_run: bool, json: bool, verbose: int, quiet: bool, **choices: Any,
) -> int:  # fmt: skip
    """Translate the slides of SOURCE into the folder OUT_DIR.

    SOURCE is a CSV with a column path (and where wanted output, mpp, model, tissue, or any option of translate), a
    folder, or a pattern such as 'slides/*.svs'. Run the same again to go on after an interruption: slides that are
    done stay as they are. Exit code 3: some slides failed, the others are done.
    """
    set_up_logging(verbose, quiet)
    if status is not None:
        return _tell_status(status, json=json)
    if source is None or out_dir is None:
        raise click.UsageError("name the slides and the folder of the outputs, or a folder to --status")
    if scheduler is not None and slurm:
        raise click.UsageError("--scheduler and --slurm contradict each other")
    own = {one.name: choices.pop(one.name) for one in dataclasses.fields(BatchOptions)}
    options, defaults = BatchOptions(**own), translate_options(**choices)
    tasks, problems = _checked(source, out_dir, model, defaults, shard, quiet=quiet)
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    if dry_run:
        told = {"slides": len(tasks), "problems": [str(problem) for problem in problems]}
        echo_json(told) if json else click.echo(f"{len(tasks)} slides can be translated, {len(problems)} cannot")
        return EXIT_SOME_FAILED if problems else 0
    if problems and not keep_going:
        raise ManifestError(
            f"{len(problems)} of {len(problems) + len(tasks)} slides cannot be translated, and nothing was begun; "
            "mend the list, or begin with the others (--keep-going)"
        )
    check_folder(out_dir)
    engine = _engine_maker(out_dir, defaults.device, options, scheduler, slurm)
    results = _run(_for_children(tasks, defaults), engine, options, problems, out_dir, shard, quiet=quiet)
    return _tell(results, json=json, text=None if quiet else _summary(results, out_dir, shard))


def _tell(results: Sequence[Result], *, json: bool, text: str | None) -> int:
    """Tell what came of a batch; the exit code."""
    if json:
        echo_json({"counts": count_statuses(results), "slides": [dataclasses.asdict(one) for one in results]})
    elif text:
        click.echo(text)
    return EXIT_SOME_FAILED if any(one.status == "failed" for one in results) else 0


command.params.extend(one for one in translate_command.params if one.name not in _OWN)


def _checked(
    source: str, folder: Path, model: str, defaults: TranslateOptions, shard: str, *, quiet: bool
) -> tuple[list[SlideTask], list[Problem]]:
    rows, problems = read_rows(source, model, defaults)
    bad = {problem.line for problem in problems}
    good = [row for row in rows if row.line not in bad]
    if shard:
        good = shard_of(good, shard)
        problems = problems if shard.startswith("0/") else []  # rows that belong to no shard: the first one tells
    board = LiveBoard(quiet)
    tasks, found = check_rows(good, folder, rows, lambda count: board.note(f"checking {count} of {len(good)}"))
    board.close()
    return tasks, sorted([*problems, *found], key=lambda problem: problem.line)


def _for_children(tasks: Sequence[SlideTask], defaults: TranslateOptions) -> list[SlideTask]:
    """A child sees one GPU only, so that none has to be named to it."""
    if not defaults.device.startswith("cuda"):
        return list(tasks)
    return [dataclasses.replace(task, options=dataclasses.replace(task.options, device="cuda")) for task in tasks]


def _engine_maker(
    folder: Path, device: str, options: BatchOptions, scheduler: str | None, slurm: bool
) -> Callable[[], Engine]:
    if scheduler is None and not slurm:
        return lambda: LocalEngine(folder, device, options)
    from wsi2ihc.batch.cluster import DaskEngine

    return lambda: DaskEngine(folder, device, options, scheduler=scheduler, slurm=slurm)


def _run(
    tasks: Sequence[SlideTask], engine: Callable[[], Engine], options: BatchOptions, problems: Sequence[Problem],
    folder: Path, shard: str, *, quiet: bool,
) -> list[Result]:  # fmt: skip
    board, writer = LiveBoard(quiet), ResultsWriter(folder, shard)

    def watch(states: Board, ended: SlideState | None) -> None:
        board.show(states, ended)
        writer.update(lambda: results_of(states, problems))

    try:
        states = run_batch(tasks, engine, options, watch)
    finally:
        board.close()
    results = results_of(states, problems)
    writer.finish(results)
    return results


def _counted(results: Sequence[Result]) -> list[str]:
    counts = ", ".join(f"{count} {status}" for status, count in count_statuses(results).items())
    return [counts, *(f"  failed  {one.slide}: {one.error}" for one in results if one.status == "failed")]


def _summary(results: Sequence[Result], folder: Path, shard: str) -> str:
    counts, *failed = _counted(results)
    return "\n".join([f"{folder}: {counts}", *failed, f"  {table_name(shard)}, and {PAGE_NAME} to look at"])


def _tell_status(folder: Path, *, json: bool) -> int:
    results = read_results(folder)
    return _tell(results, json=json, text="\n".join(_counted(results)))
