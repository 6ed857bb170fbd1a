"""``wsi2ihc curves``: losses and validation metrics of training runs in one figure."""

from __future__ import annotations

from pathlib import Path

import click

from wsi2ihc.cli.console import print_out
from wsi2ihc.cli.options import set_up_logging, verbosity_options
from wsi2ihc.text import pluralize


@click.command("curves")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="curves.png", show_default=True, type=click.Path(path_type=Path), help="Output file.")
@click.option("--smooth", type=click.IntRange(0, 10**9), default=0, show_default="an epoch",
              help="Rows of steps.csv in the running mean of losses; 1 for none.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing figure.")
@verbosity_options
def command(runs: tuple[Path, ...], out: Path, smooth: int, overwrite: bool, verbose: int, quiet: bool) -> None:
    """Plot the losses and validation metrics of each RUN, an output folder of `wsi2ihc train`."""
    set_up_logging(verbose, quiet)
    from wsi2ihc.atomic_files import check_output
    from wsi2ihc.training.training_curves import draw_curves

    check_output(out, overwrite, suffixes=(".png",))
    panels = draw_curves(runs, out, smooth)
    if not quiet:
        print_out(f"{out}: {pluralize(panels, 'panel')}, {pluralize(len(runs), 'run')}")
