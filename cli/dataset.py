"""``wsi2ihc dataset``: contents and problems of a paired dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.console import Line, print_err, print_json, print_out
from wsi2ihc.cli.options import json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar
from wsi2ihc.text import pluralize
from wsi2ihc.training.inspection.options import InspectOptions

if TYPE_CHECKING:
    from wsi2ihc.training.reports.document import Report


@click.command("dataset")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report; by default only a summary.")
@click.option("--overwrite", is_flag=True, help="Replace an existing report in OUT.")
@options_of(InspectOptions)
@json_option
@verbosity_options
def command(
    data: Path, out: Path | None, overwrite: bool, json: bool, verbose: int, quiet: bool, **choices: Any
) -> None:
    """Describe the paired patches in the folder DATA and find problems.

    Reports counts and image statistics per split and HER2 level, duplicate tissue (copied, mirrored, rotated or
    overlapping patches), especially across splits, and misaligned pairs. All images are read, including those of test.
    Findings are warnings: the exit code is 0.
    """
    from wsi2ihc.training.inspection.inspect import inspect_dataset
    from wsi2ihc.training.reports.write import FORMAT, VERSION, check_report_folder, write_report

    set_up_logging(verbose, quiet)
    options = InspectOptions(**choices, figures=out is not None)
    if out is not None:
        check_report_folder(out, overwrite)
    report = inspect_dataset(data, options, ProgressBar(quiet))
    if out is not None:
        write_report(out, report, overwrite=overwrite)
    if not quiet:
        for warning in report.data["warnings"]:
            print_err(f"WARNING: {warning}")
    if json:
        print_json({"format": FORMAT, "version": VERSION, **report.data})
    elif not quiet:
        print_out(*_summary(report))
        if out is not None:
            print_out(f"{out / 'report.html'}: full report; also written as Markdown, CSV and JSON")


def _summary(report: Report) -> list[Line]:
    """Return the lead and the counts per split and level."""
    lines: list[Line] = [report.lead[0]]
    for one in report.data["counts"]:
        if one["group"] or not one["pairs"]:  # empty levels are warnings
            continue
        name = one["split"] if one["her2"] == "all" else f"{one['split']}, HER2 {one['her2']}"
        more = [
            pluralize(one[f"{what}s"], what) for what in ("group", "slide", "patient") if one[f"{what}s"] is not None
        ]
        lines.append((name, ", ".join([pluralize(one["pairs"], "pair"), *more])))
    return [*lines, *report.lead[1:]]
