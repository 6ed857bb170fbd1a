"""``wsi2ihc train``: from paired patches to a generator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from wsi2ihc.cli.parameters import echo_json, json_option, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar, duration
from wsi2ihc.progress import Progress
from wsi2ihc.training.options import PRESETS, TrainOptions, config_text, flag, resolve_options
from wsi2ihc.translation.report import DISCLAIMER

if TYPE_CHECKING:
    from wsi2ihc.training.forecast import TrainingForecast
    from wsi2ihc.training.job import TrainingJob

Command = TypeVar("Command", bound=Any)


def _mirrored(command: Command) -> Command:
    """One option per field of `TrainOptions`. Without a default: what is not given is left to file, preset, recipe."""
    hints = get_type_hints(TrainOptions)
    for one in reversed(dataclasses.fields(TrainOptions)):
        hint = hints[one.name]
        kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
        is_choice, is_switch = get_origin(hint) is Literal, hint is bool
        shown = "" if one.default in (None, "") else f"  [default: {_shown(one.default)}]"
        command = click.option(
            f"{flag(one.name)}/--no-{flag(one.name)[2:]}" if is_switch else flag(one.name),
            one.name,
            type=click.Choice(get_args(hint)) if is_choice else None if is_switch else kinds[0],
            default=None,
            help=one.metadata["help"] + shown,
        )(command)
    return command


def _shown(default: Any) -> str:
    return ("on" if default else "off") if isinstance(default, bool) else str(default)


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; needed unless with --dry-run.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the options below.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings of a known data set.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint, with the options it began with.")
@click.option("--dry-run", is_flag=True, help="Show the configuration, the data and the memory; train nothing.")
@_mirrored
@json_option
@verbosity_options
def command(
    data: Path, out: Path | None, config: Path | None, preset: str | None, resume: bool, dry_run: bool, json: bool,
    verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Train a generator on the paired H&E and IHC patches in the folder DATA.

    OUT/model.safetensors is what `wsi2ihc translate --model` takes. Of what sets an option, the first in this list
    wins: the command line, --config, --preset, --recipe, the default. Research use only, not for diagnosis.
    """
    from wsi2ihc.training.trainer import is_first_process

    quiet = quiet or not is_first_process()
    set_up_logging(verbose, quiet)
    given = {name: value for name, value in choices.items() if value is not None}
    if out is None and not dry_run:
        raise click.UsageError("name a folder for the run with --out")
    options = _options(given, out, config, preset, resume)
    _run(data, out, options, resume=resume, dry_run=dry_run, json=json, quiet=quiet)


def _options(
    given: dict[str, Any], out: Path | None, config: Path | None, preset: str | None, resume: bool
) -> TrainOptions:
    """As given; a run that is resumed keeps its own configuration, but for what is given now."""
    if resume and out is not None and config is None and preset is None:
        config = out / "config.toml"
    return resolve_options(given, config=config, preset=preset)


def _run(
    data: Path, out: Path | None, options: TrainOptions, *, resume: bool, dry_run: bool, json: bool, quiet: bool
) -> None:
    from wsi2ihc.training.forecast import forecast
    from wsi2ihc.training.job import describe_data, prepare
    from wsi2ihc.training.trainer import train

    bar = ProgressBar(quiet)
    try:
        bar(Progress("looking at the patches"))
        job = prepare(data, options)
        bar.close()
        if dry_run or out is None:
            outlook = forecast(job)
            facts = {
                "options": dataclasses.asdict(job.options),
                "data": describe_data(job),
                "forecast": dataclasses.asdict(outlook),
            }
            echo_json(facts) if json else click.echo(_describe(job, outlook))
            return
        if not quiet:
            click.echo(_describe_data(job), err=True)
        summary = train(job, out, resume=resume, progress=bar)
    finally:
        bar.close()
    if json and summary:
        echo_json(summary)
    elif summary and not quiet:
        click.echo(_summary(out, summary))


def _describe_data(job: TrainingJob) -> str:
    counts = job.data.counts()
    roles = []
    for role, of in counts.items():
        groups = f" in {of['groups']} groups" if of["groups"] else ""
        levels = ", ".join(f"{level}: {number}" for level, number in of.get("her2", {}).items())
        roles.append(f"{role}: {of['pairs']} pairs{groups}" + (f" (HER2 {levels})" if levels else ""))
    grouped = f", grouped by {job.data.grouped_by}" if job.data.grouped_by else ""
    return f"data: {job.data.layout}, patches of {job.sizes}{grouped}; " + "; ".join(roles)


def _describe(job: TrainingJob, outlook: TrainingForecast) -> str:
    """The configuration as a file would have it, then what follows from it."""
    fewer = len(job.validation) < len(job.data.of("validation"))
    validated = f"on {len(job.validation)}" if fewer else "on all"
    gigabytes = [f"{size / 1e9:.1f} GB" for size in (
        outlook.memory_bytes, outlook.weights_bytes, outlook.activations_bytes)]  # fmt: skip
    return "\n".join([
        config_text(job.options).rstrip(),
        "",
        f"{_describe_data(job)} (validated {validated}; test is never read)",
        f"model: {job.options.network_name} of width {job.spec.width}, {outlook.generator_parameters:,} parameters; "
        f"discriminator {outlook.discriminator_parameters:,}; {job.spec.stain} at {job.spec.mpp:g} µm/px",
        f"steps: {job.steps_per_epoch} an epoch, {job.steps} in all",
        f"memory: about {gigabytes[0]} in each of {outlook.processes} process(es) on {outlook.device} in "
        f"{outlook.precision}: {gigabytes[1]} of weights, gradients and Adam's averages, {gigabytes[2]} of what layers "
        "keep for the gradients; libraries come on top",
    ])  # fmt: skip


def _summary(out: Path | None, summary: dict[str, Any]) -> str:
    figures, best = summary["validation"], summary["best"]
    chosen = f"epoch {best['epoch']}, the best by {best['by']}" if best else "the last epoch"
    rows = [
        ("model (statistics re-estimated)", figures),
        ("with running statistics", summary["running_statistics"]),
        ("in training mode", summary["training_mode"]),
        ("interior of the patches", summary["interior"]),
        ("border of the patches", summary["border"]),
    ]
    width = max(len(name) for name, _ in rows)
    columns = ("psnr", "ssim", "stain_r", "stain_r_blocks")
    lines = [
        f"{out}/model.safetensors: {chosen}, after {summary['steps']} steps in {duration(summary['seconds'])}",
        f"  {'validation':{width}}  " + "  ".join(f"{name:>14}" for name in columns),
        *(f"  {name:{width}}  " + "  ".join(_number(row[one]) for one in columns) for name, row in rows if row),
        f"  next: wsi2ihc translate SLIDE OUT.ome.tiff --model {out}/model.safetensors",
        f"  {DISCLAIMER}",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-':>14}" if value is None else f"{value:14.3f}"
