"""What one pair of images adds to the figures: a vector of sums.

Every figure of a set of images is a function of the sum of its images' vectors (`figures.figures_of`). So sets can be
pooled, parted by level or slide, and resampled for intervals without an image being held or looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage

from ..moments import moments_of
from ..spectrum import grid_power
from ..ssim import structural_similarity
from ..stain import block_means, dab_density

Sums = npt.NDArray[np.float64]
"""(…, `LENGTH`)."""

BLOCK_PX = 64
BLOCKS_UM = (32.0, 64.0, 128.0)
"""Sides of the blocks whose mean densities are compared: misalignment that is well below a block does not matter."""

GRADES = (0.2, 0.4, 0.6)
"""Densities of DAB from which a pixel is weakly, moderately, strongly stained: QuPath's default thresholds."""

BINS = 256
DENSITY_PER_BIN = 0.01
"""Optical density; what exceeds 2.55 is in the last bin."""

PLANES = ("red", "green", "blue", "dab")
"""What histograms are taken of."""

JOINT_BINS = 64
"""Along each side of the joint histogram of densities, 0.04 wide."""

_SIZES = {
    "images": 1,  # how many
    "finite": 1,  # how many of them have a finite PSNR
    "decibels": 1,  # sum of those
    "ssim": 1,
    "absolute": 1,  # mean absolute difference of the levels
    "pixels": 6,  # moments of the densities of virtual and reference
    "blocks": 6 * (1 + len(BLOCKS_UM)),
    "confusion": 4,  # stained px: in both, in the virtual alone, in the reference alone, in neither
    "grades": 2 * len(GRADES),  # px of a density of each grade and more, of virtual and reference
    "powers": 4,  # at a period of 2 px of virtual and reference, and of 4 px
    "histograms": 2 * len(PLANES) * BINS,
}

_ENDS = np.cumsum(list(_SIZES.values())).tolist()
PARTS: dict[str, slice] = {
    name: slice(end - size, end) for (name, size), end in zip(_SIZES.items(), _ENDS, strict=True)
}
"""Where each part of a vector lies."""

LENGTH: int = _ENDS[-1]


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """One virtual image against its reference.

    sums:    (`LENGTH`,)
    psnr:    dB; infinite for equal images
    ssim:    of 7x7 windows
    joint:   (64, 64) counts of px by density of virtual (rows) and reference (columns)
    """

    sums: Sums
    psnr: float
    ssim: float
    joint: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scale:
    """What is fixed before images are compared.

    stained_from:  density of DAB from which a pixel is stained
    mpp:           µm per px; None where it is unknown: then there are no blocks in µm
    """

    stained_from: float
    mpp: float | None

    def block_sides_px(self) -> Sequence[int | None]:
        """Of each kind of block; None where it is not defined."""
        if self.mpp is None:
            return [BLOCK_PX, *(None for _ in BLOCKS_UM)]
        return [BLOCK_PX, *(max(1, round(side / self.mpp)) for side in BLOCKS_UM)]


def score_pair(virtual: RGBImage, reference: RGBImage, scale: Scale) -> PairScores:
    """Compare two images of one shape, (H, W, 3) uint8; sides of at least 7 px.

    Raises
    ------
    DatasetError
        If they are smaller.
    """
    difference = cv2.absdiff(virtual, reference)
    squared = float(cv2.norm(difference, cv2.NORM_L2SQR)) / difference.size
    psnr = float(10 * np.log10(255**2 / squared)) if squared else float("inf")
    ssim = structural_similarity(virtual, reference)
    densities = dab_density(virtual), dab_density(reference)
    coarse = [_quantised(density) for density in densities]
    parts: dict[str, npt.ArrayLike] = {
        "images": 1,
        "finite": squared > 0,
        "decibels": psnr if squared else 0,
        "ssim": ssim,
        "absolute": float(cv2.norm(difference, cv2.NORM_L1)) / difference.size,
        "pixels": moments_of(*densities),
        "blocks": _block_moments(densities, scale.block_sides_px()),
        "confusion": _confusion(*(density >= np.float32(scale.stained_from) for density in densities)),
        "grades": [np.count_nonzero(density >= np.float32(grade)) for density in densities for grade in GRADES],
        "powers": [one for pair in zip(grid_power(virtual), grid_power(reference), strict=True) for one in pair],
        "histograms": np.concatenate([
            _histogram(plane)
            for image, density in zip((virtual, reference), coarse, strict=True)
            for plane in (*cv2.split(image), density)
        ]),
    }  # fmt: skip
    sums = np.empty(LENGTH)
    for name, value in parts.items():
        sums[PARTS[name]] = value
    return PairScores(sums, psnr, ssim, _joint(*coarse))


def _block_moments(
    densities: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], sides_px: Sequence[int | None]
) -> Sums:
    shortest = min(densities[0].shape)
    moments = np.zeros((len(sides_px), 6))
    for number, side_px in enumerate(sides_px):
        if side_px is not None and side_px <= shortest:
            moments[number] = moments_of(*(block_means(density, side_px) for density in densities))
    return moments.ravel()


def _confusion(virtual: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> list[int]:
    both = int(np.count_nonzero(virtual & reference))
    first, second = int(np.count_nonzero(virtual)), int(np.count_nonzero(reference))
    return [both, first - both, second - both, virtual.size - first - second + both]


def _quantised(density: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The number of each pixel's bin."""
    bins: npt.NDArray[np.uint8] = np.minimum(density * np.float32(1 / DENSITY_PER_BIN), BINS - 1).astype(np.uint8)
    return bins


def _histogram(plane: npt.NDArray[np.uint8] | cv2.typing.MatLike) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.calcHist([plane], [0], None, [BINS], [0, BINS]), np.float64).ravel()


def _joint(virtual: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    share = BINS // JOINT_BINS
    index = (virtual // share).astype(np.intp) * JOINT_BINS + reference // share
    return np.bincount(index.ravel(), minlength=JOINT_BINS**2).reshape(JOINT_BINS, JOINT_BINS)
