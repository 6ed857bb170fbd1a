"""The floor under every trained generator: a colour for a colour, with no look at the surroundings.

A quadratic polynomial from H&E colour to IHC colour, fitted by least squares to pixels of pairs. What it reaches needs
no network; what a network adds is what it read from shape and texture. The other floor is `counterstain` of
`wsi2ihc.generator.builtin`, which is not fitted at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBBatch, RGBImage
from wsi2ihc.errors import DatasetError

PIXELS_PER_IMAGE = 4096

_BLOCK_PX = 1 << 16
"""Pixels done at a time: 40 bytes of terms per px, beside 12 of colours."""

_TERMS = 10


@dataclass(frozen=True, slots=True, eq=False)
class ColourRegression:
    """A quadratic polynomial from colour to colour.

    coefficients:  (10, 3) float64, for the terms 1, r, g, b, r², g², b², rg, gb, br of values in [-1, 1], giving red,
                   green and blue in [-1, 1]
    """

    coefficients: npt.NDArray[np.float64]

    def __call__(self, images: RGBBatch) -> RGBBatch:
        """Translate images (N, H, W, 3) uint8, rounded and clipped; each pixel by itself."""
        answer = np.empty_like(images, order="C")
        coefficients = self.coefficients.astype(np.float32)
        pixels, done = images.reshape(-1, 3), answer.reshape(-1, 3)
        for start in range(0, len(pixels), _BLOCK_PX):
            values = _terms(pixels[start : start + _BLOCK_PX]) @ coefficients
            done[start : start + _BLOCK_PX] = np.clip(np.rint((values + 1) * 127.5), 0, 255)
        return answer


def fit_colour_regression(
    pairs: Iterable[tuple[RGBImage, RGBImage]], seed: int = 0, pixels_per_image: int = PIXELS_PER_IMAGE
) -> ColourRegression:
    """Fit the polynomial to pixels of pairs by least squares.

    The normal equations are summed up in float64, so the memory does not depend on the number of pairs. Where the
    colours do not determine the polynomial (an image of one colour), the smallest one that fits is taken.

    Parameters
    ----------
    pairs
        H&E and IHC images, (H, W, 3) uint8 each; read once
    seed
        of the choice of pixels
    pixels_per_image
        drawn from each pair with replacement; all pixels if a pair has no more than these

    Raises
    ------
    DatasetError
        If there is no pair, or the sizes of one differ.
    """
    random = np.random.default_rng(seed)
    squares, products, count = np.zeros((_TERMS, _TERMS)), np.zeros((_TERMS, 3)), 0
    for number, (he, ihc) in enumerate(pairs):
        if he.shape != ihc.shape:
            raise DatasetError(f"the images of pair {number} differ in size: {he.shape[:2]} and {ihc.shape[:2]}")
        inputs, outputs = he.reshape(-1, 3), ihc.reshape(-1, 3)
        if len(inputs) > pixels_per_image:
            chosen = random.integers(0, len(inputs), pixels_per_image)
            inputs, outputs = inputs[chosen], outputs[chosen]
        terms = _terms(inputs).astype(np.float64)
        squares += terms.T @ terms
        products += terms.T @ (outputs / 127.5 - 1)
        count += len(inputs)
    if count == 0:
        raise DatasetError("there is no pair to fit a colour regression to")
    return ColourRegression(np.asarray(np.linalg.lstsq(squares, products, rcond=None)[0], np.float64))


def _terms(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The polynomial's terms of pixels (N, 3): (N, 10)."""
    terms = np.empty((len(pixels), _TERMS), np.float32)
    terms[:, 0] = 1
    linear = terms[:, 1:4]
    linear[:] = pixels
    linear /= 127.5
    linear -= 1
    np.square(linear, out=terms[:, 4:7])
    np.multiply(linear, np.roll(linear, -1, axis=1), out=terms[:, 7:])
    return terms
