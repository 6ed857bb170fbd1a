"""``wsi2ihc batch``: translate many slides on one or several machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from wsi2ihc.batch.local import LocalEngine
from wsi2ihc.batch.options import BatchOptions
from wsi2ihc.batch.preflight import check_folder, check_rows, check_writable
from wsi2ihc.batch.results_table import (
    INTERRUPTED,
    Result,
    ResultsWriter,
    count_statuses,
    counts_text,
    describe_models,
    read_results,
    results_of,
)
from wsi2ihc.batch.scheduler import Board, Engine, SlideState, initial_states, run_batch, to_be_replaced
from wsi2ihc.batch.slide_manifest import Problem, Row, read_rows, record_shard, shard_of
from wsi2ihc.batch.task import SlideTask, is_intact
from wsi2ihc.cli.console import echo_json, say, tell
from wsi2ihc.cli.main import EXIT_INTERRUPTED, EXIT_SOME_FAILED
from wsi2ihc.cli.options import (
    build_options,
    json_option,
    model_option,
    mpp_option,
    options_of,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.progress import LiveBoard
from wsi2ihc.errors import ManifestError
from wsi2ihc.models.registry import describe_generator
from wsi2ihc.text import listed, pluralize
from wsi2ihc.translation.options import TranslateOptions


@click.command("batch")
@click.argument("source", required=False)
@click.argument("out_dir", type=click.Path(path_type=Path), required=False)
@click.option("--status", type=click.Path(path_type=Path), metavar="OUT_DIR", help="Show the state of a batch.")
@click.option("--recursive", is_flag=True, help="Also search subfolders of SOURCE; all outputs are written to "
              "OUT_DIR itself.")  # fmt: skip
@model_option
@mpp_option
@click.option("--shard", default="", metavar="I/N", help="Translate only every N-th slide from the I-th (0-based), for "
              "array jobs without a Dask scheduler.")  # fmt: skip
@click.option("--scheduler", default=None, metavar="ADDRESS|FILE", help="Address of a Dask scheduler, or its file.")
@click.option("--slurm", is_flag=True, help="Start Dask workers as SLURM jobs (requires wsi2ihc[cluster]), with the "
              "settings of dask-jobqueue.")  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Translate the valid slides if others fail the checks.")
@click.option("--verify", is_flag=True, help="Compare existing outputs with their recorded SHA-256; by default only if "
              "their size or times have changed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and translate nothing.")
@options_of(BatchOptions)
@options_of(
    TranslateOptions,
    skip=("region", "preview", "overwrite", "subsampling"),
    help_texts={"max_memory": "Memory bound of all workers on one machine together (at least 1G for each)."},
)
@json_option
@verbosity_options
def command(
    source: str | None, out_dir: Path | None, status: Path | None, recursive: bool, model: str, mpp: float | None,
    shard: str, scheduler: str | None, slurm: bool, keep_going: bool, verify: bool, dry_run: bool, json: bool,
    verbose: int, quiet: bool, **choices: Any,
) -> int:  # fmt: skip
    """Translate the slides of SOURCE into the folder OUT_DIR.

    SOURCE is a CSV with a column path (and optionally output, mpp, series, page, model, or options of translate;
    paths are relative to the CSV), a folder, or a pattern such as 'slides/*.svs'. Run the same command again to
    resume after an interruption: finished slides are kept; outputs of other options are replaced. Exit code 3: some
    slides failed, the others are done.
    """
    set_up_logging(verbose, quiet)
    if status is not None:
        if source is not None:
            raise click.UsageError(
                "--status takes only the folder of a batch: wsi2ihc batch --status OUT_DIR [--verify]"
            )
        results, notes = read_results(status, partial(is_intact, verify=verify))
        return _tell(results, json=json, lines=_count_lines(results), notes=notes)
    if source is None or out_dir is None:
        raise click.UsageError("name the slides and the folder of the outputs, or a folder to --status")
    if bool(shard) + slurm + (scheduler is not None) > 1:
        raise click.UsageError("--shard, --scheduler and --slurm are three ways to run a batch; choose one")
    options = build_options(BatchOptions, choices)
    defaults = build_options(TranslateOptions, choices)
    listed_rows = read_rows(source, model, defaults, mpp=mpp, recursive=recursive)
    tasks, problems, rows = _checked(listed_rows, out_dir, model, shard, quiet=quiet)
    is_csv = source.lower().endswith(".csv")
    texts = [f"line {problem.line}, {problem}" if is_csv else str(problem) for problem in problems]
    for text in texts if dry_run or not keep_going else ():  # otherwise reported at the end
        tell(f"Error: {text}")
    models = {model: describe_generator(model).description for model in dict.fromkeys(task.model for task in tasks)}
    if dry_run:
        check_writable(out_dir)
        return _report_dry_run(tasks, texts, models, verify=verify, keep_going=keep_going, json=json)
    if problems and not keep_going:
        raise ManifestError(
            f"{len(problems)} of {pluralize(len(problems) + len(tasks), 'slide')} cannot be translated, and nothing "
            f"was started; fix the manifest{f', or run the other {len(tasks)} with --keep-going' if tasks else ''}"
        )
    check_folder(out_dir)
    if shard and (others := record_shard(out_dir, shard, rows)):
        tell(
            f"WARNING: shards {listed(others, 20)} were made from another manifest; run them again as well, or "
            "some slides may be missing"
        )
    for name, description in () if quiet else models.items():
        tell(f"model {name}: {description}")
    engine: Callable[[], Engine] = partial(LocalEngine, out_dir, defaults.device, options)
    if scheduler is not None or slurm:
        from wsi2ihc.batch.dask_backend import DaskEngine

        engine = partial(DaskEngine, out_dir, defaults.device, options, scheduler=scheduler, slurm=slurm)
    if defaults.device.startswith("cuda"):  # a worker sees a single GPU
        tasks = [replace(task, options=replace(task.options, device="cuda")) for task in tasks]
    try:
        results, written = _run(tasks, engine, options, problems, out_dir, shard, verify=verify, quiet=quiet)
    except KeyboardInterrupt:
        tell("", "Interrupted. Run the same command again to resume; partial files are removed then.")
        return EXIT_INTERRUPTED
    counts, *failed = _count_lines(results)
    if quiet:
        tell(*failed)
    return _tell(
        results, json=json,
        lines=[] if quiet else [f"{out_dir}: {counts}", *failed, *(f"  see {name}" for name in written)],
    )  # fmt: skip


def _tell(results: Sequence[Result], *, json: bool, lines: Sequence[str], notes: Sequence[str] = ()) -> int:
    """Print the results of a batch and return the exit code."""
    if json:
        echo_json({"counts": count_statuses(results), "notes": notes, "models": describe_models(results),
                   "slides": [one.to_json() for one in results]})  # fmt: skip
    else:
        say(*lines, *notes)
    return EXIT_SOME_FAILED if any(one.status == "failed" for one in results) else 0


def _report_dry_run(
    tasks: Sequence[SlideTask], problems: Sequence[str], models: Mapping[str, str], *, verify: bool, keep_going: bool,
    json: bool,
) -> int:  # fmt: skip
    """Print a dry run and return the expected exit code."""
    states = initial_states(tasks, verify=verify, renew=False)
    done, replaced = sum(state.status != "waiting" for state in states), to_be_replaced(states)
    if json:
        echo_json({"slides": len(tasks), "done": done, "replaced": replaced, "problems": problems, "models": models})
    else:
        outputs = pluralize(len(replaced), "output")
        say(f"{pluralize(len(tasks), 'slide')} can be translated ({done} done before, {outputs} to be replaced), "
            f"{len(problems)} cannot")  # fmt: skip
        for model, description in models.items():
            say(f"  model {model}: {description}")
    return (EXIT_SOME_FAILED if keep_going else 1) if problems else 0


def _checked(
    listed_rows: tuple[list[Row], list[Problem]], folder: Path, model: str, shard: str, *, quiet: bool
) -> tuple[list[SlideTask], list[Problem], list[Row]]:
    """Check the rows of a shard; return tasks, problems and all rows."""
    rows, problems = listed_rows
    if any(row.model == model for row in rows):
        describe_generator(model)  # report a missing model once instead of for every slide
    bad = {problem.line for problem in problems}
    good = [row for row in rows if row.line not in bad]
    if shard:
        good = shard_of(good, shard)
        problems = problems if shard.startswith("0/") else []  # rows without a shard are reported by the first one
    board = LiveBoard(quiet)
    tasks, found = check_rows(good, folder, rows, lambda count: board.note(f"checking {count} of {len(good)}"))
    return tasks, sorted([*problems, *found], key=lambda problem: problem.line), rows


def _run(
    tasks: Sequence[SlideTask], engine: Callable[[], Engine], options: BatchOptions, problems: Sequence[Problem],
    folder: Path, shard: str, *, verify: bool, quiet: bool,
) -> tuple[list[Result], list[str]]:  # fmt: skip
    """Run a batch; return the results and the names of the written table and page."""
    board, writer = LiveBoard(quiet), ResultsWriter(folder, shard)
    known: Board | None = None

    def watch(states: Board, news: SlideState | None) -> None:
        nonlocal known
        if known is None and not quiet and (names := to_be_replaced(states)):
            tell(f"replacing existing outputs of other options: {listed(names)}")
        known = states
        board.show(states, news)
        writer.update(lambda: results_of(states, problems))

    try:
        known = run_batch(tasks, engine, options, watch, verify=verify)
    finally:
        results = [
            replace(one, status=INTERRUPTED) if one.status == "running" else one
            for one in results_of(known or [], problems)
        ]
        # also after an interruption, but not before the states are known
        written = writer.finish(results) if known is not None else []
    return results, written


def _count_lines(results: Sequence[Result]) -> list[str]:
    return [counts_text(results), *(f"  failed  {one.slide}: {one.error}" for one in results if one.status == "failed")]
