"""Texture from the co-occurrence of grey levels, as scikit-image's ``graycomatrix`` and ``graycoprops`` compute it.

Haralick, Shanmugam and Dinstein, IEEE Trans Syst Man Cybern SMC-3:610, 1973. scikit-image is no dependency of the
program; equality with it is tested. OpenCV counts as fast, without holding Python's lock.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

LEVELS = 64
"""Grey levels that luminance is reduced to."""

OFFSETS = ((0, 1), (1, 1), (1, 0), (1, -1))
"""Neighbours at distance 1 and 0°, 45°, 90° and 135°: along rows, along columns."""

_CONSTANT = 1e-15
"""Standard deviation of levels below which correlation is not defined, and 1 as in scikit-image."""

Matrix = npt.NDArray[np.float64]


class Texture(NamedTuple):
    """Means over the four directions, of symmetric, normalised matrices; levels count from 0 to 63.

    contrast:     mean squared difference of neighbours
    homogeneity:  mean of 1 / (1 + squared difference)
    energy:       root of the sum of squared shares; 1 for one colour
    correlation:  of the levels of neighbours
    """

    contrast: float
    homogeneity: float
    energy: float
    correlation: float


def texture(luminance: npt.NDArray[np.uint8]) -> Texture:
    """Of an image (rows, columns) uint8, at least 2 px in both."""
    levels = np.asarray(luminance // (256 // LEVELS), np.uint8)
    by_direction = [_figures(_co_occurrence(levels, *offset)) for offset in OFFSETS]
    return Texture(*(float(np.mean(values)) for values in zip(*by_direction, strict=True)))


def _co_occurrence(levels: npt.NDArray[np.uint8], down: int, across: int) -> Matrix:
    """Shares of pairs of levels at this offset, in either order."""
    rows, columns = levels.shape
    one = levels[: rows - down, max(0, -across) : columns - max(0, across)]
    other = levels[down:, max(0, across) : columns - max(0, -across)]
    counts = cv2.calcHist(
        [np.ascontiguousarray(one), np.ascontiguousarray(other)], [0, 1], None, [LEVELS] * 2, [0, LEVELS, 0, LEVELS]
    ).astype(np.float64)
    return np.asarray((counts + counts.T) / (2 * counts.sum()), np.float64)


def _figures(shares: Matrix) -> Texture:
    squared, level = _squared_differences(), np.arange(LEVELS)
    marginal = shares.sum(axis=1)
    mean = float(marginal @ level)
    variance = float(marginal @ (level - mean) ** 2)
    covariance = float((level - mean) @ shares @ (level - mean))
    return Texture(
        contrast=float((shares * squared).sum()),
        homogeneity=float((shares / (1 + squared)).sum()),
        energy=float(np.sqrt(np.square(shares).sum())),
        correlation=covariance / variance if variance > _CONSTANT**2 else 1.0,
    )


@functools.cache
def _squared_differences() -> Matrix:
    level = np.arange(LEVELS, dtype=np.float64)
    return np.asarray((level[:, np.newaxis] - level) ** 2, np.float64)
