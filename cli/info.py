"""``wsi2ihc info``: metadata of a slide."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from wsi2ihc.cli.console import Line, print_json, print_out
from wsi2ihc.cli.options import image_options, json_option, mpp_option, set_up_logging, verbosity_options
from wsi2ihc.slide import ImageEntry, SlideInfo, open_slide
from wsi2ihc.text import pluralize


@click.command("info")
@click.argument("slide")
@mpp_option
@image_options
@json_option
@verbosity_options
def command(
    slide: str, mpp: float | None, series: int | None, page: int | None, json: bool, verbose: int, quiet: bool
) -> None:
    """Show the metadata of SLIDE: sizes, levels, resolution, vendor, color profile, other images, and problems."""
    set_up_logging(verbose, quiet)
    with open_slide(slide, mpp=mpp, series=series, page=page) as opened:
        info = opened.info
    if json:
        print_json(_as_json(info))
    else:
        print_out(*_as_text(info))


def _as_json(info: SlideInfo) -> dict[str, Any]:
    plain = dataclasses.asdict(info)
    plain["icc_profile"] = None if info.icc_profile is None else {"bytes": len(info.icc_profile)}
    plain["size"] = {"width": info.size.width, "height": info.size.height}
    return plain


def _as_text(info: SlideInfo) -> list[Line]:
    mpp = "unknown" if info.mpp is None else f"{info.mpp[0]:.4g} × {info.mpp[1]:.4g} µm/px ({info.mpp_source})"
    magnification = "unknown" if info.magnification is None else f"{info.magnification:g}x"
    extent = ""
    if info.mpp is not None:
        width_mm, height_mm = info.size.width * info.mpp[0] / 1000, info.size.height * info.mpp[1] / 1000
        extent = f" ({width_mm:.2f} × {height_mm:.2f} mm)"
    return [
        info.name,
        ("size", f"{info.size} px{extent}"),
        ("resolution", mpp),
        ("magnification", magnification),
        ("vendor", f"{info.vendor} (read by {info.reader})"),
        ("bounds", str(info.bounds)),
        ("background", f"rgb{info.background}"),
        ("color profile", "none" if info.icc_profile is None else pluralize(len(info.icc_profile), "byte")),
        ("quickhash", info.quickhash),
        *(
            (f"level {number}", f"{level.size} px, downsample {level.downsample:.5g}")
            for number, level in enumerate(info.levels)
        ),
        *(map(_image_row, info.images) if len(info.images) > 1 else ()),
        *(("note", problem) for problem in info.problems),
    ]


def _image_row(image: ImageEntry) -> Line:
    """Describe an image of a file: number, metadata, and whether it is the slide."""
    facts = [f"{image.size} px"]
    if image.name:
        facts.append(repr(image.name))
    if image.mpp is not None:
        facts.append(f"{image.mpp[0]:.4g} µm/px")
    if image.page is not None:
        facts.append(f"page {image.page}" if image.planes == 1 else f"{image.planes} planes from page {image.page}")
    if image.levels > 1:
        facts.append(f"{image.levels} levels")
    if image.pixels not in ("", "8-bit RGB"):
        facts.append(f"pixels {image.pixels}")
    label = "image" if image.series is None else f"series {image.series}"
    return label, f"{', '.join(facts)}{' (the slide)' if image.chosen else ''}"
