"""Offsets and correlation of pairs whose offset is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tissue import BROWNER_DAB, DAB, LEVELS, cells, he_of, ihc_of

from wsi2ihc.training.pairs.quality import (
    MAX_OFFSET_UM,
    Limits,
    agreement,
    block_offsets,
    hematoxylin_of_he,
    hematoxylin_of_ihc,
    reduced,
)

MPP, SIDE_PX = 0.5, 640


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return cells(SIDE_PX * MPP)


@pytest.mark.parametrize("length_um", [0.0, 3.0, 8.0, 15.0])
@pytest.mark.parametrize("level", LEVELS)
def test_known_offsets_are_measured(nuclei: np.ndarray, length_um: float, level: str) -> None:
    angle = 1.0 + length_um
    shift_um = (length_um * math.cos(angle), length_um * math.sin(angle))
    he = he_of(nuclei, SIDE_PX, MPP)
    measured = agreement(he, ihc_of(nuclei, SIDE_PX, MPP, shift_um, level), MPP)
    assert measured.counted >= 7
    assert measured.residual_um == pytest.approx(length_um, abs=0.5)


@settings(max_examples=10, deadline=None)
@given(st.floats(-12, 12), st.floats(-12, 12), st.sampled_from([0.25, 0.46, 0.9]))
def test_direction_and_resolution(dx_um: float, dy_um: float, mpp: float) -> None:
    side_px = round(250 / mpp)
    nuclei = cells(250)
    fixed, fixed_mpp = reduced(he_of(nuclei, side_px, mpp), mpp, 1.0)
    moving, _ = reduced(ihc_of(nuclei, side_px, mpp, (dx_um, dy_um)), mpp, 1.0)
    offsets = block_offsets(hematoxylin_of_he(fixed), hematoxylin_of_ihc(moving), fixed_mpp)
    assert len(offsets) >= 3
    np.testing.assert_allclose(np.median(offsets, axis=0), (dx_um, dy_um), atol=0.4)


def test_other_tissue_has_no_offset(nuclei: np.ndarray) -> None:
    other = ihc_of(cells(SIDE_PX * MPP, seed=7), SIDE_PX, MPP)
    measured = agreement(he_of(nuclei, SIDE_PX, MPP), other, MPP)
    assert measured.residual_um is None
    assert measured.correlation is not None
    assert measured.correlation < Limits().min_correlation


def test_an_offset_beyond_reach_is_not_mistaken(nuclei: np.ndarray) -> None:
    moved = ihc_of(nuclei, SIDE_PX, MPP, (2.5 * MAX_OFFSET_UM, 0))
    assert agreement(he_of(nuclei, SIDE_PX, MPP), moved, MPP).residual_um is None


@pytest.mark.parametrize("dab", [DAB, BROWNER_DAB], ids=["assumed", "browner"])
@pytest.mark.parametrize("level", LEVELS)
def test_strong_dab_passes_the_default_limit(nuclei: np.ndarray, level: str, dab: np.ndarray) -> None:
    # and so does an offset that is just within the limit of offsets
    he, limit = he_of(nuclei, SIDE_PX, MPP), Limits().min_correlation
    for shift_um, least in (((0.0, 0.0), 0.6), ((6.0, -5.0), limit)):
        correlation = agreement(he, ihc_of(nuclei, SIDE_PX, MPP, shift_um, level, dab), MPP).correlation
        assert correlation is not None
        assert correlation > least


@pytest.mark.parametrize("fill", [245, 0])
def test_nothing_to_compare(nuclei: np.ndarray, fill: int) -> None:
    plain = np.full((SIDE_PX, SIDE_PX, 3), fill, np.uint8)
    he = he_of(nuclei, SIDE_PX, MPP)
    for pair in ((he, plain), (plain, he), (plain, plain)):
        assert agreement(*pair, MPP) == (None, None, 0)


@pytest.mark.parametrize("side_px", [64, 65, 100, 257])
def test_small_patches(nuclei: np.ndarray, side_px: int) -> None:
    he, ihc = he_of(nuclei, side_px, MPP), ihc_of(nuclei, side_px, MPP)
    measured = agreement(he, ihc, MPP)
    assert measured.residual_um is None or measured.residual_um < 1
    assert measured.correlation is not None
    assert measured.correlation > 0.6
