"""Stain augmentation of the H&E."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi2ihc.stains import EOSIN, HEMATOXYLIN
from wsi2ihc.training.data.stain_jitter import DRAWS, augment_stains

NEUTRAL = np.full(DRAWS, 0.5)

draws = arrays(np.float64, DRAWS, elements=st.floats(0, 1))


def painted(*amounts: tuple[float, float]) -> np.ndarray:
    """A row of pixels with these amounts of hematoxylin and eosin, along directions of length 1."""
    stains = np.array([HEMATOXYLIN, EOSIN])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return np.rint(255 * np.exp(-(np.array(amounts) @ stains)))[None].astype(np.uint8)


def test_zero_strength_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert augment_stains(image, 0.0, np.zeros(DRAWS)) is image


def test_neutral_draws_only_change_black() -> None:
    image = np.random.default_rng(0).integers(1, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(augment_stains(image, 0.4, NEUTRAL), image)


@given(draws)
def test_white_stays_white(numbers: np.ndarray) -> None:
    white = np.full((2, 2, 3), 255, np.uint8)
    np.testing.assert_array_equal(augment_stains(white, 0.5, numbers), white)


@pytest.mark.parametrize("stain", [0, 1])
def test_amount_of_one_stain(stain: int) -> None:
    numbers = NEUTRAL.copy()
    numbers[stain] = 1.0
    one, other = [(0.6, 0.0), (0.0, 0.6)][:: 1 if stain == 0 else -1]
    factor = np.exp(0.3)
    more = (one[0] * factor, one[1] * factor)
    output = augment_stains(painted(one, other), 0.3, numbers)
    np.testing.assert_allclose(output.astype(int), painted(more, other).astype(int), atol=1)


@given(draws)
def test_hue_change_keeps_the_amount(numbers: np.ndarray) -> None:
    """Densities of a pure stain keep their length, whatever their direction becomes."""
    numbers = numbers.copy()
    numbers[:2] = 0.5
    (pixel,) = augment_stains(painted((0.8, 0.0)), 0.3, numbers)[0]
    assert np.linalg.norm(-np.log(np.maximum(pixel, 1) / 255)) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("stain", [0, 1])
def test_rotation_of_stain_directions(stain: int) -> None:
    """At the extremes of the random numbers; a bright pixel has too few gray levels to measure an angle."""
    amounts = (2.0, 0.0) if stain == 0 else (0.0, 2.0)
    original = -np.log(painted(amounts)[0, 0] / 255)
    angles = []
    for corner in itertools.product((0.0, 1.0), repeat=3):
        numbers = NEUTRAL.copy()
        numbers[2 + 3 * stain : 5 + 3 * stain] = corner
        (pixel,) = augment_stains(painted(amounts), 0.3, numbers)[0]
        changed = -np.log(pixel / 255)
        cosine = original @ changed / np.linalg.norm(original) / np.linalg.norm(changed)
        angles.append(np.degrees(np.arccos(min(cosine, 1))))
    assert 13 < max(angles) < 15.5
