"""Figures from sums: what each is, and its formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..moments import correlation
from .sums import BINS, BLOCKS_UM, DENSITY_PER_BIN, GRADES, PARTS, PLANES, Sums

Values = npt.NDArray[np.float64]

SMOOTHING = 1e-6
"""Added to every bin's share before logarithms are taken, since the divergence from an empty bin is infinite."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is.

    title:   with its unit, as the head of a column
    group:   which table it belongs to: "image", "stain", "distribution" or "grid"
    digits:  behind the point
    ideal:   of a perfect virtual stain; None where that depends on the reference
    """

    title: str
    group: str
    digits: int = 3
    ideal: float | None = None


FIGURES: dict[str, Figure] = {
    "psnr": Figure("PSNR, dB", "image", 2, float("inf")),
    "ssim": Figure("SSIM", "image", 3, 1.0),
    "l1": Figure("L1, grey levels", "image", 2, 0.0),
    "stain_r": Figure("Stain R per pixel", "stain", 3, 1.0),
    "stain_r_mean": Figure("Stain R per pixel, mean over units", "stain", 3, 1.0),
    "stain_ccc": Figure("Lin's CCC", "stain", 3, 1.0),
    "stain_ccc_mean": Figure("Lin's CCC, mean over units", "stain", 3, 1.0),
    "stain_r_64px": Figure("Stain R, blocks of 64 px", "stain", 3, 1.0),
    "stain_r_64px_mean": Figure("Stain R, blocks of 64 px, mean over units", "stain", 3, 1.0),
    **{f"stain_r_{side:g}um": Figure(f"Stain R, blocks of {side:g} µm", "stain", 3, 1.0) for side in BLOCKS_UM},
    "stain_bias": Figure("Stain bias, OD", "stain", 4, 0.0),
    "stain_ratio": Figure("Integrated stain / reference's", "stain", 3, 1.0),
    "stain_virtual": Figure("Mean density, virtual, OD", "stain", 4),
    "stain_reference": Figure("Mean density, reference, OD", "stain", 4),
    "area_virtual": Figure("Stained area, virtual", "stain", 3),
    "area_reference": Figure("Stained area, reference", "stain", 3),
    "mcc": Figure("Stained area, MCC", "stain", 3, 1.0),
    "dice": Figure("Stained area, Dice", "stain", 3, 1.0),
    "dice_all": Figure("Dice if all were stained", "stain", 3),
    "h_score_virtual": Figure("H-score, virtual", "stain", 1),
    "h_score_reference": Figure("H-score, reference", "stain", 1),
    **{f"emd_{plane}": Figure(f"EMD, {plane}, grey levels", "distribution", 2, 0.0) for plane in PLANES[:3]},
    "emd_dab": Figure("EMD, DAB, OD", "distribution", 4, 0.0),
    **{f"kl_{plane}": Figure(f"KL, {plane}, nats", "distribution", 3, 0.0) for plane in PLANES},
    **{f"js_{plane}": Figure(f"JS, {plane}, nats", "distribution", 4, 0.0) for plane in PLANES},
    "variance_ratio": Figure("Batch variance / reference's", "distribution", 3, 1.0),
    "checkerboard_2": Figure("Power at 2 px / reference's", "grid", 2, 1.0),
    "checkerboard_4": Figure("Power at 4 px / reference's", "grid", 2, 1.0),
}
"""All figures that follow from images alone, by name, in the order of tables."""

UNIT_MEANS = {"stain_r_mean": "stain_r", "stain_ccc_mean": "stain_ccc", "stain_r_64px_mean": "stain_r_64px"}
"""Figures that are means over units (patients, slides, regions) of another figure; `scores` takes them."""


def figures_of(sums: Sums) -> dict[str, Values]:
    """All figures but `UNIT_MEANS` and ``variance_ratio``, each (…); NaN where one is not defined.

    Parameters
    ----------
    sums
        (…, `LENGTH`), of images or of sets of them, pooled.

    Notes
    -----
    psnr
        Mean of the images' dB. Equal images have no finite one, and are left out (`identical_images` counts them).
    ssim, l1
        Means over images.
    stain_r, stain_ccc, stain_r_…
        Pearson's correlation, and Lin's concordance ``2 s_xy / (s_x² + s_y² + (m_x - m_y)²)`` (Lin 1989), of the
        densities of DAB over all pixels together; and Pearson's over means of blocks.
    mcc, dice, dice_all
        Matthews correlation and Dice of stained pixels, and Dice of a virtual stain that stains every pixel.
    h_score_…
        100 times the sum over grades of the share of pixels of that grade and more: 0 to 300.
    emd_…, kl_…, js_…
        Between histograms of 256 bins of all pixels together: area between the cumulative distributions; the divergence
        of virtual from reference ``Σ r ln(r / v)``, smoothed; Jensen and Shannon's.
    checkerboard_…
        Spectral power over the reference's; see `wsi2ihc.training.spectrum`.
    """
    part = {name: sums[..., where] for name, where in PARTS.items()}
    (count,), (finite,) = (np.moveaxis(part[name], -1, 0) for name in ("images", "finite"))
    figures = {
        "psnr": _quotient(part["decibels"][..., 0], finite),
        "ssim": _quotient(part["ssim"][..., 0], count),
        "l1": _quotient(part["absolute"][..., 0], count),
    }
    figures |= stain_figures(sums)
    figures |= _area_figures(part["confusion"], part["grades"])
    virtual, reference = np.moveaxis(part["histograms"].reshape(*sums.shape[:-1], 2, len(PLANES), BINS), -3, 0)
    for number, plane in enumerate(PLANES):
        figures |= _distances(virtual[..., number, :], reference[..., number, :], plane)
    powers = np.moveaxis(part["powers"], -1, 0)
    figures["checkerboard_2"] = _quotient(powers[0], powers[1])
    figures["checkerboard_4"] = _quotient(powers[2], powers[3])
    return figures


def identical_images(sums: Sums) -> int:
    """How many virtual images equal their references to the bit."""
    return int(sums[PARTS["images"]][0] - sums[PARTS["finite"]][0])


def stain_figures(sums: Sums) -> dict[str, Values]:
    """Those of `figures_of` that compare densities of DAB."""
    pixels, blocks = sums[..., PARTS["pixels"]], sums[..., PARTS["blocks"]]
    count, x, y, xx, yy, xy = np.moveaxis(pixels, -1, 0)
    mean_x, mean_y = _quotient(x, count), _quotient(y, count)
    spread = _quotient(xx + yy, count) - mean_x**2 - mean_y**2 + (mean_x - mean_y) ** 2
    figures = {
        "stain_r": correlation(pixels),
        "stain_ccc": _quotient(2 * (_quotient(xy, count) - mean_x * mean_y), spread),
        "stain_bias": mean_x - mean_y,
        "stain_ratio": _quotient(x, y),
        "stain_virtual": mean_x,
        "stain_reference": mean_y,
    }
    kinds = blocks.reshape(*blocks.shape[:-1], 1 + len(BLOCKS_UM), 6)
    for number, name in enumerate(("64px", *(f"{side:g}um" for side in BLOCKS_UM))):
        figures[f"stain_r_{name}"] = correlation(kinds[..., number, :])
    return figures


def _area_figures(confusion: Sums, grades: Sums) -> dict[str, Values]:
    both, virtual_alone, reference_alone, neither = np.moveaxis(confusion, -1, 0)
    count = confusion.sum(-1)
    virtual, reference = both + virtual_alone, both + reference_alone
    product = virtual * reference * (count - virtual) * (count - reference)
    covariance = both * neither - virtual_alone * reference_alone
    graded = grades.reshape(*grades.shape[:-1], 2, len(GRADES)).sum(-1)
    return {
        "area_virtual": _quotient(virtual, count),
        "area_reference": _quotient(reference, count),
        "mcc": _quotient(covariance, np.sqrt(product)),
        "dice": _quotient(2 * both, virtual + reference),
        "dice_all": _quotient(2 * reference, count + reference),
        "h_score_virtual": 100 * _quotient(graded[..., 0], count),
        "h_score_reference": 100 * _quotient(graded[..., 1], count),
    }


def _distances(virtual: Values, reference: Values, plane: str) -> dict[str, Values]:
    """Between two histograms (…, 256)."""
    width = DENSITY_PER_BIN if plane == "dab" else 1.0
    v, r = (_quotient(one, one.sum(-1, keepdims=True)) for one in (virtual, reference))
    middle = (v + r) / 2
    return {
        f"emd_{plane}": np.abs(np.cumsum(v - r, axis=-1)).sum(-1) * width,
        f"kl_{plane}": _divergence(*((one + SMOOTHING) / (1 + BINS * SMOOTHING) for one in (r, v))),
        f"js_{plane}": (_divergence(v, middle) + _divergence(r, middle)) / 2,
    }


def _divergence(p: Values, q: Values) -> Values:
    """Kullback and Leibler's of p from q, in nats; q is above 0 where p is."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(-1), np.float64)


def _quotient(numerator: Values, denominator: Values) -> Values:
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    undefined = np.full(numerator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0), np.float64)
