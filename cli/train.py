"""``wsi2ihc train``: train a generator on paired patches."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.console import Line, print_err, print_json, print_out
from wsi2ihc.cli.options import json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar, duration
from wsi2ihc.concurrency import Progress
from wsi2ihc.text import pluralize
from wsi2ihc.training.options import RECIPES, TrainOptions, config_text, resolve_options
from wsi2ihc.translation.report import DISCLAIMER

if TYPE_CHECKING:
    from wsi2ihc.training.training_setup import TrainingEstimate, TrainingJob


def _default(name: str, default: Any) -> str:
    """Return the displayed default of an option, which a file, preset or recipe may override."""
    if any(name in recipe for recipe in RECIPES.values()):
        return "the recipe's"
    return ("on" if default else "off") if isinstance(default, bool) else str(default)


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; needed unless with --dry-run.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the options below.")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint, with the original options.")
@click.option("--dry-run", is_flag=True, help="Show the configuration, the data and the memory; train nothing.")
@options_of(TrainOptions, default_text=_default)
@json_option
@verbosity_options
def command(
    data: Path, out: Path | None, config: Path | None, resume: bool, dry_run: bool, json: bool,
    verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Train a generator on the paired H&E and IHC patches in the folder DATA.

    OUT/model.safetensors is what `wsi2ihc translate --model` takes. Of what sets an option, the first in this list
    wins: the command line, --config, what the dataset states (its dataset.json and pairs.csv), --preset, the default.
    Naming a recipe sets its architecture, losses and weights. Research use only, not for diagnosis.
    """
    from wsi2ihc.training.fabric import is_first_process

    quiet = quiet or not is_first_process()
    set_up_logging(verbose, quiet)
    given = {name: value for name, value in choices.items() if value is not None}
    if dry_run:
        _show(data, _options(given, None, config), json=json, quiet=quiet)
    elif out is None:
        raise click.UsageError("name a folder for the run with --out, or use --dry-run")
    else:
        _run(data, out, _options(given, out if resume else None, config), resume=resume, json=json, quiet=quiet)


def _options(given: dict[str, Any], resumed: Path | None, config: Path | None) -> TrainOptions:
    """Resolve the options; a resumed run keeps its configuration, overridden by given options."""
    if resumed is not None:
        from wsi2ihc.training.checkpoint import RunFolder

        folder = RunFolder(resumed)
        if not folder.has_only_begun():
            folder.check_resumable()
        if config is None and folder.config.is_file():
            config = folder.config
    return resolve_options(given, config=config)


def _show(data: Path, options: TrainOptions, *, json: bool, quiet: bool) -> None:
    """Check everything and decode every patch, but write nothing."""
    from wsi2ihc.training.data import decode_pairs
    from wsi2ihc.training.training_setup import describe_data, estimate_resources, prepare

    bar = ProgressBar(quiet)
    job = prepare(data, options)
    outlook = estimate_resources(job)
    found = decode_pairs(job.data.pairs, lambda done, of: bar(Progress("decoding every patch", done, of, unit="pair")))
    facts = {"options": dataclasses.asdict(job.options), "data": describe_data(job), "notes": [*job.notes, *found],
             "estimate": dataclasses.asdict(outlook)}  # fmt: skip
    print_json(facts) if json else print_out(*_describe(job, outlook, found))


def _run(data: Path, out: Path, options: TrainOptions, *, resume: bool, json: bool, quiet: bool) -> None:
    from wsi2ihc.training.checkpoint import RunFolder
    from wsi2ihc.training.fabric import is_first_process
    from wsi2ihc.training.trainer import train
    from wsi2ihc.training.training_setup import estimate_resources, prepare

    folder = RunFolder(out)
    if resume and folder.has_only_begun():
        resume = False
        if not quiet:
            print_err(f"note: the run in {out} has no checkpoint yet; it starts from the beginning")
    is_complete = resume and folder.summary.exists()
    if not resume and is_first_process():
        folder.check_new()
    try:
        job = prepare(data, options)
        if not quiet:
            print_err(_describe_data(job))
            if warning := _too_large(estimate_resources(job)):
                print_err(f"WARNING: {warning}")
        summary = train(job, out, resume=resume, progress=ProgressBar(quiet))
    except (KeyboardInterrupt, SystemExit) as error:
        if folder.last.exists():
            error.add_note("The last checkpoint is kept. Run the same command with --resume to resume from it.")
        raise
    if json and summary:
        print_json(summary)
    elif summary and not quiet:
        if is_complete:
            print_out("already complete: no step was left to train")
        print_out(*_summary(out, summary, job))


def _too_large(outlook: TrainingEstimate) -> str:
    """Return a warning if the run may exceed the memory; "" otherwise."""
    if outlook.available_bytes is None or outlook.memory_bytes <= outlook.available_bytes:
        return ""
    needed, free = _amount(outlook.memory_bytes), _amount(outlook.available_bytes)
    return (
        f"this takes about {needed} on {outlook.device}, where {free} is available; lower --batch-size, --crop-size "
        "or --ngf"
    )


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"


def _describe_data(job: TrainingJob) -> str:
    counts = job.data.counts()
    roles = []
    for role, of in counts.items():
        groups = f" in {pluralize(of['groups'], 'group')}" if of["groups"] else ""
        levels = ", ".join(f"{level}: {number}" for level, number in of.get("her2", {}).items())
        roles.append(f"{role}: {pluralize(of['pairs'], 'pair')}{groups}" + (f" (HER2 {levels})" if levels else ""))
    grouped = f", grouped by {job.data.grouped_by}" if job.data.grouped_by else ""
    return f"data: {job.data.layout}, patches of {job.sizes}{grouped}; " + "; ".join(roles)


def _describe(job: TrainingJob, outlook: TrainingEstimate, found: Sequence[str]) -> list[str]:
    """Return the configuration as a file would have it, then what follows from it."""
    fewer = len(job.validation) < len(job.data.of("validation"))
    validated = f"on {len(job.validation)}" if fewer else "on all"
    processes = "one process" if outlook.processes == 1 else f"each of {outlook.processes} processes"
    lines = [
        *config_text(job.options).rstrip().split("\n"),
        "",
        f"{_describe_data(job)} (validation {validated}; all were decoded except test, which is never read)",
        *(f"note: {note}" for note in found),
        f"model: {job.options.network_name} of width {job.spec.width}, {outlook.generator_parameters:,} parameters; "
        f"discriminator {outlook.discriminator_parameters:,}; {job.spec.stain} at {job.spec.mpp:g} µm/px",
        f"steps: {job.steps_per_epoch} an epoch, {job.steps} in all",
        f"memory: about {_amount(outlook.memory_bytes)} in {processes} on "
        f"{outlook.device} in {outlook.precision}: {_amount(outlook.weights_bytes)} of weights, gradients and "
        f"Adam's averages, {_amount(outlook.activations_bytes)} kept for the gradients; libraries come on top",
    ]
    warning = _too_large(outlook)
    return [*lines, f"WARNING: {warning}"] if warning else lines


def _summary(out: Path, summary: dict[str, Any], job: TrainingJob) -> list[Line]:
    best = summary["best"]
    chosen = f"the last epoch, since {job.options.best_by} has no value for any"
    if best:
        chosen = f"epoch {best['epoch']}, the best by {best['by']}"
    rows = [
        ("model (statistics re-estimated)", summary["validation"]),
        ("with running statistics", summary["running_statistics"]),
        ("in training mode", summary["training_mode"]),
        ("interior of the patches", summary["interior"]),
        ("border of the patches", summary["border"]),
    ]
    columns = ("psnr", "ssim", "stain_r", "stain_r_blocks")
    return [
        f"{out}/model.safetensors: {chosen}, after {summary['steps']} steps in {duration(summary['seconds'])}",
        ("validation", *columns),
        *((name, *("-" if row[one] is None else f"{row[one]:.3f}" for one in columns)) for name, row in rows if row),
        *(f"  note: {note}" for note in job.notes),
        f"  next: wsi2ihc translate SLIDE OUT.ome.tiff --model {shlex.quote(f'{out}/model.safetensors')}",
        f"  {DISCLAIMER}",
    ]
