"""Metrics from sufficient statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pair_statistics import (
    BINS,
    BLOCKS_UM,
    DENSITY_PER_BIN,
    GRADES,
    PARTS,
    PLANES,
    SufficientStatistics,
    Values,
    correlation,
    quotient,
)

SMOOTHING = 1e-6
"""Added to the fraction of every bin before taking logarithms, since the divergence from an empty bin is infinite."""

UNIT_MEANS = {"stain_r_mean": "stain_r", "stain_ccc_mean": "stain_ccc", "stain_r_64px_mean": "stain_r_64px"}
"""Metrics that are means over resampling units (patients, slides, regions) of another metric; see `bootstrap`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Properties of a metric."""

    title: str
    group: str  # the table it belongs to: "image", "stain", "distribution" or "grid"
    digits: int = 3
    ideal: float | None = None  # value of a perfect virtual stain; None if that depends on the reference
    is_two_sided: bool = False  # whether values lie on both sides of the ideal one


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR, dB", "image", 2, float("inf")),
    "ssim": Metric("SSIM", "image", 3, 1.0),
    "l1": Metric("L1, gray levels", "image", 2, 0.0),
    "stain_r": Metric("Stain R per pixel", "stain", 3, 1.0),
    "stain_r_mean": Metric("Stain R per pixel, mean over units", "stain", 3, 1.0),
    "stain_ccc": Metric("Lin's CCC", "stain", 3, 1.0),
    "stain_ccc_mean": Metric("Lin's CCC, mean over units", "stain", 3, 1.0),
    "stain_r_64px": Metric("Stain R, blocks of 64 px", "stain", 3, 1.0),
    "stain_r_64px_mean": Metric("Stain R, blocks of 64 px, mean over units", "stain", 3, 1.0),
    **{f"stain_r_{side:g}um": Metric(f"Stain R, blocks of {side:g} µm", "stain", 3, 1.0) for side in BLOCKS_UM},
    "stain_bias": Metric("Stain bias, OD", "stain", 4, 0.0, is_two_sided=True),
    "stain_ratio": Metric("Integrated stain / reference's", "stain", 3, 1.0),
    "stain_virtual": Metric("Mean density, virtual, OD", "stain", 4),
    "stain_reference": Metric("Mean density, reference, OD", "stain", 4),
    "area_virtual": Metric("Stained area, virtual", "stain", 3),
    "area_reference": Metric("Stained area, reference", "stain", 3),
    "mcc": Metric("Stained area, MCC", "stain", 3, 1.0),
    "dice": Metric("Stained area, Dice", "stain", 3, 1.0),
    "dice_all": Metric("Dice if all were stained", "stain", 3),
    "h_score_virtual": Metric("H-score, virtual", "stain", 1),
    "h_score_reference": Metric("H-score, reference", "stain", 1),
    **{f"emd_{plane}": Metric(f"EMD, {plane}, gray levels", "distribution", 2, 0.0) for plane in PLANES[:3]},
    "emd_dab": Metric("EMD, DAB, OD", "distribution", 4, 0.0),
    **{f"kl_{plane}": Metric(f"KL, {plane}, nats", "distribution", 3, 0.0) for plane in PLANES},
    **{f"js_{plane}": Metric(f"JS, {plane}, nats", "distribution", 4, 0.0) for plane in PLANES},
    "variance_ratio": Metric("Batch variance / reference's", "distribution", 3, 1.0, is_two_sided=True),
    "checkerboard_2": Metric("Power at 2 px / reference's", "grid", 2, 1.0, is_two_sided=True),
    "checkerboard_4": Metric("Power at 4 px / reference's", "grid", 2, 1.0, is_two_sided=True),
}
"""All metrics that follow from images alone, by name, in the order of tables."""


def metrics_of(sums: SufficientStatistics) -> dict[str, Values]:
    """Return all metrics except `UNIT_MEANS` and ``variance_ratio``, each (…); NaN where one is not defined.

    Parameters
    ----------
    sums
        (…, `LENGTH`), of images or of sets of images.

    Notes
    -----
    psnr
        Mean over images, in dB. Identical images have no finite PSNR and are left out (see `identical_images`).
    ssim, l1
        Means over images.
    stain_r, stain_ccc, stain_r_…
        Pearson correlation, and Lin's concordance ``2 s_xy / (s_x² + s_y² + (m_x - m_y)²)`` (Lin 1989), of the DAB
        densities of all pixels; and Pearson correlation of block means.
    mcc, dice, dice_all
        Matthews correlation and Dice of stained pixels, and Dice of a virtual stain that stains every pixel.
    h_score_…
        100 times the sum over grades of the fraction of pixels of that grade or above: 0 to 300.
    emd_…, kl_…, js_…
        Between histograms of 256 bins of all pixels: area between the cumulative distributions; the divergence of
        virtual from reference ``Σ r ln(r / v)``, smoothed; Jensen-Shannon divergence.
    checkerboard_…
        Spectral power over that of the reference; see `wsi2ihc.training.metrics.image_metrics`.
    """
    metrics = core_metrics(sums)
    metrics |= _area_metrics(sums[..., PARTS["confusion"]], sums[..., PARTS["grades"]])
    histograms = sums[..., PARTS["histograms"]].reshape(*sums.shape[:-1], 2, len(PLANES), BINS)
    virtual, reference = np.moveaxis(histograms, -3, 0)
    for number, plane in enumerate(PLANES):
        metrics |= _distances(virtual[..., number, :], reference[..., number, :], plane)
    return metrics


def core_metrics(sums: SufficientStatistics) -> dict[str, Values]:
    """Return the metrics of `metrics_of` that follow from the first `CORE_LENGTH` sums."""
    count, finite, decibels, ssim, absolute = np.moveaxis(sums[..., : PARTS["pixels"].start], -1, 0)
    powers = np.moveaxis(sums[..., PARTS["powers"]], -1, 0)
    return {
        "psnr": quotient(decibels, finite),
        "ssim": quotient(ssim, count),
        "l1": quotient(absolute, count),
        **stain_metrics(sums),
        "checkerboard_2": quotient(powers[0], powers[1]),
        "checkerboard_4": quotient(powers[2], powers[3]),
    }


def identical_images(sums: SufficientStatistics) -> int:
    """Return the number of virtual images that equal their references exactly."""
    return int(sums[PARTS["images"]][0] - sums[PARTS["finite"]][0])


def stain_metrics(sums: SufficientStatistics) -> dict[str, Values]:
    """Return the metrics of `metrics_of` that compare DAB densities."""
    pixels, blocks = sums[..., PARTS["pixels"]], sums[..., PARTS["blocks"]]
    count, x, y, xx, yy, xy = np.moveaxis(pixels, -1, 0)
    mean_x, mean_y = quotient(x, count), quotient(y, count)
    spread = quotient(xx + yy, count) - mean_x**2 - mean_y**2 + (mean_x - mean_y) ** 2
    metrics = {
        "stain_r": correlation(pixels),
        "stain_ccc": quotient(2 * (quotient(xy, count) - mean_x * mean_y), spread),
        "stain_bias": mean_x - mean_y,
        "stain_ratio": quotient(x, y),
        "stain_virtual": mean_x,
        "stain_reference": mean_y,
    }
    kinds = blocks.reshape(*blocks.shape[:-1], 1 + len(BLOCKS_UM), 6)
    for number, name in enumerate(("64px", *(f"{side:g}um" for side in BLOCKS_UM))):
        metrics[f"stain_r_{name}"] = correlation(kinds[..., number, :])
    return metrics


def _area_metrics(confusion: SufficientStatistics, grades: SufficientStatistics) -> dict[str, Values]:
    both, virtual_only, reference_only, neither = np.moveaxis(confusion, -1, 0)
    count = confusion.sum(-1)
    virtual, reference = both + virtual_only, both + reference_only
    product = virtual * reference * (count - virtual) * (count - reference)
    covariance = both * neither - virtual_only * reference_only
    graded = grades.reshape(*grades.shape[:-1], 2, len(GRADES)).sum(-1)
    return {
        "area_virtual": quotient(virtual, count),
        "area_reference": quotient(reference, count),
        "mcc": quotient(covariance, np.sqrt(product)),
        "dice": quotient(2 * both, virtual + reference),
        "dice_all": quotient(2 * reference, count + reference),
        "h_score_virtual": 100 * quotient(graded[..., 0], count),
        "h_score_reference": 100 * quotient(graded[..., 1], count),
    }


def _distances(virtual: Values, reference: Values, plane: str) -> dict[str, Values]:
    """Return the distances between two histograms (…, 256)."""
    width = DENSITY_PER_BIN if plane == "dab" else 1.0
    v, r = (quotient(one, one.sum(-1, keepdims=True)) for one in (virtual, reference))
    middle = (v + r) / 2
    return {
        f"emd_{plane}": np.abs(np.cumsum(v - r, axis=-1)).sum(-1) * width,
        f"kl_{plane}": _divergence(*((one + SMOOTHING) / (1 + BINS * SMOOTHING) for one in (r, v))),
        f"js_{plane}": (_divergence(v, middle) + _divergence(r, middle)) / 2,
    }


def _divergence(p: Values, q: Values) -> Values:
    """Return the Kullback-Leibler divergence of p from q, in nats; q must be positive where p is."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(-1), np.float64)
