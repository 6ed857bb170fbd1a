"""``wsi2ihc warp``: warp a registered slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi2ihc.cli.console import Line, print_json, print_out
from wsi2ihc.cli.options import (
    POSITIVE,
    build_options,
    image_options,
    json_option,
    options_of,
    set_up_logging,
    verbosity_options,
)
from wsi2ihc.cli.progress import ProgressBar, duration, file_size
from wsi2ihc.registration.transform import Transform
from wsi2ihc.registration.transform_io import load_transform
from wsi2ihc.registration.warped_slide import (
    MPP_TOLERANCE,
    NOTICE,
    WarpOptions,
    WarpReport,
    warning_of_slide,
    warp_slide,
)
from wsi2ihc.slide import Slide, open_slide
from wsi2ihc.text import pluralize


@click.command("warp")
@click.argument("ihc")
@click.argument("transform", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--ihc-mpp", type=POSITIVE, show_default="the one that it was registered with",
              help="Resolution of the IHC slide in µm/px.")  # fmt: skip
@image_options
@click.option("--mpp", type=POSITIVE, show_default="that of the H&E slide", help="Resolution of the output in "
              "µm/px.")  # fmt: skip
@options_of(WarpOptions, skip=("mpp",))
@json_option
@verbosity_options
def command(
    ihc: str, transform: Path, output: Path, ihc_mpp: float | None, mpp: float | None, series: int | None,
    page: int | None, json: bool, verbose: int, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Warp the slide IHC onto its H&E slide and write it to OUTPUT (.ome.tiff).

    TRANSFORM is an output of `wsi2ihc register`: a transform.json or its folder. OUTPUT has the H&E slide's size and
    resolution, so that viewers overlay them px by px. OUTPUT.json is the report.
    """
    set_up_logging(verbose, quiet)
    options = build_options(WarpOptions, choices | {"mpp": mpp or 0.0})
    loaded = load_transform(transform)
    slide, notes = _open(ihc, loaded, ihc_mpp, any_slide=options.any_slide, series=series, page=page)
    with slide:
        report = warp_slide(slide, loaded, output, options, progress=ProgressBar(quiet), notes=notes)
    if json:
        print_json(report.to_json())
    elif not quiet:
        print_out(*summary(report))


def _open(
    path: str, transform: Transform, mpp: float | None, *, any_slide: bool, series: int | None, page: int | None
) -> tuple[Slide, tuple[str, ...]]:
    """Open the slide at the stated resolution, or that of its registration; also return notes.

    Positions in the transform are in µm of that resolution, whatever the slide states. Another slide has its own.
    """
    slide = open_slide(path, mpp=mpp, mpp_option="--ihc-mpp", series=series, page=page)
    own, registered = slide.info.mpp, None if transform.moving is None else transform.moving.mpp
    notes = tuple(filter(None, [warning_of_slide(transform.moving, slide.info)]))
    if mpp is not None or registered is None or own == registered or (any_slide and own is not None):
        return slide, notes
    slide.close()
    slide = open_slide(path, mpp=registered, mpp_option="--ihc-mpp", series=series, page=page)
    if own is not None and all(abs(a / b - 1) <= MPP_TOLERANCE for a, b in zip(own, registered, strict=True)):
        return slide, notes
    says = "does not say its resolution" if own is None else f"says {own[0]:.4g} µm/px"
    return slide, (
        *notes,
        f"The slide {says}; the {registered[0]:.4g} that it was registered with are used (--ihc-mpp states others).",
    )


def summary(report: WarpReport) -> list[Line]:
    """Summarize a warped slide."""
    source = report.source
    return [
        f"{report.output_name}: {report.output_size} px at {report.output_mpp[0]:.4g} µm/px, "
        f"{pluralize(len(report.output_levels), 'level')}, {file_size(report.output_bytes)}",
        ("source", f"{source['name']}, {source['width']}×{source['height']} px at {source['mpp'][0]:.4g} µm/px"),
        ("onto", report.fixed["name"]),
        ("time", f"{duration(report.seconds)}: {report.written_px / 1e6:.1f} Mpx at {report.mpx_per_s:.2f} Mpx/s"),
        *(("note", warning) for warning in report.warnings),
        f"  {NOTICE}",
    ]
