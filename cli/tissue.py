"""``wsi2ihc tissue``: the mask that a translation would use."""

from __future__ import annotations

from pathlib import Path

import click

from wsi2ihc.atomic_files import check_output
from wsi2ihc.cli.console import print_json, print_out
from wsi2ihc.cli.options import image_options, json_option, mpp_option, set_up_logging, verbosity_options
from wsi2ihc.errors import NoTissueError
from wsi2ihc.slide import open_slide
from wsi2ihc.tissue import detect_tissue, save_mask
from wsi2ihc.translation.output_files import check_not_inputs


@click.command("tissue")
@click.argument("slide")
@click.argument("output", type=click.Path(path_type=Path))
@mpp_option
@image_options
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@json_option
@verbosity_options
def command(
    slide: str, output: Path, mpp: float | None, series: int | None, page: int | None, overwrite: bool, json: bool,
    verbose: int, quiet: bool,
) -> None:  # fmt: skip
    """Find the tissue of SLIDE and save it as OUTPUT: an image (.png) or outlines for QuPath (.geojson)."""
    set_up_logging(verbose, quiet)
    check_output(output, overwrite, suffixes=(".png", ".geojson"))
    with open_slide(slide, mpp=mpp, series=series, page=page) as opened:
        check_not_inputs([output], [slide])
        mask = detect_tissue(opened)
        name = opened.info.name
    if mask.is_empty:
        raise NoTissueError(f"{name}: no tissue was found, so no mask is saved")
    save_mask(mask, output)
    if json:
        print_json({"output": output.name, "tissue_share": mask.share, "background": mask.background,
                   "warnings": mask.warnings})  # fmt: skip
    elif not quiet:
        print_out(f"{output.name}: {mask.share:.1%} of {name} is tissue; its background is rgb{mask.background}",
            *(f"  note: {warning}" for warning in mask.warnings))  # fmt: skip
