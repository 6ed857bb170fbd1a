"""``wsi2ihc evaluate``: evaluate virtual stains against references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi2ihc.cli.console import Line, print_json, print_out
from wsi2ihc.cli.options import POSITIVE, json_option, options_of, set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar
from wsi2ihc.concurrency import ProgressCallback
from wsi2ihc.training.evaluation.options import EvaluateOptions

if TYPE_CHECKING:
    from wsi2ihc.training.reports.document import Report


@click.command("evaluate")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model", "models", multiple=True, metavar="NAME|PATH", help="Model to evaluate on DATA; may be repeated."
)
@click.option("--reference", type=click.Path(path_type=Path), metavar="DIR", help="Folder of reference images.")
@click.option("--virtual", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of virtual images of the same names; may be repeated.")  # fmt: skip
@click.option("--he", metavar="DIR|SLIDE",
              help="Folder of H&E images, or the H&E slide, for baselines and figures.")  # fmt: skip
@click.option("--reference-slide", metavar="SLIDE", help="Stained slide.")
@click.option("--virtual-slide", metavar="SLIDE", help="Virtual slide to compare with it.")
@click.option("--transform", type=click.Path(path_type=Path),
              help="Transform from the H&E slide to the stained one, saved by `wsi2ihc register`.")  # fmt: skip
@click.option(
    "--square-um", type=POSITIVE, default=None, help="Side of the squares in which slides are compared, in µm."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report.")
@click.option("--overwrite", is_flag=True, help="Replace an existing report in OUT.")
@options_of(EvaluateOptions)
@json_option
@verbosity_options
def command(
    data: Path | None, models: tuple[str, ...], reference: Path | None, virtual: tuple[Path, ...], he: str | None,
    reference_slide: str | None, virtual_slide: str | None, transform: Path | None, square_um: float | None, out: Path,
    overwrite: bool, json: bool, verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Evaluate virtual stains against references in a report of tables, plots and images.

    Give DATA (paired patches) and models; or --reference and --virtual, folders of images; or --reference-slide and
    --virtual-slide. OUT contains the report as HTML, Markdown, CSV and JSON.
    """
    from wsi2ihc.training.reports.plots import require_matplotlib
    from wsi2ihc.training.reports.write import check_report_folder, write_report

    set_up_logging(verbose, quiet)
    _check_usage(
        he,
        patches=(data, models), folders=(reference, virtual),
        slides=(reference_slide, virtual_slide, transform, square_um),
    )  # fmt: skip
    check_report_folder(out, overwrite)
    require_matplotlib()
    report = _report(
        data, models, reference, virtual, he, reference_slide, virtual_slide, transform, square_um,
        EvaluateOptions(**choices), ProgressBar(quiet),
    )  # fmt: skip
    write_report(out, report, overwrite=overwrite)
    if json:
        print_json(report.data)
    elif not quiet:
        print_out(*_summary(report))
        print_out(f"{out / 'report.html'}: full report; also written as Markdown, CSV and JSON")


def _check_usage(he: str | None, patches: tuple[Any, ...], folders: tuple[Any, ...], slides: tuple[Any, ...]) -> None:
    """Check that the arguments select exactly one kind of evaluation."""
    given = [any(one) for one in (patches, folders, slides)]
    if sum(given) != 1:
        raise click.UsageError("give DATA and --model, or --reference and --virtual, or --reference-slide and "
                               "--virtual-slide: one of these three")  # fmt: skip
    if given[0] and not all(patches):
        raise click.UsageError("name the folder DATA, and at least one --model")
    if given[0] and he is not None:
        raise click.UsageError("--he requires --virtual or --virtual-slide; DATA includes H&E images")
    if given[1] and not all(folders):
        raise click.UsageError("--reference needs --virtual, and vice versa")
    if given[2] and not all(slides[:2]):
        raise click.UsageError("--reference-slide needs --virtual-slide, and vice versa")


def _report(
    data: Path | None, models: tuple[str, ...], reference: Path | None, virtual: tuple[Path, ...], he: str | None,
    reference_slide: str | None, virtual_slide: str | None, transform: Path | None, square_um: float | None,
    options: EvaluateOptions, progress: ProgressCallback,
) -> Report:  # fmt: skip
    from wsi2ihc.training.evaluation.image_folders import evaluate_folders
    from wsi2ihc.training.evaluation.patches import evaluate_patches
    from wsi2ihc.training.evaluation.report import make_report, make_slide_report
    from wsi2ihc.training.evaluation.slides import evaluate_slides

    sampling = {"seed": options.seed, "resamples": options.resamples}
    if data is not None:
        return make_report(evaluate_patches(data, models, options, progress), **sampling)
    if reference is not None:
        he_folder = Path(he) if he else None
        return make_report(evaluate_folders(reference, virtual, he_folder, options, progress), **sampling)
    chosen = {} if square_um is None else {"square_um": square_um}
    result = evaluate_slides(str(reference_slide), str(virtual_slide), transform, options, progress, he=he, **chosen)
    return make_slide_report(result, **sampling)


def _summary(report: Report) -> list[Line]:
    """Return the lead and the first table, with one row per metric that has a value."""
    from wsi2ihc.training.reports.document import NO_VALUE, Table, format_cell

    table = next(one for section in report.sections for one in section.contents if isinstance(one, Table))
    rows: list[Line] = [("", *(column.title for column in table.columns[1:]))]
    for row in table.rows:
        cells = [format_cell(cell, column.digits) for cell, column in zip(row[1:], table.columns[1:], strict=True)]
        if any(one.text != NO_VALUE for one in cells):
            rows.append((str(row[0]), *(f"{one.text} {one.interval}".strip() for one in cells)))
    return [*report.lead, "", *rows]
