"""What an image looks like in figures: colour, sharpness, dynamic range, contrast, texture.

These are the figures 6 to 9 of Rehmat et al. 2025 (arXiv:2506.18371) with their settings written down. Luminance is
Rec. 601's, as uint8.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage

from ..pairing.measuring import sharpness
from .texture import texture

RANGE_PERCENT = (1.0, 99.0)
"""Percentiles of luminance between which the dynamic range lies."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Figures of one image; NaN where not known.

    red, green, blue:   means, 0 to 255
    laplacian_variance: variance of the Laplacian of luminance (3 x 3 kernel of four neighbours), squared grey levels
    sharpness:          as `pairing.measuring` has it, which neither stain nor amount of tissue changes; needs mpp
    dynamic_range:      99th less 1st percentile of luminance, grey levels
    rms_contrast:       standard deviation of luminance, grey levels
    michelson_contrast: (99th - 1st percentile) / (99th + 1st), 0 to 1
    texture_contrast, texture_homogeneity, texture_energy, texture_correlation:
                        of `texture`
    """

    red: float
    green: float
    blue: float
    laplacian_variance: float
    sharpness: float
    dynamic_range: float
    rms_contrast: float
    michelson_contrast: float
    texture_contrast: float
    texture_homogeneity: float
    texture_energy: float
    texture_correlation: float


def look_at(image: RGBImage, mpp: float | None) -> Looks:
    """The figures of an image (rows, columns, 3) uint8 RGB of ``mpp`` µm per px (None: not known)."""
    luminance = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    low, high = _percentiles(luminance)
    red, green, blue = (float(mean) for mean in cv2.mean(image)[:3])
    return Looks(
        red,
        green,
        blue,
        laplacian_variance=_variance(cv2.Laplacian(luminance, cv2.CV_16S)),  # 1,020 at most: exact
        sharpness=float("nan") if mpp is None else sharpness(image, mpp),
        dynamic_range=high - low,
        rms_contrast=_variance(luminance) ** 0.5,
        michelson_contrast=(high - low) / (high + low) if high else 0.0,
        **{f"texture_{name}": value for name, value in texture(luminance)._asdict().items()},
    )


def _percentiles(luminance: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """The least levels that so many per cent of the pixels do not exceed."""
    counts = cv2.calcHist([luminance], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    below = np.cumsum(counts)
    low, high = (float(np.searchsorted(below, below[-1] * percent / 100)) for percent in RANGE_PERCENT)
    return low, high


def _variance(plane: npt.NDArray[np.generic] | cv2.typing.MatLike) -> float:
    return float(cv2.meanStdDev(np.asarray(plane))[1][0, 0]) ** 2


LOOKS = tuple(one.name for one in dataclasses.fields(Looks))
"""Names of the figures, in order."""
