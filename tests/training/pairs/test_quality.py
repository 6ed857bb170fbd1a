"""Focus, folds, pen marks and stain, on images with known values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from make_tissue import LEVELS, cells, he_of, ihc_of

from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.pairs.quality import (
    FoldThreshold,
    Limits,
    fold_density,
    measure_quality,
    pen_fraction,
    sharpness,
    stained_fraction,
)

MPP, SIDE_PX = 0.5, 512
EVERYWHERE = np.ones((SIDE_PX, SIDE_PX), np.bool_)


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return cells(SIDE_PX * MPP)


def blurred(image: RGBImage, sigma_um: float, mpp: float = MPP) -> RGBImage:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_um / mpp), np.uint8)


@pytest.mark.parametrize("mpp", [0.25, 0.46, 0.5])
def test_out_of_focus_fails_and_in_focus_passes(nuclei: np.ndarray, mpp: float) -> None:
    limit, side_px = Limits().min_sharpness, round(SIDE_PX * MPP / mpp)
    for image in (he_of(nuclei, side_px, mpp), *(ihc_of(nuclei, side_px, mpp, level=level) for level in LEVELS)):
        assert sharpness(image, mpp) > limit
        assert sharpness(blurred(image, 2.0, mpp), mpp) < limit


def test_sharpness_does_not_depend_on_the_amount_of_stain(nuclei: np.ndarray) -> None:
    image = he_of(nuclei, SIDE_PX, MPP)
    pale = np.rint(245 * (np.maximum(image, 1) / 245.0) ** 0.5).astype(np.uint8)
    assert sharpness(pale, MPP) == pytest.approx(sharpness(image, MPP), rel=0.25)
    assert sharpness(np.full((64, 64, 3), 240, np.uint8), MPP) == 0


def test_real_slide_is_in_focus(dev_data: object) -> None:
    from wsi2ihc.geometry import Region
    from wsi2ihc.slide import open_slide

    with open_slide(f"{dev_data}/slides/CMU-1-Small-Region.svs") as slide:
        image = slide.read_level(0, Region(600, 900, 1024, 1024))
    assert sharpness(image, 0.499) > 0.6 > Limits().min_sharpness > sharpness(blurred(image, 2.0, 0.499), 0.499)


def test_folds_are_found_where_tissue_lies_double(nuclei: np.ndarray) -> None:
    ihc = ihc_of(nuclei, SIDE_PX, MPP)
    grain = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(SIDE_PX, SIDE_PX)), (0, 0), 16)
    density = np.clip(0.4 + 0.05 * grain / grain.std(), 0, 1)[..., None] * np.array([0.5, 1.5, 1.0])
    folded = density.copy()
    folded[:, 200:300] += density[:, 230:330]
    once, twice = (np.rint(245 * 10**-amount).astype(np.uint8) for amount in (density, folded))
    fold_threshold = FoldThreshold(fold_density(once, MPP, EVERYWHERE, "he"))
    assert measure_quality(once, ihc, EVERYWHERE, MPP, fold_threshold)["folds"] < 0.01
    # 100 of 512 columns, except for the palest areas in them
    assert 0.15 < measure_quality(twice, ihc, EVERYWHERE, MPP, fold_threshold)["folds"] < 0.21
    # what the slide is measured by holds the fold, too: of 6 % of a slide, half are still seen
    folded[:, 230:300] = density[:, 230:300]
    some = np.rint(245 * 10**-folded).astype(np.uint8)
    fold_threshold = FoldThreshold(fold_density(some, MPP, EVERYWHERE, "he"))
    assert measure_quality(some, ihc, EVERYWHERE, MPP, fold_threshold)["folds"] > 0.02


def test_dab_is_no_fold_and_no_ink(nuclei: np.ndarray) -> None:
    strong = ihc_of(nuclei, SIDE_PX, MPP, level="3+")
    limit = fold_density(ihc_of(nuclei, SIDE_PX, MPP), MPP, EVERYWHERE, "ihc")
    measured = measure_quality(he_of(nuclei, SIDE_PX, MPP), strong, EVERYWHERE, MPP, FoldThreshold(ihc=limit))
    assert measured["folds"] < 0.01
    assert measured["pen"] == 0


def test_a_slide_without_tissue_has_no_folds() -> None:
    background = np.full((64, 64, 3), 245, np.uint8)
    assert fold_density(background, 8.0, np.ones((64, 64), np.bool_), "he") == np.inf
    assert fold_density(background // 4, 8.0, np.zeros((64, 64), np.bool_), "he") == np.inf


@pytest.mark.parametrize(
    ("color", "on_he", "on_ihc"),
    [
        ((30, 140, 60), True, True),
        ((40, 50, 150), True, False),
        ((8, 8, 10), True, True),
        ((120, 70, 40), False, False),
    ],
    ids=["green", "blue", "black", "DAB"],
)
def test_ink(nuclei: np.ndarray, color: tuple[int, int, int], on_he: bool, on_ihc: bool) -> None:
    for image, blue_too, is_pen_mark in (
        (he_of(nuclei, SIDE_PX, MPP), True, on_he),
        (ihc_of(nuclei, SIDE_PX, MPP, level="2+"), False, on_ihc),
    ):
        assert pen_fraction(image, MPP, blue_too=blue_too) < 0.001
        image[:, :128] = color
        assert pen_fraction(image, MPP, blue_too=blue_too) == pytest.approx(0.25 if is_pen_mark else 0, abs=0.002)


def test_stained_share_counts_valid_px_only() -> None:
    image = np.full((100, 100, 3), 240, np.uint8)
    image[:, :30] = (120, 70, 40)
    valid = np.ones((100, 100), np.bool_)
    assert stained_fraction(image, valid) == pytest.approx(0.3)
    valid[:, :10] = False
    assert stained_fraction(image, valid) == pytest.approx(20 / 90)
    assert stained_fraction(image, np.zeros((100, 100), np.bool_)) == 0


def test_stained_share_rises_with_the_level(nuclei: np.ndarray) -> None:
    shares = [stained_fraction(ihc_of(nuclei, SIDE_PX, MPP, level=level), EVERYWHERE) for level in LEVELS]
    assert shares[0] < 0.01
    assert shares == sorted(shares)
    assert shares[2] > 0.1
