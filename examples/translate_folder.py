"""Translate every slide of a folder and continue after failures.

python examples/translate_folder.py SLIDES RESULTS [MODEL]

Without MODEL it is the one that comes with the program: a demonstration on pan-cytokeratin, not HER2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import wsi2ihc
from wsi2ihc.errors import OutputExistsError, Wsi2IhcError


def main() -> int:
    if len(sys.argv) not in (3, 4) or not Path(sys.argv[1]).is_dir():
        sys.exit((__doc__ or "").strip())
    slides, results = Path(sys.argv[1]), Path(sys.argv[2])
    generator = wsi2ihc.load_model(sys.argv[3]) if len(sys.argv) > 3 else wsi2ihc.load_model()
    results.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in sorted(file for file in slides.iterdir() if file.is_file()):
        try:
            with wsi2ihc.open_slide(path) as slide:
                report = wsi2ihc.translate(slide, generator, results / f"{path.stem}.ome.tiff")
        except OutputExistsError:
            print(f"{path.name}: done before")
        except Wsi2IhcError as error:
            failed += 1
            print(f"{path.name}: {error}")
        else:
            print(f"{path.name}: {report.output_size}, {report.mpx_per_s:.1f} Mpx/s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
