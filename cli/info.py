"""``wsi2ihc info``: metadata of a slide."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from wsi2ihc.cli.console import echo_json, say
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
        echo_json(_as_json(info))
    else:
        say(*_as_text(info))


def _as_json(info: SlideInfo) -> dict[str, Any]:
    plain = dataclasses.asdict(info)
    plain["icc_profile"] = None if info.icc_profile is None else {"bytes": len(info.icc_profile)}
    plain["size"] = {"width": info.size.width, "height": info.size.height}
    return plain


def _as_text(info: SlideInfo) -> list[str]:
    mpp = "unknown" if info.mpp is None else f"{info.mpp[0]:.4g} × {info.mpp[1]:.4g} µm/px ({info.mpp_source})"
    magnification = "unknown" if info.magnification is None else f"{info.magnification:g}x"
    extent = ""
    if info.mpp is not None:
        width_mm, height_mm = info.size.width * info.mpp[0] / 1000, info.size.height * info.mpp[1] / 1000
        extent = f" ({width_mm:.2f} × {height_mm:.2f} mm)"
    return [
        info.name,
        f"  size           {info.size} px{extent}",
        f"  resolution     {mpp}",
        f"  magnification  {magnification}",
        f"  vendor         {info.vendor} (read by {info.reader})",
        f"  bounds         {info.bounds}",
        f"  background     rgb{info.background}",
        f"  color profile {'none' if info.icc_profile is None else pluralize(len(info.icc_profile), 'byte')}",
        f"  quickhash      {info.quickhash}",
        "  levels",
        *(
            f"    {number}: {level.size} px, downsample {level.downsample:.5g}"
            for number, level in enumerate(info.levels)
        ),
        *(["  images", *map(_image_line, info.images)] if len(info.images) > 1 else []),
        *(f"  note: {problem}" for problem in info.problems),
    ]


def _image_line(image: ImageEntry) -> str:
    """Describe an image of a file: number, metadata, and whether it is the slide."""
    number = "   " if image.series is None else f"   series {image.series}:"
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
    return f" {number} {', '.join(facts)}{' (the slide)' if image.chosen else ''}"
