"""``wsi2ihc evaluate``: how good virtual stains are, in numbers and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.output import echo_json, say
from wsi2ihc.cli.parameters import (
    PositiveFloat,
    json_option,
    options_of,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.progress import ProgressBar
from wsi2ihc.progress import ProgressCallback
from wsi2ihc.training.evaluation.options import EvaluateOptions

if TYPE_CHECKING:
    from wsi2ihc.training.reporting.document import Report


@click.command("evaluate")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model", "models", multiple=True, metavar="NAME|PATH", help="A model to score on DATA; may be repeated."
)
@click.option("--reference", type=click.Path(path_type=Path), metavar="DIR", help="Folder of reference images.")
@click.option("--virtual", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of virtual images of the same names; may be repeated.")  # fmt: skip
@click.option("--he", metavar="DIR|SLIDE",
              help="Folder of their H&E images, or the H&E slide: for a floor and the pictures.")  # fmt: skip
@click.option("--reference-slide", metavar="SLIDE", help="A stained slide.")
@click.option("--virtual-slide", metavar="SLIDE", help="A virtual slide to score against it.")
@click.option("--transform", type=click.Path(path_type=Path),
              help="From the H&E slide to the stained one, as `wsi2ihc register` saves it.")  # fmt: skip
@click.option(
    "--square-um", type=PositiveFloat(), default=None, help="Side of the squares in which slides are compared."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier report in OUT.")
@options_of(EvaluateOptions)
@json_option
@verbosity_options
def command(
    data: Path | None, models: tuple[str, ...], reference: Path | None, virtual: tuple[Path, ...], he: str | None,
    reference_slide: str | None, virtual_slide: str | None, transform: Path | None, square_um: float | None, out: Path,
    overwrite: bool, json: bool, verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Say how good a virtual stain is, in a report of tables, plots and pictures.

    Give DATA (paired patches) and models; or --reference and --virtual, folders of images that any program made; or
    --reference-slide and --virtual-slide. OUT/report.html is one page; OUT has the same as Markdown, CSV and JSON.
    """
    from wsi2ihc.training.reporting.plots import require_matplotlib
    from wsi2ihc.training.reporting.writing import check_report_folder, write_report

    set_up_logging(verbose, quiet)
    _check_usage(
        he,
        patches=(data, models), folders=(reference, virtual),
        slides=(reference_slide, virtual_slide, transform, square_um),
    )  # fmt: skip
    check_report_folder(out, overwrite)
    require_matplotlib()
    options = EvaluateOptions(**choices)
    bar = ProgressBar(quiet)
    try:
        if data is not None:
            report = _patches(data, models, options, bar)
        elif reference is not None:
            report = _folders(reference, virtual, Path(he) if he else None, options, bar)
        else:
            report = _slides(str(reference_slide), str(virtual_slide), transform, he, square_um, options, bar)
        write_report(out, report, overwrite=overwrite)
    finally:
        bar.close()
    if json:
        echo_json(report.data)
    elif not quiet:
        say(*_summary(report))
        say(f"{out / 'report.html'}: the whole report; beside it as Markdown, CSV and JSON")


def _check_usage(he: str | None, patches: tuple[Any, ...], folders: tuple[Any, ...], slides: tuple[Any, ...]) -> None:
    """One of three ways to call it."""
    given = [any(one) for one in (patches, folders, slides)]
    if sum(given) != 1:
        raise click.UsageError("give DATA and --model, or --reference and --virtual, or --reference-slide and "
                               "--virtual-slide: one of these three")  # fmt: skip
    if given[0] and not all(patches):
        raise click.UsageError("name the folder DATA, and at least one --model")
    if given[0] and he is not None:
        raise click.UsageError("--he goes with --virtual or --virtual-slide; DATA holds its H&E images")
    if given[1] and not all(folders):
        raise click.UsageError("--reference needs --virtual, and the other way round")
    if given[2] and not all(slides[:2]):
        raise click.UsageError("--reference-slide needs --virtual-slide, and the other way round")


def _patches(data: Path, models: tuple[str, ...], options: EvaluateOptions, progress: ProgressCallback) -> Report:
    from wsi2ihc.training.evaluation.patches import evaluate_patches
    from wsi2ihc.training.evaluation.presenting import present

    evaluation = evaluate_patches(data, models, options, progress)
    return present(evaluation, seed=options.seed, resamples=options.resamples)


def _folders(
    reference: Path, virtual: tuple[Path, ...], he: Path | None, options: EvaluateOptions, progress: ProgressCallback
) -> Report:
    from wsi2ihc.training.evaluation.folders import evaluate_folders
    from wsi2ihc.training.evaluation.presenting import present

    evaluation = evaluate_folders(reference, virtual, he, options, progress)
    return present(evaluation, seed=options.seed, resamples=options.resamples)


def _slides(
    reference: str, virtual: str, transform: Path | None, he: str | None, square_um: float | None,
    options: EvaluateOptions, progress: ProgressCallback,
) -> Report:  # fmt: skip
    from wsi2ihc.training.evaluation.slide_presenting import present_slide
    from wsi2ihc.training.evaluation.slides import evaluate_slides

    chosen = {} if square_um is None else {"square_um": square_um}
    result = evaluate_slides(reference, virtual, transform, options, progress, he=he, **chosen)
    return present_slide(result, seed=options.seed, resamples=options.resamples)


def _summary(report: Report) -> list[str]:
    """The lead and the first table, as text: a line for each figure."""
    from wsi2ihc.training.reporting.document import Table
    from wsi2ihc.training.reporting.tables import worded

    table = next(one for section in report.sections for one in section.contents if isinstance(one, Table))
    lines = [["", *(column.title for column in table.columns[1:])]]
    for row in table.rows:
        cells = [worded(cell, column.digits) for cell, column in zip(row[1:], table.columns[1:], strict=True)]
        lines.append([str(row[0]), *(f"{one.text} {one.interval}".strip() for one in cells)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [*report.lead, "", *text]
