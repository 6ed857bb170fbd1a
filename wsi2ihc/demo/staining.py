"""From amounts of stain to the colours that a scanner sees."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, RGBImage
from .noise import FloatImage

GLASS: RGB = (243, 241, 240)
"""Colour of the empty slide: lamp and scanner make it slightly warm."""


def _unit(red: float, green: float, blue: float) -> npt.NDArray[np.float32]:
    vector = np.array([red, green, blue], np.float32)
    return vector / np.linalg.norm(vector)


# Directions in optical-density space. Haematoxylin and eosin lie between the values of Ruifrok and Johnston (2001)
# and those that Macenko et al. (2009) give for slides from a scanner.
HAEMATOXYLIN = _unit(0.61, 0.71, 0.35)
EOSIN = _unit(0.17, 0.86, 0.48)
ERYTHROCYTE = _unit(0.10, 0.78, 0.62)
GREEN_INK = _unit(0.83, 0.26, 0.49)


def transmitted(
    haematoxylin: FloatImage, eosin: FloatImage, erythrocyte: FloatImage, ink: FloatImage
) -> npt.NDArray[np.float32]:
    """Light that passes through four stains, as (height, width, 3) float32, 1 for empty glass.

    Beer–Lambert: the optical densities (each (height, width), along the stain's unit vector) add up, and the
    transmitted share is ``10 ** -density``.
    """
    amounts = np.stack([haematoxylin, eosin, erythrocyte, ink], axis=-1)
    vectors = np.stack([HAEMATOXYLIN, EOSIN, ERYTHROCYTE, GREEN_INK])
    exponent = cv2.transform(amounts, np.ascontiguousarray(vectors.T * np.float32(-np.log(10.0))))
    return np.asarray(cv2.exp(exponent), np.float32)


def scanned(light: npt.NDArray[np.float32], shading: FloatImage, grain: FloatImage) -> RGBImage:
    """What the camera makes of the light: (height, width, 3) uint8.

    ``shading`` (height, width) is the relative brightness of the lamp, ``grain`` (height, width) noise of unit
    variance, of which one grey level is added (less where it is dark).
    """
    image = light * (shading[..., None] * np.array(GLASS, np.float32))
    image += (grain * np.float32(1.1))[..., None] * (0.4 + 0.6 * light)
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)
