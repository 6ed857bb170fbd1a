"""``wsi2ihc models``: list, show and import generators."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from wsi2ihc.atomic_files import check_output
from wsi2ihc.cli.console import print_json, print_out
from wsi2ihc.cli.options import POSITIVE, json_option, set_up_logging, verbosity_options
from wsi2ihc.models.registry import DEFAULT_MODEL, describe_generator, list_models, load_model
from wsi2ihc.text import pluralize
from wsi2ihc.translation.output_files import check_not_inputs
from wsi2ihc.translation.report import describe_model

DEEPEST_SHOWN, DEEPEST_OF_ALL = 2, 100
"""Depth of nested metadata that is shown, without and with ``-v``."""


@click.group("models")
def command() -> None:
    """List, show and import generators."""


@command.command("list")
@json_option
def list_command(json: bool) -> None:
    """List the built-in generators."""
    models = list_models()
    if json:
        print_json({"default": DEFAULT_MODEL, "models": [describe_model(model) for model in models]})
        return
    for model in models:
        print_out(
            f"{model.name} (default)" if model.name == DEFAULT_MODEL else model.name,
            ("description", model.description),
            ("stain", model.channel_name),
            ("resolution", "that of the slide" if model.mpp is None else f"{model.mpp:.4g} µm/px"),
            ("license", model.license or "unknown"),
        )


@command.command("show")
@click.argument("model")
@json_option
@verbosity_options
def show(model: str, json: bool, verbose: int, quiet: bool) -> None:
    """Show the metadata of MODEL (a name or a .safetensors file), including its license and receptive field."""
    set_up_logging(verbose, quiet)
    generator = load_model(model)
    reach = generator.dependency
    facts = describe_model(generator) | {
        "radius_px": reach.radius_px,
        "stride_px": reach.stride_px,
        "is_local": reach.is_local,
    }
    if json:
        print_json(facts)
        return
    outline = _outline(facts, DEEPEST_OF_ALL if verbose else DEEPEST_SHOWN)
    print_out(*(("  " * depth + name, value) for depth, name, value in outline))


def _outline(facts: Mapping[str, Any], deepest: int, depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """Iterate over nested metadata as (depth, name, value); unknown values are empty."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and depth >= deepest:
            yield depth, name, f"{pluralize(len(value), 'entry', 'entries')} (shown with -v)"
        elif isinstance(value, Mapping):
            yield depth, name, ""
            yield from _outline(value, deepest, depth + 1)
        else:
            yield depth, name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


@command.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--mpp", type=POSITIVE, required=True, help="Resolution that the model was trained at, in µm/px.")
@click.option("--stain", default="", help="Stain of the output, such as HER2.")
@click.option("--license", default="", help="License of the weights.")
@click.option("--key", help="Generator to import from a file with several, such as netG_A.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@json_option
@verbosity_options
def import_command(
    source: Path, output: Path, mpp: float, stain: str, license: str, key: str | None, overwrite: bool, json: bool,
    verbose: int, quiet: bool,
) -> None:  # fmt: skip
    """Convert SOURCE, weights of the published pix2pix, CycleGAN or BCI code, to OUTPUT (.safetensors).

    The architecture follows from the names and shapes of the weights. Nothing in SOURCE is executed.
    """
    set_up_logging(verbose, quiet)
    check_output(output, overwrite=True, suffixes=(".safetensors",))  # an existing file is compared when saving
    check_not_inputs([output], [source])
    from wsi2ihc.models.import_weights import import_checkpoint
    from wsi2ihc.models.model_file import save_checkpoint

    module, spec = import_checkpoint(source, mpp=mpp, stain=stain, license=license, key=key)
    save_checkpoint(output, module, spec, overwrite=overwrite)
    facts = describe_model(describe_generator(output))
    if json:
        print_json(facts)
    elif not quiet:
        print_out(f"{output.name}: {facts['description']}; translate with --model {shlex.quote(str(output))}")
