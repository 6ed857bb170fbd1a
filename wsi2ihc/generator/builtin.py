"""Two generators without learning and without torch: ``identity`` and ``counterstain``.

``counterstain`` keeps the haematoxylin of an H&E image and takes the eosin away, which is what an IHC-negative slide
looks like: blue nuclei on a pale ground. The floor that any trained generator has to beat.

Method: colour deconvolution (Ruifrok and Johnston, Anal Quant Cytol Histol 23:291, 2001). Optical densities are
-ln(p / white); the densities of a pixel are a sum of the stains' vectors, and a third vector at right angles to both
takes up the rest. The vectors are the H&E pair that Landini measured for the ImageJ plugin "Colour Deconvolution"
(Landini et al., Bioinformatics 37:1485, 2021). Its eosin absorbs blue light, as that of most slides does; with the
vectors of the 2001 paper stroma and red ink come out blue.

The amount of haematoxylin is a weighted sum of three logarithms. So what is left of the light in the green channel,
where haematoxylin absorbs most, is a product of three factors that each depend on one channel of the pixel, and red
and blue follow from green: seven look-ups and two products per pixel, and no logarithm.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGBBatch, RGBImage

WHITE_LEVEL = 245.0
"""Grey level taken for no stain at all: that of glass on most scanners, 235 to 250. Nothing is made brighter."""

HAEMATOXYLIN = (0.644211, 0.716556, 0.266844)
EOSIN = (0.092789, 0.954111, 0.283111)

_BLOCK_PX = 1 << 16
"""Pixels done at a time: what is held per px (20 bytes) then stays in the cache of a core."""


def identity(windows: RGBBatch) -> RGBBatch:
    """Give back the images as they are."""
    return windows


def counterstain(windows: RGBBatch) -> RGBBatch:
    """Take the eosin out of H&E images (N, H, W, 3) uint8; each pixel by itself.

    Memory bound: 20 bytes per px of a block of 65,536, beside the answer. OpenCV works without the GIL.
    """
    answer = np.empty_like(windows)
    if windows.size == 0:
        return answer
    width = windows.shape[2]
    rows = max(1, _BLOCK_PX // width)
    for image, done in zip(windows, answer, strict=True):
        for top in range(0, len(image), rows):
            done[top : top + rows] = _without_eosin(image[top : top + rows])
    return answer


def _without_eosin(image: RGBImage) -> RGBImage:
    factors, colours = _tables()
    red, green, blue = cv2.split(image)
    light = cv2.LUT(red, factors[0])
    light = cv2.multiply(light, cv2.LUT(green, factors[1]))
    light = cv2.multiply(light, cv2.LUT(blue, factors[2]), dtype=cv2.CV_8U)
    merged: RGBImage = np.asarray(cv2.merge([cv2.LUT(light, table) for table in colours]), np.uint8)
    return merged


@functools.cache
def _tables() -> tuple[tuple[npt.NDArray[np.float32], ...], tuple[npt.NDArray[np.uint8], ...]]:
    """Per channel: the factor of each level towards green light; and the colour that goes with each green level."""
    stains = np.array([HAEMATOXYLIN, EOSIN])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    unmixing = np.linalg.inv(np.vstack([stains, np.cross(*stains)]))
    haematoxylin = stains[0]
    green = haematoxylin[1]
    transmitted = np.maximum(np.arange(256), 1) / WHITE_LEVEL  # level 0 has no finite density; it is taken for 1
    factors = transmitted ** (green * unmixing[:, :1])
    factors[0] *= WHITE_LEVEL
    left = np.minimum(np.arange(256) / WHITE_LEVEL, 1.0)
    colours = np.rint(WHITE_LEVEL * left ** (haematoxylin[:, np.newaxis] / green))
    return tuple(factors.astype(np.float32)), tuple(colours.astype(np.uint8))
