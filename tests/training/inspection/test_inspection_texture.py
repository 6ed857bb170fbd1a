"""Texture against scikit-image, which computes the same from its definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from make_fields import patch
from skimage.color import rgb2gray
from skimage.feature import graycomatrix, graycoprops

from wsi2ihc.training.inspection.texture import LEVELS, texture

RANDOM = np.random.default_rng(0)
IMAGES = {
    "noise": RANDOM.integers(0, 256, (37, 61), dtype=np.uint8),
    "tissue": (rgb2gray(patch(0, 0)[0]) * 255).astype(np.uint8),
    "steps": np.kron(RANDOM.integers(0, 256, (5, 9), dtype=np.uint8), np.ones((7, 4), np.uint8)),
    "one colour": np.full((8, 9), 200, np.uint8),
    "two pixels a side": np.array([[0, 255], [3, 4]], np.uint8),
}


@pytest.mark.parametrize("name", IMAGES)
def test_equal_to_scikit_image(name: str) -> None:
    image = IMAGES[name]
    matrices = graycomatrix(
        image // (256 // LEVELS), [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], LEVELS, symmetric=True, normed=True
    )
    for figure, value in texture(image)._asdict().items():
        assert value == pytest.approx(float(graycoprops(matrices, figure).mean()), rel=1e-6, abs=1e-9), figure


def test_what_the_figures_say() -> None:
    checks: npt.NDArray[np.uint8] = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    smooth = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    assert texture(checks).contrast > 1000 > 1 > texture(smooth).contrast
    assert texture(checks).correlation < 0.1 < 0.99 < texture(smooth).correlation
    flat = texture(np.full((8, 8), 7, np.uint8))
    assert flat == (0, 1, 1, 1)
