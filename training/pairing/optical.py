"""Amounts of stain in patches of both slides, as far as patches have to be compared.

Colour deconvolution as in `wsi2ihc.training.stain`. Amounts are not clipped at 0: another colour of the glass then adds
a constant, which no correlation sees.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.stains import DAB, EOSIN, HAEMATOXYLIN, Direction
from wsi2ihc.training.stain import WHITE_LEVEL, stain_terms

FloatPlane = npt.NDArray[np.float32]
"""(rows, columns) float32."""


def reduced(image: RGBImage, mpp: float, to_um: float) -> tuple[RGBImage, float]:
    """An image at about ``to_um`` µm per px, by means over whole px, and its µm per px; never enlarged."""
    factor = max(1, min(round(to_um / mpp), *image.shape[:2]))
    if factor == 1:
        return image, mpp
    size = (image.shape[1] // factor, image.shape[0] // factor)
    whole = image[: size[1] * factor, : size[0] * factor]
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8), mpp * factor


def haematoxylin_of_he(image: RGBImage) -> FloatPlane:
    """Optical density of haematoxylin in an H&E image, but for a constant; (rows, columns, 3) to (rows, columns)."""
    return _amount(image, _terms(HAEMATOXYLIN, EOSIN, 0))


def haematoxylin_of_ihc(image: RGBImage) -> FloatPlane:
    """Optical density of haematoxylin beside DAB, but for a constant."""
    return _amount(image, _terms(HAEMATOXYLIN, DAB, 0))


def mean_density(image: RGBImage) -> FloatPlane:
    """Optical density, the mean of the three channels, relative to white."""
    return _amount(image, _mean_terms())


def _amount(image: RGBImage, tables: tuple[FloatPlane, ...]) -> FloatPlane:
    density: FloatPlane | None = None
    for channel, table in zip(cv2.split(image), tables, strict=True):
        part = np.asarray(cv2.LUT(channel, table), np.float32)
        density = part if density is None else np.asarray(cv2.add(density, part, dst=density), np.float32)
    assert density is not None
    return density


@functools.cache
def _terms(first: Direction, second: Direction, which: int) -> tuple[FloatPlane, ...]:
    return tuple(stain_terms(first, second)[which].astype(np.float32))


@functools.cache
def _mean_terms() -> tuple[FloatPlane, ...]:
    table = (-np.log10(np.maximum(np.arange(256), 1) / WHITE_LEVEL) / 3).astype(np.float32)
    return table, table, table
