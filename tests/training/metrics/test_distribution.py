"""Fréchet's distance against the formula with scipy's sqrtm, the kernel distance against loops and torchmetrics."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from torchmetrics.image.kid import poly_mmd

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.training.metrics.distribution import (
    DistributionDistances,
    distribution_distances,
    frechet_distance,
    kernel_distance,
)

Features = npt.NDArray[np.float64]

DIMENSIONS = 48


def random_features(count: int, seed: int, rank: int = DIMENSIONS, shift: float = 0.2) -> Features:
    """Features of unequal variance that depend on each other, and span ``rank`` dimensions."""
    mixing = np.random.default_rng(0).standard_normal((DIMENSIONS, DIMENSIONS)) * np.logspace(0, -2, DIMENSIONS)
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, rank)) * random.uniform(0.5, 1.5, rank)) @ mixing[:rank] + shift


def with_moments(mean: Features, covariance: Features, count: int, seed: int) -> Features:
    """Features that have this mean and unbiased covariance to the last digits."""
    random = np.random.default_rng(seed).standard_normal((count, len(mean)))
    orthonormal = np.linalg.qr(random - random.mean(0))[0] * np.sqrt(count - 1)
    return orthonormal @ np.linalg.cholesky(covariance).T + mean


def frechet_by_sqrtm(a: Features, b: Features) -> float:
    """The formula as it stands."""
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(of_a @ of_b)).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(of_a) + np.trace(of_b) - 2 * cross)


@pytest.mark.parametrize(
    ("n", "m", "rank"),
    [(20, 30, 48), (400, 300, 48), (20, 300, 48), (48, 49, 48), (96, 97, 48), (400, 300, 10), (20, 15, 5)],
)
def test_frechet_matches_sqrtm(n: int, m: int, rank: int) -> None:
    a, b = random_features(n, 1, rank), random_features(m, 2, rank, shift=0.3)
    expected = frechet_by_sqrtm(a, b)
    assert expected > 0.1
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_float32() -> None:
    a, b = random_features(60, 1).astype(np.float32), random_features(40, 2).astype(np.float32)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_sqrtm(a.astype(float), b.astype(float)), rel=1e-5)


def test_frechet_of_two_normal_distributions() -> None:
    """|μa - μb|² + Σ (σa - σb)² where covariances have the same axes."""
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((4, 4)))[0]
    deviations = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.0, 0.1])
    means = np.zeros(4), np.array([3.0, 0.0, -1.0, 0.5])
    a, b = (
        with_moments(mean, (turn * deviation**2) @ turn.T, count, count)
        for mean, deviation, count in zip(means, deviations, (50, 7), strict=True)
    )
    expected = 10.25 + 1 + 0 + 0.25 + 2.9**2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [5, 300])
def test_frechet_of_equal_sets_and_of_a_shift(count: int) -> None:
    a = random_features(count, 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + 0.5) == pytest.approx(DIMENSIONS / 4, rel=1e-12)
    # nothing may be lost where the distance is far below the variances
    assert frechet_distance(a, a + 1e-4) == pytest.approx(DIMENSIONS * 1e-8, rel=1e-5)


def test_frechet_of_constant_sets() -> None:
    a, b = np.zeros((3, 4)), np.ones((2, 4))
    assert frechet_distance(a, b) == 4


def plain_mmd(a: Features, b: Features) -> float:
    """Unbiased, one pair of images after the other."""
    kernel = lambda x, y: (float(x @ y) / len(x) + 1) ** 3  # noqa: E731
    within = [
        sum(kernel(x, y) for x, y in itertools.permutations(one, 2)) / (len(one) * (len(one) - 1)) for one in (a, b)
    ]
    return sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def test_kernel_distance_of_all_images() -> None:
    a, b = random_features(9, 1), random_features(9, 2, shift=0.4)
    found = kernel_distance(a, b)
    assert found.mean == pytest.approx(plain_mmd(a, b), rel=1e-9)
    assert (found.std, found.subset_size) == (None, 9)
    assert kernel_distance(b, a).mean == pytest.approx(found.mean, rel=1e-9)


def test_kernel_distance_matches_torchmetrics() -> None:
    """Also where the images are more than a block."""
    for count in (40, 1500):
        a, b = random_features(count, 1).astype(np.float32), random_features(count, 2, shift=0.4).astype(np.float32)
        expected = float(poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double()))
        assert kernel_distance(a, b, subset_size=2000).mean == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_over_subsets() -> None:
    """Against all pairs of subsets that there are, each as likely as any other."""
    a, b = random_features(4, 1), random_features(3, 2)
    every = [
        plain_mmd(np.array(one), np.array(other))
        for one in itertools.combinations(a, 2)
        for other in itertools.combinations(b, 2)
    ]
    found = kernel_distance(a, b, subset_size=2, subsets=20_000, seed=3)
    assert found.subset_size == 2
    assert found.std is not None
    assert found.mean == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(20_000))
    assert found.std == pytest.approx(np.std(every), rel=0.03)


def test_subsets_depend_on_the_seed() -> None:
    a, b = random_features(30, 1), random_features(40, 2)
    first, again, other = (kernel_distance(a, b, subset_size=10, subsets=5, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.mean != other.mean


def test_subsets_are_no_larger_than_the_smaller_side() -> None:
    found = kernel_distance(random_features(6, 1), random_features(40, 2), subsets=7)
    assert found.subset_size == 6
    assert found.std is not None
    assert found.std > 0
    # of the larger side, all is random_features at some time
    full = plain_mmd(random_features(6, 1), random_features(40, 2))
    many = kernel_distance(random_features(6, 1), random_features(40, 2), subsets=4000)
    assert many.std is not None
    assert many.mean == pytest.approx(full, abs=4 * many.std / np.sqrt(4000))


def test_distribution_distances() -> None:
    a, b = random_features(12, 1), random_features(12, 2)
    found = distribution_distances(a, b)
    assert found == DistributionDistances(12, 12, frechet_distance(a, b), kernel_distance(a, b).mean, None, 12)
    assert found.reason == ""
    drawn_subsets = distribution_distances(a, b[:10], subset_size=5, subsets=3, seed=1)
    kernel = kernel_distance(a, b[:10], subset_size=5, subsets=3, seed=1)
    assert (drawn_subsets.kid_mean, drawn_subsets.kid_std, drawn_subsets.kid_subset_size) == kernel


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5), (0, 0)])
def test_too_few_images_have_a_reason(n: int, m: int) -> None:
    found = distribution_distances(random_features(n, 1), random_features(m, 2))
    assert (found.virtual_images, found.reference_images) == (n, m)
    assert found.fid is found.kid_mean is found.kid_std is None
    assert f"two images or more on either side, and there are {n} and {m}" in found.reason
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(DatasetError, match="two images or more"):
            distance(random_features(n, 1), random_features(m, 2))


def test_incomparable_features_are_an_error() -> None:
    a = random_features(5, 1)
    broken = a.copy()
    broken[1, 1] = np.nan
    for distance in (frechet_distance, kernel_distance, distribution_distances):
        with pytest.raises(DatasetError, match="not finite"):
            distance(a, broken)
        with pytest.raises(DatasetError, match="cannot be compared"):
            distance(a, a[:, :3])
    with pytest.raises(OptionError, match="at least two images"):
        kernel_distance(a, a, subset_size=1)
    with pytest.raises(OptionError, match="at least one subset"):
        kernel_distance(a, a, subsets=0)
