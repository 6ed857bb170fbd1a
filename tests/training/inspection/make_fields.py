"""Fields of synthetic tissue in two stains, from which overlapping patches are extracted."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "pairs"))
from make_tissue import cells, he_of, ihc_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from make_pairs import save

from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.inspection.duplicates import reoriented

MPP = 0.5
PATCH_PX = 192


@functools.cache
def field(seed: int = 0, side_px: int = 448) -> tuple[RGBImage, RGBImage]:
    """Return H&E and IHC of the same cells, (side_px, side_px, 3) each; the seed selects the tissue."""
    nuclei = cells(side_px * MPP, seed)
    he, ihc = he_of(nuclei, side_px, MPP), ihc_of(nuclei, side_px, MPP, level="2+")
    he.flags.writeable = ihc.flags.writeable = False
    return he, ihc


def patch(x: int, y: int, seed: int = 0, side_px: int = PATCH_PX) -> tuple[RGBImage, RGBImage]:
    """Return H&E and IHC of the square at (x, y) of a field."""
    he, ihc = (image[y : y + side_px, x : x + side_px] for image in field(seed))
    return he.copy(), ihc.copy()


def reoriented_rgb(image: RGBImage, orientation: int) -> RGBImage:
    """Return an image (rows, columns, 3) in another orientation, see `orientation_matrix`."""
    return np.ascontiguousarray(
        np.stack([reoriented(image[..., channel], orientation) for channel in range(3)], axis=-1)
    )


def write(folder: Path, name: str, images: tuple[RGBImage, RGBImage], split: str = "", suffix: str = "png") -> None:
    """Write a pair to HE/ and IHC/, optionally in a split."""
    for kind, image in zip(("HE", "IHC"), images, strict=True):
        save(np.ascontiguousarray(image), folder / kind / split / f"{name}.{suffix}")
