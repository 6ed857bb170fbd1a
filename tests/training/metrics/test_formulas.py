"""Every metric against an independent implementation, over pooled images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_images import stained_image, virtual_of
from scipy import spatial, stats
from skimage import filters
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional import concordance_corrcoef, matthews_corrcoef, pearson_corrcoef

from wsi2ihc.geometry import RGBImage
from wsi2ihc.stains import dab_density
from wsi2ihc.training.evaluation.results import density_counts, h_score, otsu_threshold, stained_area
from wsi2ihc.training.metrics.pair_statistics import (
    BINS,
    DENSITY_PER_BIN,
    GRADES,
    LENGTH,
    PARTS,
    SMOOTHING,
    Scale,
    identical_images,
    metrics_of,
    score_pair,
)

SCALE = Scale(stained_from=0.15, mpp=2.0)
CLOSE = 1e-6


@pytest.fixture(scope="module")
def pairs() -> list[tuple[RGBImage, RGBImage]]:
    references = [stained_image(seed, strength=0.5 + 0.1 * seed) for seed in range(5)]
    return [(virtual_of(reference, seed), reference) for seed, reference in enumerate(references)]


@pytest.fixture(scope="module")
def metrics(pairs: list[tuple[RGBImage, RGBImage]]) -> dict[str, float]:
    pooled = np.sum([score_pair(*pair, SCALE).sums for pair in pairs], axis=0)
    return {name: float(value) for name, value in metrics_of(pooled).items()}


@pytest.fixture(scope="module")
def densities(pairs: list[tuple[RGBImage, RGBImage]]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.stack([dab_density(pair[side]) for pair in pairs]).astype(np.float64) for side in (0, 1))  # type: ignore[return-value]


def test_psnr_and_ssim_match_scikit_image(
    pairs: list[tuple[RGBImage, RGBImage]], metrics: dict[str, float]
) -> None:  # fmt: skip
    psnr = [peak_signal_noise_ratio(reference, virtual, data_range=255) for virtual, reference in pairs]
    ssim = [structural_similarity(r, v, channel_axis=-1, data_range=255) for v, r in pairs]
    assert metrics["psnr"] == pytest.approx(np.mean(psnr), rel=CLOSE)
    assert metrics["ssim"] == pytest.approx(np.mean(ssim), rel=CLOSE)
    differences = [np.abs(virtual.astype(float) - reference).mean() for virtual, reference in pairs]
    assert metrics["l1"] == pytest.approx(np.mean(differences), rel=CLOSE)


def test_correlations_match_torchmetrics(metrics: dict[str, float], densities: tuple[np.ndarray, np.ndarray]) -> None:
    virtual, reference = (torch.from_numpy(side.ravel()) for side in densities)
    assert metrics["stain_r"] == pytest.approx(float(pearson_corrcoef(virtual, reference)), rel=CLOSE)
    # torchmetrics takes unbiased variances; Lin's paper divides by N, as here: equal except for 1 / N
    ccc = float(concordance_corrcoef(virtual, reference))
    assert metrics["stain_ccc"] == pytest.approx(ccc, rel=2 / virtual.numel() + CLOSE)
    assert metrics["stain_bias"] == pytest.approx(densities[0].mean() - densities[1].mean(), rel=CLOSE)
    assert metrics["stain_ratio"] == pytest.approx(densities[0].sum() / densities[1].sum(), rel=CLOSE)


@pytest.mark.parametrize(("name", "side_px"), [("64px", 64), ("32um", 16), ("64um", 32), ("128um", 64)])
def test_incomplete_blocks_are_ignored(
    metrics: dict[str, float], densities: tuple[np.ndarray, np.ndarray], name: str, side_px: int
) -> None:
    means = []
    for side in densities:
        count = side.shape[1] // side_px
        means.append([
            image[y * side_px : (y + 1) * side_px, x * side_px : (x + 1) * side_px].mean()
            for image in side for y in range(count) for x in range(count)
        ])  # fmt: skip
    assert metrics[f"stain_r_{name}"] == pytest.approx(stats.pearsonr(*means).statistic, rel=CLOSE)


def test_stained_area_matches_torchmetrics_and_scipy(
    metrics: dict[str, float], densities: tuple[np.ndarray, np.ndarray]
) -> None:
    virtual, reference = ((side >= np.float32(0.15)).ravel() for side in densities)
    mcc = matthews_corrcoef(torch.from_numpy(virtual), torch.from_numpy(reference), task="binary")
    assert metrics["mcc"] == pytest.approx(float(mcc), rel=CLOSE)
    assert metrics["dice"] == pytest.approx(1 - spatial.distance.dice(virtual, reference), rel=CLOSE)
    all_stained = 1 - spatial.distance.dice(np.ones_like(reference), reference)
    assert metrics["dice_all"] == pytest.approx(all_stained, rel=CLOSE)
    assert metrics["area_virtual"] == pytest.approx(virtual.mean(), rel=CLOSE)
    assert metrics["area_reference"] == pytest.approx(reference.mean(), rel=CLOSE)


def test_h_score_weights_grades(metrics: dict[str, float], densities: tuple[np.ndarray, np.ndarray]) -> None:
    grade = np.digitize(densities[1].astype(np.float32), np.array(GRADES, np.float32))
    expected = 100 * sum(weight * float((grade == weight).mean()) for weight in (1, 2, 3))
    assert metrics["h_score_reference"] == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize(("plane", "width"), [("red", 1.0), ("green", 1.0), ("blue", 1.0), ("dab", DENSITY_PER_BIN)])
def test_histogram_distances_match_scipy(
    pairs: list[tuple[RGBImage, RGBImage]], metrics: dict[str, float], plane: str, width: float
) -> None:
    sides = []
    for side in (0, 1):
        counts = np.zeros(BINS)
        for pair in pairs:
            if plane == "dab":
                bins = np.minimum(dab_density(pair[side]) * np.float32(1 / DENSITY_PER_BIN), BINS - 1).astype(int)
            else:
                bins = pair[side][..., ("red", "green", "blue").index(plane)].astype(int)
            counts += np.bincount(bins.ravel(), minlength=BINS)
        sides.append(counts / counts.sum())
    places = np.arange(BINS) * width
    emd = stats.wasserstein_distance(places, places, *sides)
    assert metrics[f"emd_{plane}"] == pytest.approx(emd, rel=CLOSE)
    smooth = [(side + SMOOTHING) / (1 + BINS * SMOOTHING) for side in sides]
    assert metrics[f"kl_{plane}"] == pytest.approx(stats.entropy(smooth[1], smooth[0]), rel=CLOSE)
    js = spatial.distance.jensenshannon(*sides) ** 2
    assert metrics[f"js_{plane}"] == pytest.approx(js, rel=CLOSE)


def test_identical_images_have_no_psnr_and_are_counted(pairs: list[tuple[RGBImage, RGBImage]]) -> None:
    virtual, reference = pairs[0]
    one, equal = score_pair(virtual, reference, SCALE), score_pair(reference, reference, SCALE)
    assert equal.psnr == np.inf
    pooled = one.sums + equal.sums
    assert identical_images(pooled) == 1
    assert float(metrics_of(pooled)["psnr"]) == pytest.approx(one.psnr)
    assert float(metrics_of(pooled)["ssim"]) == pytest.approx((one.ssim + 1) / 2)
    assert np.isnan(metrics_of(equal.sums)["psnr"])


def test_metrics_of_no_images_are_nan_without_warnings() -> None:
    assert all(np.isnan(value) for value in metrics_of(np.zeros(LENGTH)).values())


def test_no_blocks_in_um_without_resolution(pairs: list[tuple[RGBImage, RGBImage]]) -> None:
    metrics = metrics_of(score_pair(*pairs[0], Scale(0.15, None)).sums)
    assert np.isnan(metrics["stain_r_64um"])
    blocks = score_pair(*pairs[0], Scale(0.15, 0.5)).sums[PARTS["blocks"]].reshape(4, 6)
    assert blocks[3, 0] == 0, "128 µm are 256 px, which the image has not"


def test_otsu_matches_scikit_image(pairs: list[tuple[RGBImage, RGBImage]]) -> None:
    counts = sum(density_counts(reference) for _, reference in pairs)
    middles = (np.arange(BINS) + 0.5) * DENSITY_PER_BIN
    expected = filters.threshold_otsu(hist=(counts, middles))
    assert abs(otsu_threshold(counts) - expected) <= DENSITY_PER_BIN / 2 + 1e-9


def test_area_and_h_score_from_histogram_match_pixels(
    pairs: list[tuple[RGBImage, RGBImage]], metrics: dict[str, float]
) -> None:  # fmt: skip
    counts = sum(density_counts(reference) for _, reference in pairs)
    assert stained_area(counts, 0.15) == pytest.approx(metrics["area_reference"], abs=2e-4)
    assert h_score(counts) == pytest.approx(metrics["h_score_reference"], abs=0.1)
