"""Scores of sets: pooled, by level and slide, with intervals over units."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import stained_image, virtual_of

from wsi2ihc.errors import DatasetError
from wsi2ihc.training.metrics.bootstrap import ImageMetadata, Scores, differences
from wsi2ihc.training.metrics.pair_statistics import BatchVariance, Scale, metrics_of, score_pair

SCALE = Scale(0.15, 2.0)
IMAGES = [
    ImageMetadata("a", "p1", "1+", "s1"), ImageMetadata("b", "p1", "1+", "s1"), ImageMetadata("c", "p1", "3+", "s2"),
    ImageMetadata("d", "p2", "3+", "s3"), ImageMetadata("e", "p3", "2+", "s4"), ImageMetadata("f", "p3", "2+", "s4"),
]  # fmt: skip
REFERENCES = [stained_image(seed, 72, 0.4 + 0.1 * seed) for seed in range(len(IMAGES))]


def make_scores(noise: int = 0) -> Scores:
    scores = Scores(IMAGES, SCALE)
    for seed, (image, reference) in enumerate(zip(IMAGES, REFERENCES, strict=True)):
        scores.add(image, virtual_of(reference, 100 * noise + seed), reference)
    return scores


def test_subset_pools_its_images() -> None:
    scores = make_scores()
    assert scores.levels == ("1+", "2+", "3+")
    assert scores.slides == ("s1", "s2", "s3", "s4")
    of_level = scores.subset(her2="3+")
    assert (of_level.images, of_level.units) == (2, ("p1", "p2"))
    pooled = sum(score_pair(virtual_of(REFERENCES[i], i), REFERENCES[i], SCALE).sums for i in (2, 3))
    values, expected = of_level.values(), metrics_of(pooled)
    for name in expected:
        assert values[name] == pytest.approx(float(expected[name]), nan_ok=True)
    assert scores.subset(slide="s4").images == 2
    assert scores.subset(her2="0").images == 0
    assert all(np.isnan(value) for value in scores.subset(her2="0").values().values())


def test_means_over_units() -> None:
    scores = make_scores()
    own = [
        metrics_of(sum(score_pair(virtual_of(REFERENCES[i], i), REFERENCES[i], SCALE).sums for i in of))["stain_r"]
        for of in ((0, 1, 2), (3,), (4, 5))
    ]
    assert scores.subset().values()["stain_r_mean"] == pytest.approx(np.mean(own))


def test_batch_variance_matches_numpy() -> None:
    scores = make_scores()
    virtual = np.stack([virtual_of(reference, seed) for seed, reference in enumerate(REFERENCES)]).astype(float)
    reference = np.stack(REFERENCES).astype(float)
    expected = virtual.var(0, ddof=1).mean() / reference.var(0, ddof=1).mean()
    assert scores.subset().values()["variance_ratio"] == pytest.approx(expected, rel=1e-9)
    some = [2, 3]
    expected = virtual[some].var(0, ddof=1).mean() / reference[some].var(0, ddof=1).mean()
    assert scores.subset(her2="3+").values()["variance_ratio"] == pytest.approx(expected, rel=1e-9)


def test_batch_variance_of_repeated_groups() -> None:
    variance = BatchVariance(2)
    for group, image in ((0, REFERENCES[0]), (0, REFERENCES[1]), (1, REFERENCES[2])):
        variance.add(group, image)
    repeated = np.stack([REFERENCES[i] for i in (0, 1, 0, 1, 2)]).astype(float)
    assert variance.variances(np.array([2.0, 1.0])) == pytest.approx(repeated.var(0, ddof=1).mean())
    assert np.isnan(variance.variances(np.array([0.0, 1.0]))), "one image has no variance"
    variance.add(1, REFERENCES[3][:-8])
    assert np.isnan(variance.variances(np.array([1.0, 1.0]))), "images of two sizes"


def test_batch_variance_of_many_groups_uses_every_nth_pixel() -> None:
    variance = BatchVariance(6, max_bytes=6 * 72 * 72 * 3 * 8 // 8)
    for group, image in enumerate(REFERENCES):
        variance.add(group, image)
    assert variance.step_px == 3
    expected = np.stack(REFERENCES).astype(float)[:, ::3, ::3].var(0, ddof=1).mean()
    assert variance.variances(np.ones(6)) == pytest.approx(expected)


def test_intervals_contain_the_value_and_are_reproducible() -> None:
    subset = make_scores().subset()
    estimates = subset.estimates(seed=3, resamples=300)
    assert estimates == subset.estimates(seed=3, resamples=300)
    assert estimates != subset.estimates(seed=4, resamples=300)
    for name in ("psnr", "ssim", "stain_r", "mcc", "variance_ratio", "emd_dab"):
        one = estimates[name]
        assert one.low is not None
        assert one.high is not None
        assert one.value is not None
        assert one.low < one.high
    assert estimates["psnr"].low <= estimates["psnr"].value <= estimates["psnr"].high


def test_single_unit_has_no_interval() -> None:
    one = make_scores().subset(slide="s1").estimates(resamples=100)["psnr"]
    assert one.value is not None
    assert one.low is None


def test_undefined_metrics_have_a_reason() -> None:
    scores = Scores([ImageMetadata("a", "p")], Scale(0.15, None))
    scores.add(ImageMetadata("a", "p"), REFERENCES[0], REFERENCES[0])
    estimates = scores.subset().estimates(resamples=100)
    assert estimates["psnr"].value is None
    assert "equals its reference" in estimates["psnr"].reason
    assert "resolution" in estimates["stain_r_64um"].reason
    assert "fewer than two" in estimates["variance_ratio"].reason
    assert scores.subset().identical == 1


def test_paired_differences_are_narrower_than_two_intervals() -> None:
    first, second = make_scores(0).subset(), make_scores(1).subset()
    paired = differences(first, second, ("psnr", "stain_r"), resamples=500)
    alone = first.estimates(resamples=500)["psnr"]
    expected = first.values()["psnr"] - second.values()["psnr"]
    assert paired["psnr"].value == pytest.approx(expected)
    assert paired["psnr"].high - paired["psnr"].low < alone.high - alone.low
    other = Scores([ImageMetadata("a", "x")], SCALE)
    other.add(ImageMetadata("a", "x"), REFERENCES[0], REFERENCES[1])
    with pytest.raises(DatasetError, match="same images"):
        differences(first, other.subset(), ("psnr",))


def test_images_of_different_sizes_are_an_error() -> None:
    scores = Scores(IMAGES, SCALE)
    with pytest.raises(DatasetError, match=r"a: virtual image .*, reference"):
        scores.add(IMAGES[0], REFERENCES[0][:-1], REFERENCES[0])
