"""Masks on grids, and without their margin."""

from __future__ import annotations

import numpy as np

from wsi2ihc.arrays import WHITE
from wsi2ihc.geometry import Region
from wsi2ihc.slide import working_grid
from wsi2ihc.slide.memory_slide import MemorySlide
from wsi2ihc.tissue import TissueMask, detect_tissue, place_mask, without_margin


def stained_square() -> MemorySlide:
    """2 mm of glass with 800×600 µm of tissue at (600, 700) µm."""
    pixels = np.full((1000, 1000, 3), 243, np.uint8)
    pixels[350:650, 300:700] = np.random.default_rng(0).integers(-20, 20, (300, 400, 1)) + np.array([180, 90, 150])
    return MemorySlide(pixels, "square", (2.0, 2.0))


def test_a_mask_lies_on_the_grid_where_it_lies_on_the_slide() -> None:
    slide = stained_square()
    mask = TissueMask(np.array([[0, 1], [0, 0]], np.bool_), (100, 200), (50, 40), WHITE)
    placed = place_mask(mask, working_grid(slide.info, 4.0))
    assert (placed.origin, placed.pixel_size) == ((50, 100), (25, 20))
    assert placed.area_in(Region(75, 100, 25, 20)) == 500
    assert placed.area_in(Region(0, 0, 75, 500)) == 0


def test_what_is_left_without_the_margin_is_the_tissue() -> None:
    slide = stained_square()
    found = detect_tissue(slide)
    trimmed = without_margin(found, (2.0, 2.0))
    px_um2 = (found.pixel_size[0] * 2) * (found.pixel_size[1] * 2)
    assert found.pixels.sum() * px_um2 > 1.2 * 800 * 600
    # detection works in blocks of 16 µm, of which one may be too many on each side
    assert 800 * 600 <= trimmed.pixels.sum() * px_um2 <= 832 * 632
    assert trimmed.origin == found.origin


def test_tissue_up_to_the_border_stays_there() -> None:
    mask = TissueMask(np.ones((50, 50), np.bool_), (0, 0), (8, 8), WHITE)
    assert without_margin(mask, (1.0, 1.0)).pixels.all()
