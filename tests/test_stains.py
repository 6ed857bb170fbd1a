"""DAB density: compared with scikit-image and with manual computation."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.stains import DAB, HEMATOXYLIN, dab_density


def levels_of(vector: tuple[float, float, float], density: float) -> np.ndarray:
    """The color of a stain alone, (1, 1, 3) uint8."""
    unit = np.array(vector) / np.linalg.norm(vector)
    return np.rint(255 * 10 ** (-density * unit)).astype(np.uint8).reshape(1, 1, 3)


def test_against_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    images = np.random.default_rng(0).integers(1, 256, (3, 40, 30, 3), dtype=np.uint8)
    expected = color.separate_stains(images / 255, color.hdx_from_rgb)[..., 1]
    # scikit-image counts in units of 6 decades, and leaves the vectors at the length that they were published with
    expected *= 6 * np.linalg.norm(DAB)
    density = dab_density(images)
    assert density.dtype == np.float32
    np.testing.assert_allclose(density, expected, atol=1e-6)
    assert 0.2 < float((density == 0).mean()) < 0.8


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_pure_dab_has_its_own_density(density: float) -> None:
    assert float(dab_density(levels_of(DAB, density))[0, 0]) == pytest.approx(density, abs=0.02)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_pure_hematoxylin_has_none(density: float) -> None:
    assert float(dab_density(levels_of(HEMATOXYLIN, density))[0, 0]) == pytest.approx(0, abs=0.02)


def test_density_of_a_color() -> None:
    # densities 0.2 of hematoxylin and 0.6 of DAB add up
    a, b = np.array(HEMATOXYLIN), np.array(DAB)
    densities = 0.2 * a / np.sqrt(a @ a) + 0.6 * b / np.sqrt(b @ b)
    image = np.rint(255 * 10**-densities).astype(np.uint8).reshape(1, 1, 3)
    assert float(dab_density(image)[0, 0]) == pytest.approx(0.6, abs=0.02)


def test_white_has_no_density_and_black_counts_as_level_1() -> None:
    colors = np.array([[[255, 255, 255], [0, 0, 0], [1, 1, 1], [9, 9, 0], [9, 9, 1]]], np.uint8)
    white, black, nearly, deep, deep_too = dab_density(colors)[0]
    assert white == 0
    assert np.isfinite(black)
    assert black == nearly
    assert deep == deep_too > 1


def test_batches_views_and_empty_images() -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    density = dab_density(images)
    assert density.shape == (2, 8, 12)
    np.testing.assert_array_equal(density[1], dab_density(images[1]))
    np.testing.assert_array_equal(density[:, :, 6:], dab_density(images[:, :, 6:]))
    np.testing.assert_array_equal(density[..., ::-1], dab_density(images[:, :, ::-1]))
    assert dab_density(images[:0]).shape == (0, 8, 12)
