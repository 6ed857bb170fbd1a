"""Operations on binary masks."""

from __future__ import annotations

import cv2
import numpy as np

from ..arrays import BoolImage


def pooled(mask: BoolImage, step: int) -> BoolImage:
    """The mask reduced ``step`` times each way; a px of it stands for a block that holds any of the mask."""
    rows, columns = (-(-length // step) for length in mask.shape)
    result = np.zeros((rows, columns), np.bool_)
    for y in range(step):
        for x in range(step):
            part = mask[y::step, x::step]
            result[: part.shape[0], : part.shape[1]] |= part
    return result


def enlarged(mask: BoolImage, shape: tuple[int, ...]) -> BoolImage:
    """The mask stretched to (rows, columns) by repeating px."""
    return cv2.resize(mask.view(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST) > 0


def grown(mask: BoolImage, radius_px: float) -> BoolImage:
    """All px within ``radius_px`` (at least 1) of the mask; beyond the border of the picture lies nothing."""
    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 3)
    return distance <= max(radius_px, 1.0)


def shrunk(mask: BoolImage, radius_px: float) -> BoolImage:
    """All px of the mask farther than ``radius_px`` (at least 1) from its outline; the picture's border is none."""
    return ~grown(~mask, radius_px)


def without_holes(mask: BoolImage, largest_px: float) -> BoolImage:
    """The mask with holes of at most ``largest_px`` filled. What touches the picture's border is no hole."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    fill = (left > 0) & (top > 0) & (right < mask.shape[1]) & (bottom < mask.shape[0])
    fill &= stats[:, cv2.CC_STAT_AREA] <= largest_px
    fill[0] = True
    filled: BoolImage = fill[labels]
    return filled
