"""``wsi2ihc batch``: translate many slides on one or several machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wsi2ihc.batch.local import LocalEngine
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
from wsi2ihc.batch.scheduler import Engine, SlideState, SlideStates, initial_states, run_batch, to_be_replaced
from wsi2ihc.batch.slide_manifest import ManifestShard, Problem, Row, parse_shard, read_rows, record_shard, shard_of
from wsi2ihc.batch.task import BatchOptions, SlideTask, is_intact
from wsi2ihc.cli.console import print_err, print_json, print_out
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
from wsi2ihc.cli.progress import BatchDisplay
from wsi2ihc.errors import ManifestError
from wsi2ihc.models.registry import describe_generator
from wsi2ihc.text import flag, listed, pluralize
from wsi2ihc.translation.options import TranslateOptions

STATUS_PARAMETERS = {"status", "verify", "json", "verbose", "quiet"}
"""Parameters that can be given with --status."""


@click.command("batch")
@click.argument("source", required=False)
@click.argument("out_dir", type=click.Path(path_type=Path), required=False)
@click.option("--status", type=click.Path(path_type=Path), metavar="OUT_DIR", help="Show the state of a batch.")
@click.option("--recursive", is_flag=True, help="Also search subfolders of SOURCE; all outputs are written to "
              "OUT_DIR itself.")  # fmt: skip
@model_option
@mpp_option
@click.option("--shard", default="", metavar="I/N", help="Translate only part I of N, with I from 0, for array jobs "
              "without a Dask scheduler.")  # fmt: skip
@click.option("--scheduler", default=None, metavar="ADDRESS|FILE", help="Use the workers of a running Dask scheduler, "
              "given by its address or its scheduler file.")  # fmt: skip
@click.option("--slurm", is_flag=True, help="Start Dask workers as SLURM jobs (requires wsi2ihc[cluster]), with the "
              "settings of dask-jobqueue.")  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Translate the valid slides if others fail the checks.")
@click.option("--verify", is_flag=True, help="Compare all existing outputs with their recorded SHA-256, not only those "
              "whose size or times have changed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and translate nothing.")
@options_of(BatchOptions)
@options_of(
    TranslateOptions,
    skip=("region", "preview", "overwrite", "subsampling"),
    help_texts={"max_memory": "Memory limit of all worker processes of a machine together, at least 1G for each."},
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
    resume after an interruption: finished slides are kept, and outputs that were made with different options are
    replaced. Exit code 3: some slides failed, the others are done.
    """
    set_up_logging(verbose, quiet)
    if status is not None:
        return _show_status(status, verify=verify, json=json)
    if source is None or out_dir is None:
        raise click.UsageError("SOURCE and OUT_DIR are required: wsi2ihc batch SOURCE OUT_DIR, or --status OUT_DIR")
    if bool(shard) + slurm + (scheduler is not None) > 1:
        raise click.UsageError("--shard, --scheduler and --slurm are three ways to run a batch; choose one")
    part = parse_shard(shard) if shard else None
    options = build_options(BatchOptions, choices)
    defaults = build_options(TranslateOptions, choices)
    rows, problems = read_rows(source, model, defaults, mpp=mpp, recursive=recursive)
    tasks, problems = _check(rows, problems, out_dir, model, part, quiet=quiet)
    is_csv = source.lower().endswith(".csv")
    texts = [f"line {problem.line}, {problem}" if is_csv else str(problem) for problem in problems]
    if dry_run or not keep_going:  # otherwise they are reported at the end
        for text in texts:
            print_err(f"Error: {text}")
    models = {model: describe_generator(model).description for model in dict.fromkeys(task.model for task in tasks)}
    if dry_run:
        check_writable(out_dir)
        return _report_dry_run(tasks, texts, models, verify=verify, keep_going=keep_going, json=json)
    if problems and not keep_going:
        others = f", or run the other {len(tasks)} with --keep-going" if tasks else ""
        raise ManifestError(
            f"{len(problems)} of {pluralize(len(problems) + len(tasks), 'slide')} cannot be translated, and nothing "
            f"was started; fix the problems above{others}"
        )
    check_folder(out_dir)
    if part and (outdated := record_shard(out_dir, part, rows)):
        print_err(
            f"WARNING: shards {listed(outdated, 20)} were made from another list of slides; run them again as well, or "
            "some slides may be missing"
        )
    if not quiet:
        for name, description in models.items():
            print_err(f"model {name}: {description}")
    make_engine = _engine_factory(out_dir, defaults.device, options, scheduler, slurm=slurm)
    if defaults.device.startswith("cuda"):  # the engine assigns the GPUs, and a worker sees only its own as "cuda"
        tasks = [replace(task, options=replace(task.options, device="cuda")) for task in tasks]
    try:
        results, written = _run(tasks, make_engine, options, problems, out_dir, part, verify=verify, quiet=quiet)
    except KeyboardInterrupt:
        print_err("", "Interrupted. Run the same command again to resume; partial files are removed then.")
        return EXIT_INTERRUPTED
    counts, *failed = _summary(results)
    if quiet:
        print_err(*failed)
    lines = [] if quiet else [f"{out_dir}: {counts}", *failed, *(f"  see {name}" for name in written)]
    return _print_results(results, lines, json=json)


def _show_status(folder: Path, *, verify: bool, json: bool) -> int:
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in STATUS_PARAMETERS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            shown = flag(name) if isinstance(parameter, click.Option) else name.upper()
            raise click.UsageError(f"{shown} has no effect with --status: wsi2ihc batch --status OUT_DIR [--verify]")
    results, notes = read_results(folder, partial(is_intact, verify=verify))
    return _print_results(results, _summary(results), notes, json=json)


def _print_results(results: Sequence[Result], lines: Sequence[str], notes: Sequence[str] = (), *, json: bool) -> int:
    """Print the results of a batch, as JSON or by lines, and return the exit code."""
    if json:
        print_json({"counts": count_statuses(results), "notes": notes, "models": describe_models(results),
                    "slides": [one.to_json() for one in results]})  # fmt: skip
    else:
        print_out(*lines, *notes)
    return EXIT_SOME_FAILED if any(one.status == "failed" for one in results) else 0


def _summary(results: Sequence[Result]) -> list[str]:
    """Return a line with the counts, and one for each failed slide."""
    return [counts_text(results), *(f"  failed  {one.slide}: {one.error}" for one in results if one.status == "failed")]


def _report_dry_run(
    tasks: Sequence[SlideTask], problems: Sequence[str], models: Mapping[str, str], *, verify: bool, keep_going: bool,
    json: bool,
) -> int:  # fmt: skip
    """Print what a batch would do and return the exit code."""
    states = initial_states(tasks, verify=verify, renew=False)
    done, replaced = sum(state.status != "waiting" for state in states), to_be_replaced(states)
    if json:
        print_json({"slides": len(tasks), "done": done, "replaced": replaced, "problems": problems, "models": models})
    else:
        outputs = pluralize(len(replaced), "output")
        print_out(
            f"{pluralize(len(tasks), 'slide')} can be translated ({done} done before, {outputs} to be replaced), "
            f"{len(problems)} cannot",
            *(f"  model {model}: {description}" for model, description in models.items()),
        )
    return (EXIT_SOME_FAILED if keep_going else 1) if problems else 0


def _check(
    rows: Sequence[Row], problems: Sequence[Problem], folder: Path, model: str, shard: ManifestShard | None,
    *, quiet: bool,
) -> tuple[list[SlideTask], list[Problem]]:  # fmt: skip
    """Check the rows of a shard, or all; return tasks and all problems.

    ``problems`` are those found when the manifest was read; a shard other than the first one leaves them out.
    """
    if any(row.model == model for row in rows):
        describe_generator(model)  # report a missing model once instead of for every slide
    bad = {problem.line for problem in problems}
    checked = [row for row in rows if row.line not in bad]
    if shard is not None:
        checked = shard_of(checked, shard)
        problems = problems if shard.number == 0 else []
    display = BatchDisplay(quiet)
    tasks, found = check_rows(checked, folder, rows, lambda count: display.note(f"checking {count} of {len(checked)}"))
    return tasks, sorted([*problems, *found], key=lambda problem: problem.line)


def _engine_factory(
    folder: Path, device: str, options: BatchOptions, scheduler: str | None, *, slurm: bool
) -> Callable[[], Engine]:
    if scheduler is None and not slurm:
        return partial(LocalEngine, folder, device, options)
    from wsi2ihc.batch.dask_backend import DaskEngine

    return partial(DaskEngine, folder, device, options, scheduler=scheduler, slurm=slurm)


def _run(
    tasks: Sequence[SlideTask], make_engine: Callable[[], Engine], options: BatchOptions, problems: Sequence[Problem],
    folder: Path, shard: ManifestShard | None, *, verify: bool, quiet: bool,
) -> tuple[list[Result], list[str]]:  # fmt: skip
    """Run a batch; return the results and the names of the written table and page."""
    display, writer = BatchDisplay(quiet), ResultsWriter(folder, shard)
    latest: SlideStates | None = None

    def watch(states: SlideStates, changed: SlideState | None) -> None:
        nonlocal latest
        if latest is None and not quiet and (names := to_be_replaced(states)):
            print_err(f"replacing outputs (damaged, made with different options, or not by a batch): {listed(names)}")
        latest = states
        display.show(states, changed)
        writer.update(lambda: results_of(states, problems))

    try:
        latest = run_batch(tasks, make_engine, options, watch, verify=verify)
    finally:  # an interrupted batch also writes its table, unless it has not yet read the states
        results = [
            replace(one, status=INTERRUPTED) if one.status == "running" else one
            for one in results_of(latest or [], problems)
        ]
        written = writer.finish(results) if latest is not None else []
    return results, written
