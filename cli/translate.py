"""``wsi2ihc translate``: translate a slide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wsi2ihc.cli.console import Line, print_json, print_out
from wsi2ihc.cli.options import (
    build_options,
    image_options,
    json_option,
    model_option,
    mpp_option,
    options_of,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.progress import ProgressBar, duration, file_size
from wsi2ihc.models.registry import load_model
from wsi2ihc.pyramid import is_zarr
from wsi2ihc.slide import open_slide
from wsi2ihc.text import flag, pluralize
from wsi2ihc.translation.job import prepare
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.output import check_outputs
from wsi2ihc.translation.output_files import check_not_inputs, report_path
from wsi2ihc.translation.report import DISCLAIMER, TranslateReport, TranslationEstimate, estimate_translation
from wsi2ihc.translation.resume import check_checkpoint
from wsi2ihc.translation.seams import SeamMetrics
from wsi2ihc.translation.translate import translate

_log = logging.getLogger(__name__)


@click.command("translate")
@click.argument("slide")
@click.argument("output", type=click.Path(path_type=Path))
@model_option
@mpp_option
@image_options
@options_of(TranslateOptions, skip=("subsampling",))
@click.option("--dry-run", is_flag=True, help="Print an estimate and write nothing.")
@json_option
@verbosity_options
def command(
    slide: str, output: Path, model: str, mpp: float | None, series: int | None, page: int | None, dry_run: bool,
    json: bool, verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Turn the H&E slide SLIDE into a virtual IHC slide OUTPUT (.ome.tiff, or .ome.zarr).

    SLIDE is a file that OpenSlide or tiffslide reads, an OME-Zarr, a folder with one DICOM slide, or a URL. Research
    use only, not for diagnosis.
    """
    set_up_logging(verbose, quiet)
    if not output.name:
        raise click.UsageError(f"OUTPUT {output} is not a file name")
    options = build_options(TranslateOptions, choices)
    bar = ProgressBar(quiet)
    _warn_about_unused(output, options)
    before = _identity(report_path(output)), options.preview is None or options.preview.exists()
    with open_slide(slide, mpp=mpp, series=series, page=page) as opened:
        if options.resume:  # an existing output may be the requested one
            check_not_inputs([output, report_path(output)], [model])
        else:
            check_outputs(opened, output, options, inputs=[model])
        generator = load_model(model)
        if dry_run:
            kept = check_checkpoint(opened, generator, output, options) if options.resume else None
            outlook = estimate_translation(prepare(opened, generator, options, progress=bar), output)
            print_json(outlook.to_json()) if json else print_out(*_describe_estimate(outlook, kept))
            return
        report = translate(opened, generator, output, options, progress=bar)
    if json:
        print_json(report.to_json())
    elif not quiet:
        if before == (_identity(report_path(output)), True):
            print_out("already complete: nothing was done")
        print_out(*summary(report))


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what differs after a file was replaced; None if it does not exist."""
    try:
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns
    except OSError:
        return None


def _warn_about_unused(output: Path, options: TranslateOptions) -> None:
    """Log a warning if the command line sets options that have no effect."""

    def given(*names: str) -> str:
        context = click.get_current_context()
        return " and ".join(
            flag(name) for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT
        )

    if not options.resume and not is_zarr(output) and (unused := given("band_height")):
        _log.warning("%s has no effect without --resume", unused)
    if is_zarr(output) and (unused := given("compression", "quality")):
        _log.warning("%s: no effect on OME-Zarr, which is lossless", unused)


def summary(report: TranslateReport) -> list[Line]:
    """Summarize a translation."""
    size, seconds = report.output_size, report.seconds
    kept_px, window_px = report.plan["kept_px"], report.plan["window_px"]
    total_s = sum(seconds[stage] for stage in ("tissue", "model", "run"))
    return [
        f"{report.output_name}: {size} px at {report.output_mpp[0]:.4g} µm/px, "
        f"{pluralize(len(report.output_levels), 'level')}, {file_size(report.output_bytes)}",
        (
            "source",
            f"{report.source['name']}, {report.source['width']}×{report.source['height']} px at "
            f"{report.source['mpp'][0]:.4g} µm/px",
        ),
        *_model_rows(report.model, report.device, report.precision),
        (
            "tissue",
            f"{report.tissue_share:.1%} of the {'slide' if report.options['region'] is None else 'region'}; "
            f"{pluralize(report.plan['windows'], 'window')}, {report.blend}, "
            f"{window_px / kept_px:.2f} px of work per px kept",
        ),
        ("seams", _seams(report.seams)),
        ("time", f"{duration(total_s)}: {kept_px / 1e6:.1f} Mpx at {report.mpx_per_s:.2f} Mpx/s"),
        *(("note", warning) for warning in report.warnings),
        f"  {DISCLAIMER}",
    ]


def _model_rows(model: Mapping[str, Any], device: str, precision: str) -> list[Line]:
    return [
        ("model", f"{model['name']}, {model['channel']}, on {device}, {precision}"),
        ("", model["description"]),
    ]


def _seams(metrics: SeamMetrics | None) -> str:
    if metrics is None:
        return "none possible: the model processes single pixels"
    if metrics.z is None:
        return "too few borders between windows to measure"
    edges = f"z = {metrics.z:+.2f} over {metrics.borders} borders between windows (within ±3: no seams)"
    if metrics.shade_z is None or metrics.shade_step is None:
        return edges
    return f"{edges}; shade z = {metrics.shade_z:+.2f} (up to 3: even), steps of {metrics.shade_step:.1f} gray levels"


def _describe_estimate(outlook: TranslationEstimate, kept: int | None) -> list[Line]:
    """Describe an estimate; ``kept``: finished bands of an earlier run, if any."""
    return [
        f"Would write {outlook.width}×{outlook.height} px at {outlook.mpp[0]:.4g} µm/px, "
        f"about {file_size(outlook.output_bytes)}",
        ("tissue", f"{outlook.tissue_share:.1%} of the slide"),
        (
            "windows",
            f"{outlook.windows} in cores of {outlook.core_size[0]}×{outlook.core_size[1]} px, {outlook.blend}; "
            f"{outlook.redundancy:.2f} px of work per px kept, {outlook.kept_over_tissue:.2f} px kept per px of tissue",
        ),
        *_model_rows(outlook.model, outlook.device, outlook.precision),
        ("memory", f"about {outlook.memory_bytes / 1024**3:.1f} GiB"),
        ("time", f"about {duration(outlook.seconds)}"),
        *([] if kept is None else [("bands", f"{kept} are finished and kept")]),
        *(("note", warning) for warning in outlook.warnings),
    ]
