"""``wsi2ihc dataset``: what is in a paired data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.output import echo_json, say, tell
from wsi2ihc.cli.parameters import json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar
from wsi2ihc.text import pluralize
from wsi2ihc.training.inspection.options import InspectOptions

if TYPE_CHECKING:
    from wsi2ihc.training.reporting.document import Report


@click.command("dataset")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report; without it, only a summary.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier report in OUT.")
@options_of(InspectOptions, skip=("pictures",))
@json_option
@verbosity_options
def command(
    data: Path, out: Path | None, overwrite: bool, json: bool, verbose: int, quiet: bool, **choices: Any
) -> None:
    """Describe the paired patches in the folder DATA, and find what is wrong with them.

    Counts and looks per split and HER2 level; the same tissue in several patches (copies, mirrored, turned, overlapping
    ones), above all between splits; pairs whose H&E and IHC do not lie on each other. All images are read, those of
    test included. Findings are warnings: the exit code is 0.
    """
    from wsi2ihc.training.inspection.inspecting import inspect_dataset
    from wsi2ihc.training.reporting.writing import FORMAT, VERSION, check_report_folder, write_report

    set_up_logging(verbose, quiet)
    options = InspectOptions(**choices, pictures=out is not None)
    if out is not None:
        check_report_folder(out, overwrite)
    bar = ProgressBar(quiet)
    try:
        report = inspect_dataset(data, options, bar)
        if out is not None:
            write_report(out, report, overwrite=overwrite)
    finally:
        bar.close()
    if not quiet:
        for warning in report.data["warnings"]:
            tell(f"WARNING: {warning}")
    if json:
        echo_json({"format": FORMAT, "version": VERSION, **report.data})
    elif not quiet:
        say(*_summary(report))
        if out is not None:
            say(f"{out / 'report.html'}: the whole report; beside it as Markdown, CSV and JSON")


def _summary(report: Report) -> list[str]:
    """The lead, and the counts of splits and levels."""
    lines = [report.lead[0]]
    for one in report.data["counts"]:
        if one["group"]:
            continue
        name = one["split"] if one["her2"] == "all" else f"{one['split']}, HER2 {one['her2']}"
        more = [
            pluralize(one[f"{what}s"], what) for what in ("group", "slide", "patient") if one[f"{what}s"] is not None
        ]
        lines.append(f"  {name:20} " + ", ".join([pluralize(one["pairs"], "pair"), *more]))
    return [*lines, *report.lead[1:]]
