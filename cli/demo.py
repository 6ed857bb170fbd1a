"""``wsi2ihc demo``: translate a synthetic slide."""

from __future__ import annotations

from pathlib import Path

import click

from wsi2ihc.cli.console import print_out
from wsi2ihc.cli.options import set_up_logging, verbosity_options
from wsi2ihc.cli.progress import ProgressBar
from wsi2ihc.cli.translate import summary
from wsi2ihc.errors import OutputError

HOW_TO_VIEW = """
To view it
  {preview}: the slide and its virtual stain side by side, for any image viewer
  {virtual}: open it in QuPath beside {slide}, or import both into OMERO
What to expect
  glands and surface brown, stroma pale, nuclei blue; walls of fat cells and some vessels are brown and should not be
Free real H&E slides
  OpenSlide's test data (openslide.cs.cmu.edu), The Cancer Genome Atlas (portal.gdc.cancer.gov), CAMELYON
  (camelyon17.grand-challenge.org); then: wsi2ihc translate slide.svs out.ome.tiff
  (the default model is a demonstration on colon, not HER2; --model names your own)
"""

HOW_TO_REGISTER = """
{folder}/he.tiff and {folder}/ihc.tiff show the same synthetic section, the second one rotated and warped; he.csv and
ihc.csv contain corresponding landmarks. he2.tiff and ihc2.tiff are of a second patient; manifest.csv names all. Now:
  wsi2ihc register {folder}/he.tiff {folder}/ihc.tiff registered --landmarks {folder}/he.csv {folder}/ihc.csv
  wsi2ihc warp {folder}/ihc.tiff registered ihc-on-he.ome.tiff
  wsi2ihc pairs {folder}/manifest.csv PATCHES --patch-size 256
  wsi2ihc train PATCHES --dry-run
"""


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pair", is_flag=True, help="Make H&E and IHC slides instead, for `register` and `pairs`.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier demo.")
@verbosity_options
def command(folder: Path, pair: bool, overwrite: bool, verbose: int, quiet: bool) -> None:
    """Make a synthetic H&E slide in FOLDER, translate it, and explain the result."""
    set_up_logging(verbose, quiet)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be created ({error.strerror})") from error
    if pair:
        _make_pair(folder, overwrite, quiet)
    else:
        _make_and_translate(folder, overwrite, quiet)


def _make_and_translate(folder: Path, overwrite: bool, quiet: bool) -> None:
    from wsi2ihc.atomic_files import check_output
    from wsi2ihc.demo import make_demo_slide
    from wsi2ihc.models.registry import DEFAULT_MODEL, load_model
    from wsi2ihc.slide import open_slide
    from wsi2ihc.translation.options import TranslateOptions
    from wsi2ihc.translation.translate import translate

    slide, virtual, preview = (folder / name for name in ("he.tiff", "virtual.ome.tiff", "side-by-side.png"))
    for path in (slide, virtual, preview):
        check_output(path, overwrite, suffixes=(path.suffix,))
    bar = ProgressBar(quiet)
    make_demo_slide(slide, on_progress=bar)
    with open_slide(slide) as opened:
        options = TranslateOptions(overwrite=overwrite, preview=preview)
        report = translate(opened, load_model(DEFAULT_MODEL), virtual, options, progress=bar)
    if not quiet:
        print_out(*summary(report))
        print_out(*_filled(HOW_TO_VIEW, preview=preview, virtual=virtual, slide=slide))


def _make_pair(folder: Path, overwrite: bool, quiet: bool) -> None:
    from wsi2ihc.atomic_files import check_output
    from wsi2ihc.demo.ihc_pair import STUDY_NAMES, make_demo_study

    for path in (folder / name for name in STUDY_NAMES):
        check_output(path, overwrite, suffixes=(path.suffix,))
    make_demo_study(folder, on_progress=ProgressBar(quiet))
    if not quiet:
        print_out(*_filled(HOW_TO_REGISTER.strip(), folder=folder))


def _filled(text: str, **paths: Path) -> list[str]:
    """Insert paths into the lines of a text; paths may contain line breaks."""
    return [line.format(**paths) for line in text.split("\n")]
