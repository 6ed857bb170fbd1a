"""Structural similarity: against scikit-image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsi2ihc.errors import DatasetError
from wsi2ihc.training.metrics.image_metrics import structural_similarity


@pytest.mark.parametrize("shape", [(64, 64), (7, 7), (33, 90), (397, 90)])  # the last is done in three strips
@pytest.mark.parametrize("sigma", [0.01, 3.0])
def test_against_scikit_image(shape: tuple[int, int], sigma: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(2)
    reference = cv2.GaussianBlur(random.integers(0, 256, (*shape, 3), dtype=np.uint8), (0, 0), sigma)
    virtual = np.clip(reference + random.normal(0, 12, reference.shape), 0, 255).astype(np.uint8)
    expected = metrics.structural_similarity(virtual, reference, channel_axis=-1, data_range=255)
    assert structural_similarity(virtual, reference) == pytest.approx(expected, abs=1e-12)
    assert expected < 0.999


def test_equal_and_constant_images() -> None:
    image = np.random.default_rng(3).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    assert structural_similarity(image, image) == pytest.approx(1, abs=1e-12)
    black, white = np.zeros_like(image), np.full_like(image, 255)
    assert structural_similarity(white, white) == 1
    # luminance alone: (2 · 0 · 255 + c) / (255² + c), c = (0.01 · 255)²
    assert structural_similarity(black, white) == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)


def test_image_smaller_than_a_window() -> None:
    image = np.zeros((20, 6, 3), np.uint8)
    with pytest.raises(DatasetError, match="6 x 20 px are too small"):
        structural_similarity(image, image)
