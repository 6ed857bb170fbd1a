"""Pixels of a patch that count as tissue or as background."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from make_tissue import cells, he_of, ihc_of

from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.pairs.quality import tissue_fraction

BACKGROUND = (245, 243, 244)
MPP = 0.46
PINK = (214, 150, 190)
PALE = (232, 230, 236)
"""IHC without DAB, between nuclei."""


def plain(side_px: int, color: tuple[int, int, int] = BACKGROUND) -> RGBImage:
    noise = np.random.default_rng(0).normal(0, 2, (side_px, side_px, 3))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


def test_all_and_nothing() -> None:
    assert tissue_fraction(plain(256), MPP, BACKGROUND) == 0
    for color in (PINK, PALE):
        assert tissue_fraction(plain(256, color), MPP, BACKGROUND) == 1
    nuclei = cells(256 * MPP)
    assert tissue_fraction(he_of(nuclei, 256, MPP), MPP, (245, 245, 245)) > 0.98
    assert tissue_fraction(ihc_of(nuclei, 256, MPP), MPP, (245, 245, 245)) > 0.98


@pytest.mark.parametrize("share", [0.03, 0.3, 0.6])
@pytest.mark.parametrize("side_px", [256, 1024])
def test_the_rim_of_tissue(side_px: int, share: float) -> None:
    image = plain(side_px)
    width = round(share * side_px)
    image[:, :width] = plain(side_px, PINK)[:, :width]
    assert tissue_fraction(image, MPP, BACKGROUND) == pytest.approx(share, abs=0.02)
    assert tissue_fraction(image[::-1, ::-1], MPP, BACKGROUND) == pytest.approx(share, abs=0.02)


def test_two_rims_with_glass_between_them() -> None:
    image = plain(256)
    for start in (0, 236):
        image[:, start : start + 20] = PINK
    assert tissue_fraction(image, MPP, BACKGROUND) == pytest.approx(40 / 256, abs=0.03)


def test_a_slide_whose_glass_is_gray() -> None:
    assert tissue_fraction(plain(256, (181, 180, 182)), MPP, (181, 180, 182)) == 0
    assert tissue_fraction(plain(256, (165, 140, 160)), MPP, (181, 180, 182)) == 1


def fat(side_px: int, cell_um: float) -> RGBImage:
    """Empty cells with membranes of 1.5 µm."""
    image = plain(side_px)
    step = cell_um / MPP
    for at in np.arange(step / 3, side_px, step):
        cv2.line(image, (round(at), 0), (round(at), side_px), PINK, round(1.5 / MPP))
        cv2.line(image, (0, round(at)), (side_px, round(at)), PINK, round(1.5 / MPP))
    return image


def test_fat_is_tissue() -> None:
    assert tissue_fraction(fat(1024, 80), MPP, BACKGROUND) > 0.95
    assert tissue_fraction(fat(512, 60), MPP, BACKGROUND) > 0.95


def test_lumens_are_tissue_and_large_holes_are_not() -> None:
    for radius_um, share in ((20, 1.0), (70, 1.0), (150, 1 - np.pi * 150**2 / (1024 * MPP) ** 2)):
        image = plain(1024, PINK)
        cv2.circle(image, (512, 512), round(radius_um / MPP), BACKGROUND, cv2.FILLED)
        assert tissue_fraction(image, MPP, BACKGROUND) == pytest.approx(share, abs=0.02)


def test_dust_is_little() -> None:
    image = plain(512)
    for x, y in np.random.default_rng(1).integers(0, 512, (12, 2)):
        image[y : y + 5, x : x + 5] = 90
    assert tissue_fraction(image, MPP, BACKGROUND) < 0.02


def test_patches_of_any_size_and_resolution() -> None:
    for side_px, mpp in ((64, 0.02), (64, 50.0), (65, 0.46), (1000, 4.0)):
        assert tissue_fraction(plain(side_px, PINK), mpp, BACKGROUND) == 1
        assert tissue_fraction(plain(side_px), mpp, BACKGROUND) == pytest.approx(0, abs=0.02)
