"""Sufficient statistics of image pairs, and the metrics that follow from them.

`score_pair` reduces a virtual image and its reference to a vector of sums (`PARTS`). Such vectors are added up over
patients, slides or whole datasets; `metrics_of` computes all metrics from any such sum. Validation during
training only needs the first sums (`core_statistics`, `core_metrics`). `BatchVariance` does the same for the
variance over images, which is not a sum over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import RGBImage
from wsi2ihc.stains import block_means, dab_density

from .image_metrics import grid_power, structural_similarity

Values = npt.NDArray[np.float64]
Density = npt.NDArray[np.float32]

Moments = npt.NDArray[np.float64]
"""(…, 6): count, Σx, Σy, Σx², Σy², Σxy."""

SufficientStatistics = npt.NDArray[np.float64]
"""(…, `LENGTH`), or (…, `CORE_LENGTH`)."""

_MIN_VARIANCE = 1e-12
"""Relative to the mean square. Smaller variances are those of a constant, with rounding errors of the sums."""

BLOCK_PX = 64
BLOCKS_UM = (32.0, 64.0, 128.0)
"""Sides of the blocks whose mean densities are compared. Misalignment that is small compared to a block is
irrelevant.
"""

GRADES = (0.2, 0.4, 0.6)
"""DAB densities from which a pixel is weakly, moderately and strongly stained: the default thresholds of QuPath."""

BINS = 256
DENSITY_PER_BIN = 0.01
"""Optical density; densities above 2.55 are in the last bin."""

PLANES = ("red", "green", "blue", "dab")
"""Channels of the histograms."""

JOINT_BINS = 64
"""Bins along each side of the joint histogram of densities, 0.04 wide."""

_SIZES = {
    "images": 1,  # number of images
    "finite": 1,  # of them with a finite PSNR
    "decibels": 1,  # sum of the finite PSNRs
    "ssim": 1,
    "absolute": 1,  # mean absolute difference of the levels
    "pixels": 6,  # moments of the densities of virtual and reference
    "blocks": 6 * (1 + len(BLOCKS_UM)),
    "powers": 4,  # at a period of 2 px of virtual and reference, and of 4 px
    "confusion": 4,  # stained px: in both, in the virtual only, in the reference only, in neither
    "grades": 2 * len(GRADES),  # px of each grade or above, of virtual and reference
    "histograms": 2 * len(PLANES) * BINS,
}

_ENDS = np.cumsum(list(_SIZES.values())).tolist()
PARTS: dict[str, slice] = {
    name: slice(end - size, end) for (name, size), end in zip(_SIZES.items(), _ENDS, strict=True)
}
"""Slice of each part in a vector."""

CORE_LENGTH: int = PARTS["powers"].stop
LENGTH: int = _ENDS[-1]

MAX_SUM_BYTES = 256 << 20
"""Memory for the sums of all groups of all methods; beyond it, only every n-th pixel along either axis is used."""

MAX_GROUPS = 4000
"""With more groups there is no variance: the products of every two of them would take over 128 MB."""

_VALUE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Scale:
    """Scale of a comparison."""

    stained_from: float  # DAB density from which a pixel counts as stained
    mpp: float | None  # µm per px; None if unknown, and then there are no blocks in µm

    def block_sides_px(self) -> Sequence[int | None]:
        """Return the side of each kind of block; None where it is not defined."""
        if self.mpp is None:
            return [BLOCK_PX, *(None for _ in BLOCKS_UM)]
        return [BLOCK_PX, *(max(1, round(side / self.mpp)) for side in BLOCKS_UM)]


class PairMeasurements(NamedTuple):
    """Measurements of one image pair that all scores share.

    Attributes
    ----------
    squared_error, absolute_error
        Means over pixels and channels, in gray levels.
    ssim
        Of 7x7 windows.
    powers
        At a period of 2 px of virtual and reference, and of 4 px.
    densities
        DAB density of virtual and reference.
    """

    squared_error: float
    absolute_error: float
    ssim: float
    powers: tuple[float, float, float, float]
    densities: tuple[Density, Density]

    @property
    def psnr(self) -> float:
        """In dB; infinite for identical images."""
        return float(10 * np.log10(255**2 / self.squared_error)) if self.squared_error else float("inf")


def measure_pair(virtual: RGBImage, reference: RGBImage) -> PairMeasurements:
    """Compare two images (H, W, 3) uint8 of one shape.

    Raises
    ------
    DatasetError
        If a side is shorter than 7 px.
    """
    difference = cv2.absdiff(virtual, reference)
    (virtual_2, virtual_4), (reference_2, reference_4) = grid_power(virtual), grid_power(reference)
    return PairMeasurements(
        float(cv2.norm(difference, cv2.NORM_L2SQR)) / difference.size,
        float(cv2.norm(difference, cv2.NORM_L1)) / difference.size,
        structural_similarity(virtual, reference),
        (virtual_2, reference_2, virtual_4, reference_4),
        (dab_density(virtual), dab_density(reference)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """Scores of one virtual image against its reference."""

    sums: SufficientStatistics
    psnr: float  # in dB; infinite for identical images
    ssim: float
    joint: npt.NDArray[np.int64]  # (64, 64) pixel counts by density of virtual (rows) and reference (columns)


def score_pair(virtual: RGBImage, reference: RGBImage, scale: Scale) -> PairScores:
    """Return the sufficient statistics of two images (H, W, 3) uint8 of one shape.

    Raises
    ------
    DatasetError
        If a side is shorter than 7 px.
    """
    pair = measure_pair(virtual, reference)
    bins = [density_bins(density) for density in pair.densities]
    parts: dict[str, npt.ArrayLike] = {
        "confusion": _confusion(*(density >= np.float32(scale.stained_from) for density in pair.densities)),
        "grades": [np.count_nonzero(density >= np.float32(grade)) for density in pair.densities for grade in GRADES],
        "histograms": np.concatenate([
            _histogram(plane)
            for image, density in zip((virtual, reference), bins, strict=True)
            for plane in (*cv2.split(image), density)
        ]),
    }  # fmt: skip
    sums = np.empty(LENGTH)
    sums[:CORE_LENGTH] = core_statistics(pair, _block_moments(pair.densities, scale.block_sides_px()))
    for name, value in parts.items():
        sums[PARTS[name]] = value
    return PairScores(sums, pair.psnr, pair.ssim, _joint_histogram(*bins))


def core_statistics(pair: PairMeasurements, blocks: Moments) -> SufficientStatistics:
    """Return the first `CORE_LENGTH` sufficient statistics.

    Parameters
    ----------
    pair
        Measurements of the images.
    blocks
        (kinds, 6) moments of the mean densities of each kind of blocks; kinds that are missing at the end are zero.
    """
    sums = np.zeros(CORE_LENGTH)
    is_finite = pair.squared_error > 0
    sums[: PARTS["pixels"].start] = 1, is_finite, pair.psnr if is_finite else 0, pair.ssim, pair.absolute_error
    sums[PARTS["pixels"]] = moments_of(*pair.densities)
    sums[PARTS["blocks"]][: blocks.size] = blocks.ravel()
    sums[PARTS["powers"]] = pair.powers
    return sums


def _block_moments(densities: tuple[Density, Density], sides_px: Sequence[int | None]) -> Moments:
    shortest = min(densities[0].shape)
    moments = np.zeros((len(sides_px), 6))
    for number, side_px in enumerate(sides_px):
        if side_px is not None and side_px <= shortest:
            moments[number] = moments_of(*(block_means(density, side_px) for density in densities))
    return moments


def _confusion(virtual: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> list[int]:
    both = int(np.count_nonzero(virtual & reference))
    first, second = int(np.count_nonzero(virtual)), int(np.count_nonzero(reference))
    return [both, first - both, second - both, virtual.size - first - second + both]


def density_bins(density: Density) -> npt.NDArray[np.uint8]:
    """Return the index of the histogram bin of each pixel."""
    return np.asarray(np.minimum(density * np.float32(1 / DENSITY_PER_BIN), BINS - 1), np.uint8)


def _histogram(plane: npt.NDArray[np.uint8] | cv2.typing.MatLike) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.calcHist([plane], [0], None, [BINS], [0, BINS]), np.float64).ravel()


def _joint_histogram(virtual: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    factor = BINS // JOINT_BINS
    index = (virtual // factor).astype(np.intp) * JOINT_BINS + reference // factor
    return np.bincount(index.ravel(), minlength=JOINT_BINS**2).reshape(JOINT_BINS, JOINT_BINS)


def moments_of(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Moments:
    """Return the sums of two arrays of one shape: (6,) float64."""
    x, y = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    # no BLAS products: its threads spend longer on waiting for each other than on the work
    return np.array([x.size, x.sum(), y.sum(), np.square(x).sum(), np.square(y).sum(), (x * y).sum()])


def correlation(moments: Moments) -> Values:
    """Return the Pearson correlation for each row of ``moments`` (…, 6): (…), NaN where x or y is constant."""
    count, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    count = np.maximum(count, 1)
    mean_x, mean_y = x / count, y / count
    variance_x, variance_y = xx / count - mean_x**2, yy / count - mean_y**2
    varies = (variance_x > _MIN_VARIANCE * xx / count) & (variance_y > _MIN_VARIANCE * yy / count)
    product = np.where(varies, variance_x * variance_y, 1.0)
    return np.asarray(np.where(varies, (xy / count - mean_x * mean_y) / np.sqrt(product), np.nan), np.float64)


def quotient(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Values:
    """Divide; NaN where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    undefined = np.full(numerator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0), np.float64)


def bootstrap_weights(count: int, seed: int, resamples: int) -> Values:
    """Return how often each of ``count`` units is drawn in each resample: (resamples, count).

    The same seed draws the same units, which makes comparisons of two methods paired.
    """
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws.astype(np.float64)


def percentile_interval(values: Values, level: float) -> tuple[float, float]:
    """Return the interval that holds the middle ``level`` (0 to 1) of the values that are not NaN; NaN if there are
    none.
    """
    known = values[~np.isnan(values)]
    if known.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class BatchVariance:
    """Sums from which the batch variance of any set of groups follows, with or without repetition.

    For each group (a patient, a slide) the sum of its images and the sum of their squares are kept. If S is the sum
    over a set of N images, the variance per pixel is ``(Σ |x|² - |S|² / N) / (N - 1)``, and |S|² follows from the
    products of the sums of groups.

    Memory bound: ``max_bytes`` for the sums, and 8 bytes for each pair of groups at the end.
    """

    def __init__(self, groups: int, max_bytes: int = MAX_SUM_BYTES) -> None:
        self.groups = groups
        self._max_bytes = max_bytes
        self._counts = np.zeros(groups)
        self._squares = np.zeros(groups)
        self._sums: Values | None = None
        self._products: Values | None = None
        self._shape: tuple[int, ...] = ()
        self._step = 1

    @property
    def step_px(self) -> int:
        return self._step

    def add(self, group: int, image: RGBImage) -> None:
        """Add an image of a group. If the shapes of images differ, there are no variances."""
        if self.groups > MAX_GROUPS:
            return
        if self._sums is None:
            self._shape = image.shape
            self._step = max(1, int(np.ceil(np.sqrt(self.groups * image.size * _VALUE_BYTES / self._max_bytes))))
            self._sums = np.zeros((self.groups, self._sampled(image).size))
        if image.shape != self._shape:
            self._shape = ()
            return
        values = self._sampled(image).astype(np.float64).ravel()
        self._counts[group] += 1
        self._squares[group] += np.square(values).sum()
        self._sums[group] += values
        self._products = None

    def variances(self, weights: Values) -> Values:
        """Return the variances of sets of groups, (sets,), in gray levels squared.

        NaN for fewer than two images, if the shapes of images differ, and for more than `MAX_GROUPS` groups.
        ``weights`` (sets, groups) are how often each group is in each set.
        """
        if not self._shape or self._sums is None:
            return np.full(weights.shape[:-1], np.nan)
        if self._products is None:
            self._products = self._sums @ self._sums.T
        count = weights @ self._counts
        squared_sum = ((weights @ self._products) * weights).sum(-1)
        enough = count > 1
        count = np.where(enough, count, 2)
        total = weights @ self._squares - squared_sum / count
        return np.asarray(np.where(enough, total / (count - 1) / self._sums.shape[1], np.nan), np.float64)

    def _sampled(self, image: RGBImage) -> RGBImage:
        return image[:: self._step, :: self._step]


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
