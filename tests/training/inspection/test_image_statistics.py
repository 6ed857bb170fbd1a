"""Image statistics compared with plain computations."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from make_fields import MPP, patch

from wsi2ihc.training.inspection.image_stats import STATISTICS, image_statistics, texture
from wsi2ihc.training.pairs.quality import sharpness


def test_statistics_equal_plain_computations() -> None:
    image = patch(10, 20)[0][:, :150]
    statistics = image_statistics(image, MPP)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    inner = gray.astype(float)
    laplacian = cv2.filter2D(inner, -1, np.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]))
    low, high = np.percentile(gray, [1, 99], method="inverted_cdf")
    expected = {
        **dict(zip(("red", "green", "blue"), image.reshape(-1, 3).mean(0), strict=True)),
        "laplacian_variance": laplacian.var(),
        "sharpness": sharpness(image, MPP),
        "dynamic_range": float(high) - float(low),
        "rms_contrast": inner.std(),
        "michelson_contrast": (float(high) - low) / (float(high) + low),
        **{f"texture_{name}": value for name, value in texture(np.asarray(gray))._asdict().items()},
    }
    assert tuple(expected) == STATISTICS
    for name, value in dataclasses.asdict(statistics).items():
        assert value == pytest.approx(expected[name], rel=1e-9), name


def test_blur_reduces_sharpness() -> None:
    image = patch(10, 20)[0]
    sharp, soft = (
        image_statistics(image, MPP),
        image_statistics(np.asarray(cv2.GaussianBlur(image, (0, 0), 3), np.uint8), MPP),
    )
    assert soft.laplacian_variance < sharp.laplacian_variance / 10
    assert soft.sharpness < sharp.sharpness / 2
    assert soft.texture_contrast < sharp.texture_contrast


def test_background_and_unknown_resolution() -> None:
    black = image_statistics(np.zeros((16, 16, 3), np.uint8), None)
    assert np.isnan(black.sharpness)
    assert (black.red, black.dynamic_range, black.rms_contrast, black.michelson_contrast) == (0, 0, 0, 0)
    assert black.texture_correlation == 1
