"""``wsi2ihc translate``: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from wsi2ihc import bands
from wsi2ihc.bands.translating import translate
from wsi2ihc.cli.output import echo_json, say, tell
from wsi2ihc.cli.parameters import (
    AUTO_INTEGER,
    BYTES,
    REGION,
    image_options,
    json_option,
    model_option,
    mpp_option,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.progress import ProgressBar, duration
from wsi2ihc.generator.registry import load_generator
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.slide import open_slide
from wsi2ihc.text import pluralize
from wsi2ihc.translation.finishing import report_path
from wsi2ihc.translation.forecast import Forecast, forecast
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.pipeline import check_not_inputs, check_outputs, prepare
from wsi2ihc.translation.report import DISCLAIMER, TranslateReport
from wsi2ihc.translation.seams import SeamFigures


@click.command("translate")
@click.argument("slide")
@click.argument("output", type=click.Path(path_type=Path))
@model_option
@mpp_option
@image_options
@click.option("--region", type=REGION, help="Translate only this part of the slide (level-0 pixels).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0,1 or mps.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True)
@click.option("--batch-size", type=AUTO_INTEGER, default=0, show_default="auto",
              help="Windows per call of the network.")  # fmt: skip
@click.option("--workers", type=AUTO_INTEGER, default=0, show_default="auto", help="Threads that read and encode.")
@click.option("--max-memory", type=BYTES, default="4G", show_default=True, help="Bound for the process.")
@click.option("--tissue", default="auto", show_default=True, help="auto, none (translate everything) or a mask file "
              "(GeoJSON, PNG).")  # fmt: skip
@click.option("--statistics", type=click.Choice(["trained", "slide"]), default="trained", show_default=True,
              help="Normalisation statistics of the network: its own, or estimated on this slide (can move the "
              "strength of the stain).")  # fmt: skip
@click.option("--blend", type=click.Choice(["auto", "exact", "overlap"]), default="auto", show_default=True)
@click.option("--overlap", type=AUTO_INTEGER, default=0, show_default="auto",
              help="Pixels that neighbouring windows share when blended.")  # fmt: skip
@click.option("--core-size", type=AUTO_INTEGER, default=0, show_default="auto",
              help="Side of the cells that the slide is divided into.")  # fmt: skip
@click.option("--compression", type=click.Choice(["jpeg", "deflate"]), default="jpeg", show_default=True)
@click.option("--quality", type=click.IntRange(1, 100), default=85, show_default=True, help="Of JPEG.")
@click.option("--tile-size", type=int, default=512, show_default=True, help="Of the output, in pixels.")
@click.option("--openslide-compatible", is_flag=True, help="Let OpenSlide see all levels, against the letter of the "
              "OME-TIFF specification.")  # fmt: skip
@click.option("--icc", type=click.Choice(["keep", "srgb"]), default="keep", show_default=True,
              help="Keep the slide's colours and profile, or convert to sRGB before translating.")  # fmt: skip
@click.option("--on-read-error", type=click.Choice(["fail", "glass"]), default="fail", show_default=True,
              help="What to do where the slide cannot be read.")  # fmt: skip
@click.option("--preview", type=click.Path(path_type=Path), help="Also write a PNG with source and result.")
@click.option("--resume", is_flag=True, help="Keep what is done in a hidden folder beside the output, and go on with "
              "what is there; several processes may do so at once.")  # fmt: skip
@click.option("--band-height", type=AUTO_INTEGER, default=0, show_default="auto",
              help="Rows of pixels that are done at a time with --resume: what a killed run loses.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn at random.")
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
        raise click.UsageError(f"OUTPUT {output} is a folder: name a file")
    options = translate_options(**choices)
    bar = ProgressBar(quiet)
    try:
        with open_slide(slide, mpp=mpp, series=series, page=page) as opened:
            if options.resume:  # an output that is there may be what is asked for
                check_not_inputs([output, report_path(output)], [model])
            else:
                check_outputs(opened, output, options, inputs=[model])
            generator = load_generator(model)
            if dry_run:
                kept = bands.check_store(opened, generator, output, options) if options.resume else None
                outlook = forecast(prepare(opened, generator, options, progress=bar), output)
                bar.close()
                echo_json(outlook.to_json()) if json else say(*_describe_forecast(outlook, kept))
                return
            report = translate(opened, generator, output, options, progress=bar)
    except BaseException as error:
        bar.close()
        for note in () if quiet else getattr(error, "__notes__", ()):  # what is kept
            tell(note)
        raise
    finally:
        bar.close()
    if json:
        echo_json(report.to_json())
    elif not quiet:
        say(*summary(report))


def translate_options(
    *,
    max_memory: int,
    overlap: int,
    core_size: int,
    band_height: int = 0,
    compression: Any,
    quality: int,
    tile_size: int,
    openslide_compatible: bool,
    **others: Any,
) -> TranslateOptions:
    """The options of a translation from those of the command line."""
    pyramid = PyramidOptions(
        tile_px=tile_size, compression=compression, quality=quality, openslide_compatible=openslide_compatible
    )
    return TranslateOptions(
        pyramid=pyramid,
        max_memory_bytes=max_memory,
        overlap_px=overlap,
        core_px=core_size,
        band_px=band_height,
        **others,
    )


def summary(report: TranslateReport) -> list[str]:
    """What a user wants to know at the end, one fact a line."""
    size, seconds = report.output_size, report.seconds
    kept_px, window_px = report.plan["kept_px"], report.plan["window_px"]
    total_s = sum(seconds[stage] for stage in ("tissue", "model", "run"))
    return [
        f"{report.output_name}: {size} px at {report.output_mpp[0]:.4g} µm/px, "
        f"{pluralize(len(report.output_levels), 'level')}, {report.output_bytes / 1e6:.1f} MB",
        f"  source   {report.source['name']}, {report.source['width']}×{report.source['height']} px at "
        f"{report.source['mpp'][0]:.4g} µm/px",
        *_model_lines(report.model, report.device, report.precision),
        f"  tissue   {report.tissue_share:.1%} of {_shown(report)}; "
        f"{pluralize(report.plan['windows'], 'window')}, {report.blend}, "
        f"{window_px / kept_px:.2f} px of work per px kept",
        f"  seams    {_seams(report.seams)}",
        f"  time     {duration(total_s)}: {kept_px / 1e6:.1f} Mpx at {report.mpx_per_s:.2f} Mpx/s",
        *(f"  note     {warning}" for warning in report.warnings),
        f"  {DISCLAIMER}",
    ]


def _model_lines(model: Mapping[str, Any], device: str, precision: str) -> list[str]:
    return [
        f"  model    {model['name']}, {model['channel']}, on {device}, {precision}",
        f"           {model['description']}",
    ]


def _shown(report: TranslateReport) -> str:
    return "the slide" if report.options["region"] is None else "the region"


def _seams(figures: SeamFigures | None) -> str:
    if figures is None:
        return "none possible: the model looks at one pixel at a time"
    if figures.z is None:
        return "too few borders between windows to tell"
    edges = f"z = {figures.z:+.2f} over {figures.borders} borders between windows (within ±3: no seams)"
    if figures.shade_z is None or figures.shade_step is None:
        return edges
    return f"{edges}; shade z = {figures.shade_z:+.2f} (up to 3: even), steps of {figures.shade_step:.1f} gray levels"


def _describe_forecast(outlook: Forecast, kept: int | None) -> list[str]:
    """What would be done; ``kept``: bands of an earlier run that would not be done again, None if there is none."""
    return [
        f"Would write {outlook.width}×{outlook.height} px at {outlook.mpp[0]:.4g} µm/px, "
        f"about {outlook.output_bytes / 1e6:.0f} MB",
        f"  tissue   {outlook.tissue_share:.1%} of the slide",
        f"  windows  {outlook.windows} in cells of {outlook.cell[0]}×{outlook.cell[1]} px, {outlook.blend}; "
        f"{outlook.redundancy:.2f} px of work per px kept, {outlook.kept_over_tissue:.2f} px kept per px of tissue",
        *_model_lines(outlook.model, outlook.device, outlook.precision),
        f"  memory   about {outlook.memory_bytes / 1024**3:.1f} GiB",
        f"  time     about {duration(outlook.seconds)}",
        *([] if kept is None else [f"  bands    {kept} are done, and are not done again"]),
        *(f"  note     {warning}" for warning in outlook.warnings),
    ]
