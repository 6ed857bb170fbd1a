"""Validation metrics against plain computations over all images at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wsi2ihc.errors import DatasetError
from wsi2ihc.stains import dab_density
from wsi2ihc.training.metrics.image_metrics import grid_power, structural_similarity
from wsi2ihc.training.metrics.validation_scores import VALIDATION_METRICS, ValidationScores, is_better

Images = npt.NDArray[np.uint8]


def pairs(count: int = 9, size: int = 64, noise: float = 25, seed: int = 0) -> tuple[Images, Images]:
    """Virtual and reference images: stained to another degree each, with coarse structure and noise."""
    random = np.random.default_rng(seed)
    brown = np.array([0.25, 0.5, 0.65])
    coarse = np.kron(random.uniform(0, 0.8, (count, size // 8, size // 8)), np.ones((8, 8)))
    stained = 235 * 10 ** (-coarse[..., np.newaxis] * brown)
    both = [np.clip(stained + random.normal(0, one, stained.shape), 0, 255).astype(np.uint8) for one in (noise, 5)]
    return both[0], both[1]


def scored(virtual: Images, reference: Images, batch: int = 3, **options: int) -> ValidationScores:
    scores = ValidationScores(**options)
    for start in range(0, len(virtual), batch):
        part = slice(start, start + batch)
        scores.add(virtual[part], reference[part])
    return scores


def test_metrics_match_computation_over_all_images() -> None:
    virtual, reference = pairs()
    metrics = scored(virtual, reference, block_px=16).compute()
    assert list(metrics) == list(VALIDATION_METRICS)
    difference = virtual.astype(float) - reference
    squared = np.square(difference).mean((1, 2, 3))
    x, y = dab_density(virtual).astype(float), dab_density(reference).astype(float)
    x_blocks, y_blocks = (one.reshape(9, 4, 16, 4, 16).mean((2, 4)) for one in (x, y))
    powers = [np.sum([grid_power(image) for image in images], axis=0) for images in (virtual, reference)]
    variances = [
        np.mean([images[start : start + 3].astype(float).var(0, ddof=1).mean() for start in (0, 3, 6)])
        for images in (virtual, reference)
    ]
    expected = {
        "psnr": np.mean(20 * np.log10(255 / np.sqrt(squared))),
        "ssim": np.mean([structural_similarity(one, other) for one, other in zip(virtual, reference, strict=True)]),
        "l1": np.abs(difference).mean(),
        "stain_r": np.corrcoef(x.ravel(), y.ravel())[0, 1],
        "stain_r_blocks": np.corrcoef(x_blocks.ravel(), y_blocks.ravel())[0, 1],
        "stain_bias": x.mean() - y.mean(),
        "variance_ratio": variances[0] / variances[1],
        "checkerboard_2": powers[0][0] / powers[1][0],
        "checkerboard_4": powers[0][1] / powers[1][1],
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert 0.3 < metrics["stain_r"] < metrics["stain_r_blocks"] < 1


def test_batches_only_affect_their_variance() -> None:
    virtual, reference = pairs()
    whole, batches = scored(virtual, reference, batch=9), scored(virtual, reference)
    metrics, expected = whole.compute(), batches.compute()
    assert metrics.pop("variance_ratio") != pytest.approx(expected.pop("variance_ratio"), rel=1e-6)
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_equal_images() -> None:
    _, reference = pairs()
    metrics = scored(reference, reference).compute()
    assert metrics["psnr"] == pytest.approx(10 * np.log10(255**2 * 64 * 64 * 3))
    for name in ("ssim", "stain_r", "stain_r_blocks", "variance_ratio", "checkerboard_2", "checkerboard_4"):
        assert metrics[name] == pytest.approx(1, abs=1e-9), name
    assert metrics["l1"] == metrics["stain_bias"] == 0


def test_constant_images_have_no_correlation() -> None:
    virtual, reference = pairs()
    flat = np.full_like(virtual, 140)
    metrics = scored(flat, reference).compute()
    assert np.isnan(metrics["stain_r"])
    assert np.isnan(metrics["stain_r_blocks"])
    assert metrics["variance_ratio"] == 0
    assert np.isfinite([metrics["psnr"], metrics["ssim"], metrics["stain_bias"]]).all()
    metrics = scored(virtual, flat).compute()
    assert np.isnan([metrics[name] for name in ("stain_r", "variance_ratio")]).all()


def test_batches_of_one_have_no_variance() -> None:
    virtual, reference = pairs()
    assert np.isnan(scored(virtual, reference, batch=1).compute()["variance_ratio"])
    assert np.isfinite(scored(virtual, reference, batch=8).compute()["variance_ratio"])


def test_blocks_of_other_sizes() -> None:
    virtual, reference = pairs(size=40)
    x, y = (dab_density(one).astype(float) for one in pairs(size=40))
    whole = np.corrcoef(x.mean((1, 2)), y.mean((1, 2)))[0, 1]
    assert scored(virtual, reference, block_px=64).compute()["stain_r_blocks"] == pytest.approx(whole, rel=1e-6)
    # 32 px blocks: one complete block in each image; the remaining 8 px are ignored
    first = np.corrcoef(x[:, :32, :32].mean((1, 2)), y[:, :32, :32].mean((1, 2)))[0, 1]
    assert scored(virtual, reference, block_px=32).compute()["stain_r_blocks"] == pytest.approx(first, rel=1e-6)


def test_mismatched_batches_are_an_error() -> None:
    virtual, reference = pairs(2)
    with pytest.raises(DatasetError, match="no validation image"):
        ValidationScores().compute()
    with pytest.raises(DatasetError, match="do not match"):
        ValidationScores().add(virtual, reference[:1])


def test_is_better() -> None:
    nan = float("nan")
    assert is_better("psnr", 21, 20)
    assert not is_better("psnr", 20, 20)
    assert is_better("l1", 1, 2)
    assert is_better("stain_bias", -0.1, 0.2)
    assert is_better("variance_ratio", 0.9, 1.2)
    assert not is_better("checkerboard_4", 0.5, 1.2)
    assert is_better("stain_r", -1, nan)
    assert not is_better("stain_r", nan, -1)
    assert not is_better("stain_r", nan, nan)
