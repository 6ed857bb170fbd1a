"""Slides in small, and transforms between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi2ihc.demo.render import synthetic_tissue
from wsi2ihc.registration.overview import OVERVIEW_PX, moved, overview_of
from wsi2ihc.registration.transform import LocalField, Transform, to_moving
from wsi2ihc.slide.readers.image_reader import MemorySlide

shifts = st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000))


@given(fixed=shifts, moving=shifts)
def test_a_moved_transform_is_equivalent(fixed: tuple[float, float], moving: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    field = LocalField((-100.0, 50.0), 300.0, random.normal(0, 20, (6, 7, 2)))
    transform = Transform(np.array([[0.9, 0.2, 30.0], [-0.2, 0.95, -10.0]]), field)
    points = random.uniform(-500, 2500, (50, 2))
    there = to_moving(moved(transform, fixed, moving), points - np.array(fixed)) + np.array(moving)
    np.testing.assert_allclose(there, to_moving(transform, points), atol=1e-6)


def test_an_overview_shows_the_tissue_and_its_position() -> None:
    canvas = np.full((3000, 4000, 3), 243, np.uint8)
    canvas[1800:2400, 2600:3400] = synthetic_tissue(800, 600, 1)
    overview = overview_of(MemorySlide(canvas, "large", (2.0, 2.0)))
    pixels = overview.view.slide.info.size
    (x, y), (mpp, _) = overview.origin_um, overview.view.mpp
    assert max(pixels.width, pixels.height) == pytest.approx(OVERVIEW_PX, rel=0.3)
    assert x <= 5200 < 6800 <= x + pixels.width * mpp
    assert y <= 3600 < 4800 <= y + pixels.height * mpp
    assert pixels.width * mpp < 3000, "not the background around it"
    # the place of the tissue's corner, on the overview, by its own pixels
    rows, columns = np.nonzero(overview.tissue)
    assert (x + columns.min() * mpp, y + rows.min() * mpp) == pytest.approx((5200, 3600), abs=150)


def test_a_slide_full_of_tissue_is_shown_whole() -> None:
    tissue = synthetic_tissue(900, 700, 2)
    overview = overview_of(MemorySlide(tissue, "full", (1.0, 1.0)))
    assert overview.origin_um == (0.0, 0.0)
    assert overview.view.extent_um == (0, 0, 900, 700)
    np.testing.assert_array_equal(overview.view.slide.read_level(0, overview.view.slide.info.bounds), tissue)


def test_an_empty_slide_has_an_overview_without_tissue() -> None:
    overview = overview_of(MemorySlide(np.full((500, 500, 3), 240, np.uint8), "empty", (4.0, 4.0)))
    assert not overview.tissue.any()
