"""What two stains of one tissue have in common: the density of everything, and that of haematoxylin.

Both are measured against the slide's own glass, so that a grey or tinted scan changes nothing. Their local patterns
agree between an H&E and an IHC section although the colours do not: lumens and gaps are empty in both, nuclei dark.
"""

from __future__ import annotations

import functools
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, RGBImage
from ..stains import DAB, EOSIN, HAEMATOXYLIN, Direction, unmixing

Stain: TypeAlias = Literal["he", "ihc"]

FloatImages: TypeAlias = npt.NDArray[np.float32]
"""(rows, columns, 2) float32: mean optical density (base 10) of the three channels; density of haematoxylin."""

TISSUE_DENSITY = 0.08
"""Mean optical density from which a px counts as tissue here. Dirt and JPEG noise on glass stay below 0.05."""

_SECOND: dict[Stain, Direction] = {"he": EOSIN, "ihc": DAB}
"""What lies beside the haematoxylin."""


def structure(pixels: RGBImage, glass: RGB, stain: Stain) -> FloatImages:
    """The two densities of an image, (rows, columns, 2); neither is below 0.

    Parameters
    ----------
    pixels
        (rows, columns, 3) uint8 RGB.
    glass
        The slide's own glass; its density is 0.
    stain
        Which second stain lies beside the haematoxylin.
    """
    mean, haematoxylin = (
        functools.reduce(cv2.add, [cv2.LUT(channel, table) for channel, table in zip(channels, tables, strict=True)])
        for channels, tables in (((cv2.split(pixels)), tables) for tables in _tables(glass, stain))
    )
    return np.asarray(np.maximum(np.dstack([mean, haematoxylin]), 0), np.float32)


@functools.lru_cache(64)
def _tables(glass: RGB, stain: Stain) -> tuple[tuple[npt.NDArray[np.float32], ...], ...]:
    """What each level of each channel adds to either density: two by three tables of 256."""
    levels = np.maximum(np.arange(256), 1)
    densities = [np.maximum(-np.log10(levels / max(value, 1)), 0) for value in glass]
    weights = unmixing(HAEMATOXYLIN, _SECOND[stain])[:, 0]
    return (
        tuple(np.asarray(density / 3, np.float32) for density in densities),
        tuple(np.asarray(density * share, np.float32) for density, share in zip(densities, weights, strict=True)),
    )
