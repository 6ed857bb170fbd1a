"""Power of the grid that upsampling leaves."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from wsi2ihc.training.metrics.image_metrics import grid_power

SIZE = 128
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]


def gray(pattern: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.repeat(np.rint(128 + pattern).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def test_sum_over_all_bins_is_the_variance() -> None:
    # a grid of 8 levels up and down has a variance of 64, all of it at one lattice point
    for pattern, two, four in [
        (8.0 * (-1.0) ** COLUMNS, 64, 0),
        (8.0 * (-1.0) ** ROWS, 64, 0),
        (8.0 * (-1.0) ** (ROWS + COLUMNS), 64, 0),
        (8.0 * np.where(COLUMNS % 4 < 2, 1, -1), 0, 64),
        (8.0 * np.where(ROWS % 4 < 2, 1, -1), 0, 64),
        (8.0 * np.where(ROWS % 4 < 2, 1, -1) * (-1.0) ** COLUMNS, 0, 64),
        (8.0 * np.where((ROWS + COLUMNS) % 4 < 2, 1, -1), 0, 64),
        (8.0 * np.where(COLUMNS % 8 < 4, 1, -1), 0, 0),
        (0.0 * ROWS, 0, 0),
    ]:
        assert grid_power(gray(pattern)) == pytest.approx((two, four), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("period", [2, 4])
def test_grid_in_part_of_the_image_counts_by_its_fraction(period: int) -> None:
    inside = np.exp(-((ROWS - 64) ** 2 + (COLUMNS - 64) ** 2) / (2 * 24**2))
    pattern = np.where(COLUMNS % period < period // 2, 10, -10)
    power = grid_power(gray(inside * pattern))
    whole = grid_power(gray(pattern))
    assert 0.1 < power[period // 4] / whole[period // 4] < 0.9
    assert power[1 - period // 4] < 0.02 * power[period // 4]


def test_smooth_images_with_different_opposite_borders_have_no_grid() -> None:
    ramp = np.linspace(-120, 120, SIZE) * np.ones((SIZE, 1))
    without_window = np.square(np.abs(np.fft.fft(ramp[0] / SIZE)))
    assert float(without_window[SIZE // 2 - 4 : SIZE // 2 + 5].sum()) > 5
    assert sum(grid_power(gray(ramp))) < 0.05


def test_white_noise_counts_by_the_fraction_of_bins() -> None:
    # 9 x 9 bins at each of 3 and of 12 points; rounding to integer levels also adds this, with a variance of 1/12
    noise = np.random.default_rng(8).normal(0, 20, (8, SIZE, SIZE))
    two, four = np.mean([grid_power(gray(one)) for one in noise], axis=0)
    assert two == pytest.approx(400 * 3 * 81 / SIZE**2, rel=0.1)
    assert four == pytest.approx(400 * 12 * 81 / SIZE**2, rel=0.1)


def test_blur_lowers_and_upsampling_raises_grid_power() -> None:
    noise = np.random.default_rng(4).normal(0, 20, (SIZE, SIZE))
    image = gray(cv2.GaussianBlur(noise, (0, 0), 0.7))
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5)
    # a transposed convolution of stride 2 with a kernel of 3: odd positions get twice as much as even ones
    sparse = np.zeros((SIZE, SIZE))
    sparse[::2, ::2] = 30
    uneven = gray(cv2.filter2D(sparse, -1, np.ones((3, 3))) - 60)
    assert grid_power(blurred)[0] < 0.05 * grid_power(image)[0]
    assert grid_power(blurred)[1] < 0.5 * grid_power(image)[1]
    assert grid_power(uneven)[0] > 10 * grid_power(image)[0]


def test_sides_are_cropped_to_multiples_of_four() -> None:
    image = np.random.default_rng(5).integers(0, 256, (67, 46, 3), dtype=np.uint8)
    assert grid_power(image) == grid_power(image[:64, :44])


@pytest.mark.parametrize("shape", [(4, 4), (16, 8)])
def test_small_images(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(6).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert all(np.isfinite(grid_power(image)))
