"""The `TissueMask`, and operations on binary masks.

OpenCV grows masks of 3 million px and fills their holes in 18 ms, scikit-image in 237 to 864.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ..geometry import RGB, BoolImage


class Annotation(NamedTuple):
    """Areas of a mask file that have the same class and name ("" for none); ignored ones are not tissue."""

    classification: str
    name: str
    areas: int
    is_ignored: bool


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Tissue mask and background color of a slide.

    Attributes
    ----------
    pixels
        (rows, columns) bool, read-only; at least 1×1.
    origin
        Top left corner of the mask in level-0 px, (x, y); may be fractional.
    pixel_size
        Level-0 px per mask px, (x, y).
    warnings
        Human-readable warnings about the slide or the mask, one sentence each.
    bounds_origin
        Top left corner of the scanned area in level-0 px, the origin of GeoJSON coordinates.
    annotations
        Annotations of the file that the mask was read from.
    """

    pixels: BoolImage
    origin: tuple[float, float]
    pixel_size: tuple[float, float]
    background: RGB
    warnings: tuple[str, ...] = ()
    bounds_origin: tuple[int, int] = (0, 0)
    annotations: tuple[Annotation, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.size == 0 or self.pixels.dtype != np.bool_:
            raise ValueError(f"a mask is a (rows, columns) bool image, not {self.pixels.shape} {self.pixels.dtype}")
        if not min(self.pixel_size) > 0:
            raise ValueError(f"mask px must have a positive size, not {self.pixel_size}")
        frozen = self.pixels.view()
        frozen.flags.writeable = False
        object.__setattr__(self, "pixels", frozen)

    @property
    def share(self) -> float:
        """Fraction of the mask that is tissue."""
        return float(self.pixels.mean())

    @property
    def is_empty(self) -> bool:
        """Whether the mask has no tissue."""
        return not self.pixels.any()


def pooled(mask: BoolImage, step: int) -> BoolImage:
    """Reduce a mask ``step`` times along each axis; a px is True if any px of its block is."""
    rows, columns = (-(-length // step) for length in mask.shape)
    result = np.zeros((rows, columns), np.bool_)
    for y in range(step):
        for x in range(step):
            part = mask[y::step, x::step]
            result[: part.shape[0], : part.shape[1]] |= part
    return result


def enlarged(mask: BoolImage, shape: tuple[int, ...]) -> BoolImage:
    """Resize a mask to (rows, columns) by nearest neighbors."""
    return cv2.resize(mask.view(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST) > 0


def grown(mask: BoolImage, radius_px: float) -> BoolImage:
    """Dilate a mask by a disk of ``radius_px`` (at least 1)."""
    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 3)
    return distance <= max(radius_px, 1.0)


def shrunk(mask: BoolImage, radius_px: float) -> BoolImage:
    """Erode a mask by a disk of ``radius_px`` (at least 1), but not from the border of the image."""
    return ~grown(~mask, radius_px)


def without_holes(mask: BoolImage, largest_px: float) -> BoolImage:
    """Fill holes of at most ``largest_px``. Areas that touch the border of the image are not holes."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    fill = (left > 0) & (top > 0) & (right < mask.shape[1]) & (bottom < mask.shape[0])
    fill &= stats[:, cv2.CC_STAT_AREA] <= largest_px
    fill[0] = True
    filled: BoolImage = fill[labels]
    return filled
