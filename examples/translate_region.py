"""Translate one field of a slide, with a progress line and an image of source and result.

python examples/translate_region.py SLIDE X Y WIDTH HEIGHT OUT.ome.tiff

With the model that comes with the program: a demonstration on pan-cytokeratin, not HER2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import wsi2ihc
from wsi2ihc.concurrency import Progress
from wsi2ihc.errors import Wsi2IhcError
from wsi2ihc.geometry import Region


def show(progress: Progress) -> None:
    print(f"\r{progress.stage} {progress.done / progress.total:.0%}   ", end="", file=sys.stderr)


def main() -> None:
    if len(sys.argv) != 7:
        sys.exit((__doc__ or "").strip())
    slide_path, *numbers, output = sys.argv[1:]
    options = wsi2ihc.TranslateOptions(
        region=Region(*map(int, numbers)), preview=Path(output.removesuffix(".ome.tiff") + ".png")
    )
    try:
        with wsi2ihc.open_slide(slide_path) as slide:
            report = wsi2ihc.translate(slide, wsi2ihc.load_model(), output, options, progress=show)
    except Wsi2IhcError as error:
        sys.exit(f"\nError: {error}")
    print(f"\n{report.output_size} at {report.output_mpp[0]:.3f} µm/px")


if __name__ == "__main__":
    main()
