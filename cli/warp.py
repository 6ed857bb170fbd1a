"""``wsi2ihc warp``: a registered slide, pixel for pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi2ihc.cli.output import echo_json, say
from wsi2ihc.cli.parameters import (
    AUTO_INTEGER,
    PositiveFloat,
    image_options,
    json_option,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.progress import ProgressBar, duration
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.registration.files import load_transform
from wsi2ihc.registration.transform import Transform
from wsi2ihc.registration.warp_plan import MPP_TOLERANCE, doubt_of_slide
from wsi2ihc.registration.warp_provenance import NOTICE
from wsi2ihc.registration.warped_slide import WarpOptions, WarpReport, warp_slide
from wsi2ihc.slide import Slide, open_slide
from wsi2ihc.text import pluralize


@click.command("warp")
@click.argument("ihc")
@click.argument("transform", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--ihc-mpp", type=PositiveFloat(), show_default="the one that it was registered with",
              help="Resolution of the IHC slide in µm per pixel.")  # fmt: skip
@image_options
@click.option("--mpp", type=PositiveFloat(), show_default="that of the H&E slide", help="Resolution of the output in "
              "µm per pixel.")  # fmt: skip
@click.option("--tissue", type=click.Choice(["auto", "none"]), default="auto", show_default=True,
              help="auto leaves out what is plain glass; none writes all of the slide.")  # fmt: skip
@click.option("--workers", type=AUTO_INTEGER, default=0, show_default="auto", help="Threads that read and encode.")
@click.option("--compression", type=click.Choice(["jpeg", "deflate"]), default="jpeg", show_default=True)
@click.option("--quality", type=click.IntRange(1, 100), default=85, show_default=True, help="Of JPEG.")
@click.option("--subsampling", type=click.Choice(["420", "422", "444"]), default="422", show_default=True,
              help="Of JPEG's colour.")  # fmt: skip
@click.option("--tile-size", type=int, default=512, show_default=True, help="Of the output, in pixels.")
@click.option("--openslide-compatible", is_flag=True, help="Let OpenSlide see all levels, against the letter of the "
              "OME-TIFF specification.")  # fmt: skip
@click.option("--any-slide", is_flag=True, help="Take a slide that was not registered: another export of the same "
              "section, say.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@json_option
@verbosity_options
def command(
    ihc: str, transform: Path, output: Path, ihc_mpp: float | None, mpp: float | None, series: int | None,
    page: int | None, json: bool, verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Write the slide IHC as it lies on its H&E slide, to OUTPUT (.ome.tiff).

    TRANSFORM is what `wsi2ihc register` has saved: a transform.json, or its folder. OUTPUT has the H&E slide's size and
    resolution, so that both open on each other pixel for pixel. OUTPUT.json says how it was made.
    """
    set_up_logging(verbose, quiet)
    options = _options(mpp=mpp or 0.0, **choices)
    loaded = load_transform(transform)
    bar = ProgressBar(quiet)
    try:
        slide, notes = _open(ihc, loaded, ihc_mpp, any_slide=options.any_slide, series=series, page=page)
        with slide:
            report = warp_slide(slide, loaded, output, options, progress=bar, notes=notes)
    finally:
        bar.close()
    if json:
        echo_json(report.to_json())
    elif not quiet:
        say(*summary(report))


def _open(
    path: str, transform: Transform, mpp: float | None, *, any_slide: bool, **image: int | None
) -> tuple[Slide, tuple[str, ...]]:
    """The slide, at the stated resolution, else at the one that it was registered with; and what is to be said of it.

    Positions in the transform are µm of that resolution, whatever the slide says of itself. Another slide has its own.
    """
    slide = open_slide(path, mpp=mpp, mpp_option="--ihc-mpp", **image)
    own, registered = slide.info.mpp, None if transform.moving is None else transform.moving.mpp
    notes = tuple(filter(None, [doubt_of_slide(transform.moving, slide.info)]))
    if mpp is not None or registered is None or own == registered or (any_slide and own is not None):
        return slide, notes
    slide.close()
    slide = open_slide(path, mpp=registered, mpp_option="--ihc-mpp", **image)
    if own is not None and all(abs(a / b - 1) <= MPP_TOLERANCE for a, b in zip(own, registered, strict=True)):
        return slide, notes
    says = "does not say its resolution" if own is None else f"says {own[0]:.4g} µm/px"
    return slide, (
        *notes,
        f"The slide {says}; the {registered[0]:.4g} that it was registered with are used (--ihc-mpp states others).",
    )


def _options(
    *, compression: Any, quality: int, subsampling: Any, tile_size: int, openslide_compatible: bool, **others: Any
) -> WarpOptions:
    pyramid = PyramidOptions(
        tile_px=tile_size, compression=compression, quality=quality, subsampling=subsampling,
        openslide_compatible=openslide_compatible,
    )  # fmt: skip
    return WarpOptions(pyramid=pyramid, **others)


def summary(report: WarpReport) -> list[str]:
    """What a user wants to know at the end, one fact a line."""
    source = report.source
    return [
        f"{report.output_name}: {report.output_size} px at {report.output_mpp[0]:.4g} µm/px, "
        f"{pluralize(len(report.output_levels), 'level')}, {report.output_bytes / 1e6:.1f} MB",
        f"  source   {source['name']}, {source['width']}×{source['height']} px at {source['mpp'][0]:.4g} µm/px",
        f"  onto     {report.fixed['name']}",
        f"  time     {duration(report.seconds)}: {report.written_px / 1e6:.1f} Mpx at {report.mpx_per_s:.2f} Mpx/s",
        *(f"  note     {warning}" for warning in report.warnings),
        f"  {NOTICE}",
    ]
