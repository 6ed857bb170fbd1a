"""Masks on grids, and without their margin."""

from __future__ import annotations

import numpy as np

from wsi2ihc.geometry import WHITE, Region
from wsi2ihc.slide import working_grid
from wsi2ihc.slide.readers.image_reader import MemorySlide
from wsi2ihc.tissue import TissueMask, detect_tissue
from wsi2ihc.translation.windows import mask_on_grid, without_margin


def stained_square() -> MemorySlide:
    """2 mm of background with 800×600 µm of tissue at (600, 700) µm."""
    pixels = np.full((1000, 1000, 3), 243, np.uint8)
    pixels[350:650, 300:700] = np.random.default_rng(0).integers(-20, 20, (300, 400, 1)) + np.array([180, 90, 150])
    return MemorySlide(pixels, "square", (2.0, 2.0))


def test_a_mask_keeps_its_position_on_the_grid() -> None:
    slide = stained_square()
    mask = TissueMask(np.array([[0, 1], [0, 0]], np.bool_), (100, 200), (50, 40), WHITE)
    placed = mask_on_grid(mask, working_grid(slide.info, 4.0))
    assert (placed.origin, placed.pixel_size) == ((50, 100), (25, 20))
    assert placed.area_in(Region(75, 100, 25, 20)) == 500
    assert placed.area_in(Region(0, 0, 75, 500)) == 0


def test_removing_the_margin_leaves_the_tissue() -> None:
    slide = stained_square()
    found = detect_tissue(slide)
    trimmed = without_margin(found, (2.0, 2.0))
    px_um2 = (found.pixel_size[0] * 2) * (found.pixel_size[1] * 2)
    assert found.pixels.sum() * px_um2 > 1.2 * 800 * 600
    # detection works in blocks of 16 µm, of which one may be too many on each side
    assert 800 * 600 <= trimmed.pixels.sum() * px_um2 <= 832 * 632
    assert trimmed.origin == found.origin


def test_tissue_at_the_border_is_kept() -> None:
    mask = TissueMask(np.ones((50, 50), np.bool_), (0, 0), (8, 8), WHITE)
    assert without_margin(mask, (1.0, 1.0)).pixels.all()
