"""Masks of open slides."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tissue_synthetic import (
    BACKGROUND,
    DAB,
    HE,
    SHAPE,
    ArraySlide,
    bare_background,
    disc,
    he_blob,
    px_under,
    stained,
    to_image,
)

from wsi2ihc.errors import MissingResolutionError
from wsi2ihc.geometry import Region, RGBImage
from wsi2ihc.slide import Slide
from wsi2ihc.tissue import detect_tissue, measure_background, whole_slide

SLIDE_MPP = 2.0


def level0(overview: RGBImage) -> RGBImage:
    """An overview at 8 µm/px as the level 0 of a slide at 2 µm/px."""
    size = (overview.shape[1] * 4, overview.shape[0] * 4)
    return np.asarray(cv2.resize(overview, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def he_slide(bounds: Region | None = None, mpp: float | None = SLIDE_MPP) -> Slide:
    return ArraySlide(level0(he_blob()[0]), mpp and (mpp, mpp), bounds)


def test_tissue_is_found_where_it_lies_on_the_slide() -> None:
    mask = detect_tissue(he_slide())
    assert mask.bounds_origin == (0, 0)
    assert mask.pixels.shape[1] * mask.pixel_size[0] == pytest.approx(2000, abs=mask.pixel_size[0])
    assert px_under(mask, 990, 790, 1010, 810).any()  # the middle of the piece
    assert px_under(mask, 1000 - 399, 799, 1000 - 398, 800).any()  # its left end
    assert not px_under(mask, 0, 0, 400, 400).any()
    assert np.abs(np.subtract(mask.background, BACKGROUND)).max() <= 1
    assert mask.warnings == ()


def test_only_the_scanned_area_is_searched_and_coordinates_stay_those_of_the_slide() -> None:
    bounds = Region(700, 300, 900, 1100)
    mask = detect_tissue(he_slide(bounds))
    assert mask.bounds_origin == (700, 300)
    assert mask.origin == pytest.approx((700, 300), abs=mask.pixel_size[0])
    columns, rows = (mask.pixels.shape[1 - axis] * mask.pixel_size[axis] for axis in (0, 1))
    assert columns == pytest.approx(900, abs=2 * mask.pixel_size[0])
    assert rows == pytest.approx(1100, abs=2 * mask.pixel_size[1])
    assert px_under(mask, 990, 790, 1010, 810).any()
    assert not px_under(mask, 1500, 300, 1600, 500).any()


def test_the_resolution_of_the_mask_can_be_chosen() -> None:
    coarse, fine = (detect_tissue(he_slide(), mpp=mpp) for mpp in (16.0, 4.0))
    assert fine.pixel_size[0] == pytest.approx(2.0, rel=0.01)
    assert coarse.pixel_size[0] == pytest.approx(1600 / 512, rel=0.01)  # never below 512 px
    assert coarse.share == pytest.approx(fine.share, abs=0.03)


def test_a_slide_without_resolution_is_refused() -> None:
    with pytest.raises(MissingResolutionError, match="--mpp"):
        detect_tissue(he_slide(mpp=None))


def test_a_slide_of_background_gives_an_empty_mask() -> None:
    assert detect_tissue(ArraySlide(level0(to_image(bare_background())), (SLIDE_MPP, SLIDE_MPP))).is_empty


def test_a_slide_of_another_stain_causes_a_warning() -> None:
    overview = to_image(stained(bare_background(), disc(SHAPE, (250, 200), 100), {DAB: 0.3}))
    slide = ArraySlide(level0(overview), (SLIDE_MPP, SLIDE_MPP))
    for mask in (detect_tissue(slide), whole_slide(slide)):
        assert [warning for warning in mask.warnings if "H&E" in warning]


def test_px_that_are_not_square() -> None:
    overview = cv2.resize(level0(he_blob()[0]), (1000, 1600), interpolation=cv2.INTER_AREA)
    mask = detect_tissue(ArraySlide(np.asarray(overview, np.uint8), (2 * SLIDE_MPP, SLIDE_MPP)))
    assert mask.pixel_size[1] == pytest.approx(2 * mask.pixel_size[0], rel=0.01)
    assert px_under(mask, 495, 790, 505, 810).any()
    assert not px_under(mask, 0, 0, 200, 400).any()


def test_all_of_the_scanned_area_as_tissue() -> None:
    bounds = Region(100, 50, 700, 900)
    mask = whole_slide(he_slide(bounds, mpp=None))
    assert mask.share == 1.0
    assert (mask.origin, mask.pixel_size, mask.pixels.shape) == ((100, 50), (700, 900), (1, 1))
    assert np.abs(np.subtract(mask.background, BACKGROUND)).max() <= 1
    assert px_under(mask, 100, 50, 101, 51).any()
    assert not px_under(mask, 0, 0, 100, 50).any()


def test_background_is_measured_without_knowing_the_resolution() -> None:
    background, warnings = measure_background(he_slide(mpp=None))
    assert np.abs(np.subtract(background, BACKGROUND)).max() <= 1
    assert warnings == ()


def test_a_slide_of_sixteen_px() -> None:
    light = stained(bare_background((16, 16)), disc((16, 16), (8, 8), 3), HE)
    mask = detect_tissue(ArraySlide(to_image(light), (0.5, 0.5)))
    assert mask.pixels.shape == (16, 16)
    assert mask.share >= 0.9
