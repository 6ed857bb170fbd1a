"""The amount of DAB in each pixel of an IHC image: one definition for validation and evaluation.

Colour deconvolution (Ruifrok and Johnston, Anal Quant Cytol Histol 23:291, 2001). The optical densities -log10(p / 255)
of a pixel are a sum of the stains' vectors; the H-DAB vectors are those of the 2001 paper, and the third, at right
angles to both, takes up the rest. The amount of DAB is a weighted sum of the three densities, so each channel has a
table of 256 terms, and a pixel takes three look-ups and two sums.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.stains import DAB, HAEMATOXYLIN, Direction, unmixing

WHITE_LEVEL = 255.0
"""Grey level of no stain."""


def dab_density(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Optical density of DAB, clipped at 0.

    Parameters
    ----------
    images
        (N, H, W, 3) or (H, W, 3) uint8 RGB. Level 0, which has no finite density, is taken for 1.

    Returns
    -------
    (N, H, W) or (H, W) float32: density (base 10) along the vector of DAB at length 1. A pixel of pure DAB with
    densities ``a · DAB / |DAB|`` has ``a``.
    """
    red, green, blue = _terms()
    # (rows of all images as one tall image)
    tall = np.ascontiguousarray(images).reshape(-1, images.shape[-2], 3)
    if tall.size == 0:
        return np.zeros(images.shape[:-1], np.float32)
    channels = cv2.split(tall)
    density = cv2.LUT(channels[0], red)
    for channel, terms in ((channels[1], green), (channels[2], blue)):
        cv2.add(density, cv2.LUT(channel, terms), dst=density)
    cv2.max(density, 0.0, dst=density)  # type: ignore[call-overload]
    return np.asarray(density, np.float32).reshape(images.shape[:-1])


def block_means(density: npt.NDArray[np.float32], block_px: int) -> npt.NDArray[np.float64]:
    """Means over whole blocks from the upper left corner, (rows, columns) of them.

    Along an axis that is shorter than a block, the block is as long as the image.
    """
    height, width = density.shape
    rows, columns = min(block_px, height), min(block_px, width)
    whole = density[: height // rows * rows, : width // columns * columns]
    return np.asarray(
        whole.reshape(height // rows, rows, width // columns, columns).mean((1, 3), dtype=np.float64), np.float64
    )


def stain_terms(first: Direction, second: Direction) -> npt.NDArray[np.float64]:
    """What each level of each channel adds to the amounts of two stains, given by their directions: (2, 3, 256)."""
    densities = -np.log10(np.maximum(np.arange(256), 1) / WHITE_LEVEL)
    return unmixing(first, second).T[..., np.newaxis] * densities


@functools.cache
def _terms() -> tuple[npt.NDArray[np.float32], ...]:
    """What each level of each channel adds to the amount of DAB: three tables of 256."""
    return tuple(stain_terms(HAEMATOXYLIN, DAB)[1].astype(np.float32))
