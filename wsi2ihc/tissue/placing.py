"""Tissue masks made fit for a purpose: placed on a grid of pixels, or without their margin."""

from __future__ import annotations

import dataclasses

from ..plan import TissueGrid
from ..slide import WorkingGrid
from .detect import MARGIN_UM
from .mask import TissueMask
from .shapes import shrunk


def place_mask(mask: TissueMask, grid: WorkingGrid) -> TissueGrid:
    """The mask of a slide on one of its working grids. No pixel is copied."""
    origin = [(mask.origin[axis] - grid.level0_origin[axis]) / grid.downsample[axis] for axis in (0, 1)]
    size = [mask.pixel_size[axis] / grid.downsample[axis] for axis in (0, 1)]
    return TissueGrid(mask.pixels, (origin[0], origin[1]), (size[0], size[1]))


def without_margin(mask: TissueMask, mpp: tuple[float, float]) -> TissueMask:
    """A mask that `detect_tissue` found, less the glass that it adds all around.

    The margin is there for translation, which had rather take some glass for tissue than miss any. Where shares of
    tissue are counted it would count.

    Parameters
    ----------
    mask
        As it was found.
    mpp
        µm per level-0 px of its slide along (x, y).
    """
    px_um = max(mask.pixel_size[0] * mpp[0], mask.pixel_size[1] * mpp[1])
    return dataclasses.replace(mask, pixels=shrunk(mask.pixels, MARGIN_UM / px_um))
