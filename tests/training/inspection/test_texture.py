"""Texture compared with scikit-image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from make_fields import patch
from skimage.color import rgb2gray
from skimage.feature import graycomatrix, graycoprops

from wsi2ihc.training.inspection.image_stats import GRAY_LEVELS, texture

RANDOM = np.random.default_rng(0)
IMAGES = {
    "noise": RANDOM.integers(0, 256, (37, 61), dtype=np.uint8),
    "tissue": (rgb2gray(patch(0, 0)[0]) * 255).astype(np.uint8),
    "steps": np.kron(RANDOM.integers(0, 256, (5, 9), dtype=np.uint8), np.ones((7, 4), np.uint8)),
    "one color": np.full((8, 9), 200, np.uint8),
    "two pixels a side": np.array([[0, 255], [3, 4]], np.uint8),
}


@pytest.mark.parametrize("name", IMAGES)
def test_equals_scikit_image(name: str) -> None:
    image = IMAGES[name]
    matrices = graycomatrix(
        image // (256 // GRAY_LEVELS),
        [1],
        [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4],
        GRAY_LEVELS,
        symmetric=True,
        normed=True,
    )
    for figure, value in texture(image)._asdict().items():
        assert value == pytest.approx(float(graycoprops(matrices, figure).mean()), rel=1e-6, abs=1e-9), figure


def test_texture_of_simple_images() -> None:
    checks: npt.NDArray[np.uint8] = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    smooth = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    assert texture(checks).contrast > 1000 > 1 > texture(smooth).contrast
    assert texture(checks).correlation < 0.1 < 0.99 < texture(smooth).correlation
    flat = texture(np.full((8, 8), 7, np.uint8))
    assert flat == (0, 1, 1, 1)
