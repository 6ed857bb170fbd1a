"""``wsi2ihc batch``: many slides, on one machine or many, and nothing lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import click

from wsi2ihc.batch.checking import check_folder, check_rows, check_writable
from wsi2ihc.batch.engine import Engine
from wsi2ihc.batch.local import LocalEngine
from wsi2ihc.batch.manifest import Problem, Row, read_rows, shard_of
from wsi2ihc.batch.marker import is_intact
from wsi2ihc.batch.options import BatchOptions
from wsi2ihc.batch.recording import ResultsWriter
from wsi2ihc.batch.results import (
    INTERRUPTED,
    Result,
    count_statuses,
    counts_text,
    describe_models,
    read_results,
    results_of,
)
from wsi2ihc.batch.runner import Board, SlideState, run_batch, states_at_first, to_be_replaced
from wsi2ihc.batch.shards import record_shard
from wsi2ihc.batch.task import SlideTask
from wsi2ihc.cli.board import LiveBoard
from wsi2ihc.cli.main import EXIT_INTERRUPTED, EXIT_SOME_FAILED
from wsi2ihc.cli.output import echo_json, say, tell
from wsi2ihc.cli.parameters import (
    json_option,
    model_option,
    mpp_option,
    options_of,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.translate import command as translate_command
from wsi2ihc.cli.translate import translate_options
from wsi2ihc.errors import ManifestError
from wsi2ihc.generator.registry import describe_generator
from wsi2ihc.notation import listed
from wsi2ihc.text import pluralize
from wsi2ihc.translation.options import TranslateOptions

_OWN = frozenset({
    "slide", "output", "region", "preview", "dry_run", "overwrite", "mpp", "series", "page", "model", "json", "verbose",
    "quiet",
})  # fmt: skip
"""Parameters of ``translate`` that have no meaning for many slides, or one of their own."""


@click.command("batch")
@click.argument("source", required=False)
@click.argument("out_dir", type=click.Path(path_type=Path), required=False)
@click.option("--status", type=click.Path(path_type=Path), metavar="OUT_DIR", help="Tell how far a batch is, instead.")
@click.option("--recursive", is_flag=True, help="Also take slides in the folders of SOURCE; their outputs all lie in "
              "OUT_DIR itself.")  # fmt: skip
@model_option
@mpp_option
@click.option("--shard", default="", metavar="I/N", help="Only every N-th slide, from the I-th on (0-based): for array "
              "jobs without a scheduler of their own.")  # fmt: skip
@click.option("--scheduler", default=None, metavar="ADDRESS|FILE", help="A running Dask scheduler, or its file.")
@click.option("--slurm", is_flag=True, help="Start Dask workers through SLURM (needs wsi2ihc[cluster]; dask-jobqueue's "
              "settings say how).")  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Begin although some slides cannot be translated; they have failed.")
@click.option("--verify", is_flag=True, help="Read outputs that are done, and compare them with the SHA-256 noted when "
              "they were written. Without it, one is read only if its size or times have changed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything, and translate nothing.")
@options_of(BatchOptions)
@json_option
@verbosity_options
def command(
    source: str | None, out_dir: Path | None, status: Path | None, recursive: bool, model: str, mpp: float | None,
    shard: str, scheduler: str | None, slurm: bool, keep_going: bool, verify: bool, dry_run: bool, json: bool,
    verbose: int, quiet: bool, **choices: Any,
) -> int:  # fmt: skip
    """Translate the slides of SOURCE into the folder OUT_DIR.

    SOURCE is a CSV with a column path (and where wanted output, mpp, series, page, model, or options of translate;
    paths are relative to the CSV), a folder, or a pattern such as 'slides/*.svs'. Run the same again to go on after an
    interruption: slides that are done stay as they are; outputs that were made otherwise are replaced. Exit code 3:
    some slides failed, the others are done.
    """
    set_up_logging(verbose, quiet)
    if status is not None:
        if source is not None:
            raise click.UsageError(
                "--status takes the folder of a batch, and nothing else: wsi2ihc batch --status OUT_DIR [--verify]"
            )
        return _tell_status(status, verify=verify, json=json)
    if source is None or out_dir is None:
        raise click.UsageError("name the slides and the folder of the outputs, or a folder to --status")
    if bool(shard) + slurm + (scheduler is not None) > 1:
        raise click.UsageError("--shard, --scheduler and --slurm are three ways to run a batch; choose one")
    own = {one.name: choices.pop(one.name) for one in dataclasses.fields(BatchOptions)}
    options, defaults = BatchOptions(**own), translate_options(**choices)
    listed_rows = read_rows(source, model, defaults, mpp=mpp, recursive=recursive)
    tasks, problems, rows = _checked(listed_rows, out_dir, model, shard, quiet=quiet)
    is_csv = source.lower().endswith(".csv")
    texts = [f"line {problem.line}, {problem}" if is_csv else str(problem) for problem in problems]
    for text in texts if dry_run or not keep_going else ():  # else the end tells
        tell(f"Error: {text}")
    models = _models(tasks)
    if dry_run:
        check_writable(out_dir)
        return _tell_dry_run(tasks, texts, models, verify=verify, keep_going=keep_going, json=json)
    if problems and not keep_going:
        raise ManifestError(
            f"{len(problems)} of {pluralize(len(problems) + len(tasks), 'slide')} cannot be translated, and nothing "
            f"was begun; correct the list{f', or translate the other {len(tasks)} with --keep-going' if tasks else ''}"
        )
    check_folder(out_dir)
    if shard and (others := record_shard(out_dir, shard, rows)):
        tell(
            f"WARNING: shards {listed(others, 20)} were dealt from another list of slides; run them again as well, or "
            "some slides may be left out"
        )
    for name, description in () if quiet else models.items():
        tell(f"model {name}: {description}")
    engine = _engine_maker(out_dir, defaults.device, options, scheduler, slurm)
    try:
        results, written = _run(
            _for_children(tasks, defaults), engine, options, problems, out_dir, shard, verify=verify, quiet=quiet
        )
    except KeyboardInterrupt:
        tell("", "Interrupted; the same command goes on, and first removes what is half-written.")
        return EXIT_INTERRUPTED
    counts, *failed = _counted(results)
    if quiet:
        tell(*failed)
    return _tell(
        results, json=json,
        lines=[] if quiet else [f"{out_dir}: {counts}", *failed, *(f"  see {name}" for name in written)],
    )  # fmt: skip


def _tell(results: Sequence[Result], *, json: bool, lines: Sequence[str], notes: Sequence[str] = ()) -> int:
    """Tell what came of a batch; the exit code."""
    if json:
        echo_json({"counts": count_statuses(results), "notes": notes, "models": describe_models(results),
                   "slides": [one.to_json() for one in results]})  # fmt: skip
    else:
        say(*lines, *notes)
    return EXIT_SOME_FAILED if any(one.status == "failed" for one in results) else 0


def _models(tasks: Sequence[SlideTask]) -> dict[str, str]:
    """What the models are that slides are translated with, by name or file as given."""
    return {model: describe_generator(model).description for model in dict.fromkeys(task.model for task in tasks)}


def _for_batch(parameter: click.Parameter) -> click.Parameter:
    """A parameter of ``translate``, with its help as it is true of a batch."""
    if parameter.name != "max_memory" or not isinstance(parameter, click.Option):
        return parameter
    own = copy(parameter)
    own.help = "Bound for all processes that translate on one machine together (at least 1G for each)."
    return own


def _tell_dry_run(
    tasks: Sequence[SlideTask], problems: Sequence[str], models: Mapping[str, str], *, verify: bool, keep_going: bool,
    json: bool,
) -> int:  # fmt: skip
    """Tell what would be done; the exit code, which is that of the batch as far as it can be known."""
    states = states_at_first(tasks, verify=verify, renew=False)
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


command.params.extend(_for_batch(one) for one in translate_command.params if one.name not in _OWN)


def _checked(
    listed_rows: tuple[list[Row], list[Problem]], folder: Path, model: str, shard: str, *, quiet: bool
) -> tuple[list[SlideTask], list[Problem], list[Row]]:
    """What can be translated, what cannot, and all rows of the list, of which these may be a shard."""
    rows, problems = listed_rows
    if any(row.model == model for row in rows):
        describe_generator(model)  # one that there is not is told once, and not for every slide
    bad = {problem.line for problem in problems}
    good = [row for row in rows if row.line not in bad]
    if shard:
        good = shard_of(good, shard)
        problems = problems if shard.startswith("0/") else []  # rows that belong to no shard: the first one tells
    board = LiveBoard(quiet)
    tasks, found = check_rows(good, folder, rows, lambda count: board.note(f"checking {count} of {len(good)}"))
    board.close()
    return tasks, sorted([*problems, *found], key=lambda problem: problem.line), rows


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
    folder: Path, shard: str, *, verify: bool, quiet: bool,
) -> tuple[list[Result], list[str]]:  # fmt: skip
    """Run a batch; what came of it, and the names of the table and page, if they could be written."""
    board, writer = LiveBoard(quiet), ResultsWriter(folder, shard)
    known: Board | None = None

    def watch(states: Board, news: SlideState | None) -> None:
        nonlocal known
        if known is None and not quiet and (names := to_be_replaced(states)):
            board.say(f"outputs that are there and were made otherwise are replaced: {listed(names)}")
        known = states
        board.show(states, news)
        writer.update(lambda: results_of(states, problems))

    try:
        known = run_batch(tasks, engine, options, watch, verify=verify)
    finally:
        board.close()
        results = [
            dataclasses.replace(one, status=INTERRUPTED) if one.status == "running" else one
            for one in results_of(known or [], problems)
        ]
        # of an interrupted batch as well, but not before it knows what is done
        written = writer.finish(results) if known is not None else []
    return results, written


def _counted(results: Sequence[Result]) -> list[str]:
    failed = (f"  failed  {one.slide}: {one.error}" for one in results if one.status == "failed")
    return [counts_text(results), *failed]


def _tell_status(folder: Path, *, verify: bool, json: bool) -> int:
    results, notes = read_results(folder, partial(is_intact, verify=verify))
    return _tell(results, json=json, lines=_counted(results), notes=notes)
