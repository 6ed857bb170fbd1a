"""Color regression: recovers a polynomial, and is the best one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from wsi2ihc.errors import DatasetError
from wsi2ihc.models.registry import counterstain
from wsi2ihc.training.evaluation.methods import fit_color_regression
from wsi2ihc.training.metrics.validation_scores import ValidationScores

Images = npt.NDArray[np.uint8]


def colors(count: int = 3, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 30, 3), dtype=np.uint8)


def quadratic(images: Images) -> Images:
    r, g, b = np.moveaxis(images / 127.5 - 1, -1, 0)
    values = np.stack(
        [0.1 + 0.5 * r - 0.2 * g * g, 0.3 * b - 0.25 * r * g + 0.2, 0.4 * r * b + 0.3 * b * g - 0.1 * r**2], axis=-1
    )
    return np.rint((values + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("pixels_per_image", [500, 100_000])
def test_quadratic_color_map_is_recovered(pixels_per_image: int) -> None:
    he = colors()
    fit = fit_color_regression(zip(he, quadratic(he), strict=True), 0, pixels_per_image)
    unseen = colors(seed=1)
    difference = fit(unseen).astype(int) - quadratic(unseen)
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() < 0.1


def test_fit_matches_least_squares() -> None:
    he, ihc = colors(), colors(seed=2)
    ihc[..., 0] //= 2
    fit = fit_color_regression(zip(he, ihc, strict=True), pixels_per_image=100_000)
    r, g, b = (he.reshape(-1, 3) / 127.5 - 1).T
    terms = np.stack([r * 0 + 1, r, g, b, r * r, g * g, b * b, r * g, g * b, b * r], axis=1)
    expected = np.linalg.lstsq(terms, ihc.reshape(-1, 3) / 127.5 - 1, rcond=None)[0]
    np.testing.assert_allclose(fit.coefficients, expected, atol=1e-5)


def test_the_same_seed_draws_the_same_pixels() -> None:
    he, ihc = colors(), colors(seed=3)
    fits = [fit_color_regression(zip(he, ihc, strict=True), seed, 100).coefficients for seed in (1, 1, 2)]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert (fits[0] != fits[2]).any()


def test_output_is_rounded_and_clipped() -> None:
    he = colors()
    middle = 100 + he // 2
    steeper = ((middle.astype(int) - 100) * 2).astype(np.uint8)
    fit = fit_color_regression(zip(middle, steeper, strict=True))
    gray = np.array([0, 90, 100, 120, 227, 240, 255], np.uint8)
    answer = fit(np.repeat(gray, 3).reshape(1, 1, 7, 3))
    assert answer.dtype == np.uint8
    assert answer[0, 0].tolist() == [[level] * 3 for level in (0, 0, 0, 40, 254, 255, 255)]
    assert fit(he[:0]).shape == (0, 40, 30, 3)
    # views of side-by-side images are translated like copies
    np.testing.assert_array_equal(fit(he[:, :, 15:]), fit(he)[:, :, 15:])


def test_images_of_one_color() -> None:
    flat = np.full((20, 20, 3), 200, np.uint8)
    fit = fit_color_regression([(flat, flat // 2)])
    assert (fit(flat[np.newaxis]) == 100).all()


def test_bad_pairs() -> None:
    with pytest.raises(DatasetError, match="no pair"):
        fit_color_regression([])
    with pytest.raises(DatasetError, match="pair 1 differ in size"):
        fit_color_regression([(np.zeros((4, 4, 3), np.uint8),) * 2, (colors()[0], colors()[0, :3])])


def test_real_pairs(dev_data: Path) -> None:
    files = sorted((dev_data / "hemit256" / "train").glob("*.jpg"))[::40]
    images = np.stack([cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files])
    he, ihc = images[:, :, :256], images[:, :, 256:]
    fit = fit_color_regression(zip(he[::2], ihc[::2], strict=True))
    figures = []
    for translate in (fit, counterstain):
        scores = ValidationScores()
        scores.add(translate(he[1::2]), ihc[1::2])
        figures.append(scores.compute())
    regression, baseline = figures
    assert regression["psnr"] > baseline["psnr"] > 10
    assert 0.8 > regression["stain_r"] > baseline["stain_r"]
