"""``wsi2ihc train``: from paired patches to a generator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from wsi2ihc.cli.parameters import echo_json, json_option, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar, duration
from wsi2ihc.training.options import PRESETS, TrainOptions, flag, read_config, resolve_options

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
    if not resume or out is None:
        return resolve_options(given, config=config, preset=preset)
    stored = dataclasses.asdict(resolve_options(config=out / "config.toml"))
    if config is not None or preset is not None:
        return resolve_options({**given}, config=config, preset=preset)
    return TrainOptions(**{**stored, **given})


def _run(
    data: Path, out: Path | None, options: TrainOptions, *, resume: bool, dry_run: bool, json: bool, quiet: bool
) -> None:
    from wsi2ihc.training.job import prepare
    from wsi2ihc.training.trainer import train

    bar = ProgressBar(quiet)
    try:
        job = prepare(data, options)
        if dry_run or out is None:
            return
        summary = train(job, out, resume=resume, progress=bar)
    finally:
        bar.close()
    if json:
        echo_json(summary)
    elif summary and not quiet:
        click.echo(str(summary))
