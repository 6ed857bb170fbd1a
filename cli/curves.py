"""``wsi2ihc curves``: the losses and validation figures of training runs, in one picture."""

from __future__ import annotations

from pathlib import Path

import click

from wsi2ihc.cli.output import say
from wsi2ihc.cli.parameters import set_up_logging, verbosity_options
from wsi2ihc.text import pluralize


@click.command("curves")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="curves.png", show_default=True, type=click.Path(path_type=Path), help="The picture.")
@click.option("--smooth", type=click.IntRange(0, 10**9), default=0, show_default="an epoch",
              help="Rows of steps.csv that the running mean of losses goes over; 1 for none.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the picture if it is there.")
@verbosity_options
def command(runs: tuple[Path, ...], out: Path, smooth: int, overwrite: bool, verbose: int, quiet: bool) -> None:
    """Draw the losses and validation figures of each RUN, a folder that `wsi2ihc train` made, over one another."""
    set_up_logging(verbose, quiet)
    from wsi2ihc.pyramid import check_output
    from wsi2ihc.training.curves import draw_curves

    check_output(out, overwrite, suffixes=(".png",))
    panels = draw_curves(runs, out, smooth)
    if not quiet:
        say(f"{out}: {pluralize(panels, 'panel')}, {pluralize(len(runs), 'run')}")
