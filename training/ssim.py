"""Structural similarity as the field reports it, without scikit-image and in less time.

Wang et al., IEEE Trans Image Process 13:600 (2004), with the settings of scikit-image's `structural_similarity` under
``channel_axis=-1, data_range=255``: a uniform window of 7x7, unbiased (co)variances, windows inside the image only.
The sums over a window are of whole numbers, so they are exact here.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError

WINDOW_PX = 7

_STRIP_PX = 1 << 14
"""Windows done at a time: what is held of them then stays in the cache of a core."""

_LUMINANCE = (0.01 * 255) ** 2
_CONTRAST = (0.03 * 255) ** 2


def structural_similarity(virtual: RGBImage, reference: RGBImage) -> float:
    """Mean structural similarity of two images (H, W, 3) uint8 over channels and windows; 1 where they are equal.

    Raises
    ------
    DatasetError
        If the images are smaller than a window (7 px).
    """
    if min(virtual.shape[:2]) < WINDOW_PX:
        raise DatasetError(f"images of {virtual.shape[1]} x {virtual.shape[0]} px are too small for SSIM (7 px)")
    height, width = (side - WINDOW_PX + 1 for side in virtual.shape[:2])
    rows = min(max(WINDOW_PX, _STRIP_PX // width), height)
    buffers = np.empty((8, rows + WINDOW_PX - 1, *virtual.shape[1:]))
    total = 0.0
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height) + WINDOW_PX - 1)
        total += _summed_similarity(virtual[strip], reference[strip], buffers)
    return float(total / (height * width * 3))


def _summed_similarity(virtual: RGBImage, reference: RGBImage, buffers: npt.NDArray[np.float64]) -> float:
    """The sum over channels and windows. All is done in place: fresh memory would take most of the time."""
    a, b, products, squares, *sums = buffers[:, : len(virtual)]
    a[:], b[:] = virtual, reference
    np.multiply(a, b, out=products)
    np.add(np.square(a, out=sums[0]), np.square(b, out=sums[1]), out=squares)
    for values, out in zip((a, b, products, squares), sums, strict=True):
        cv2.boxFilter(values, cv2.CV_64F, (WINDOW_PX, WINDOW_PX), dst=out, normalize=False)
    inside = slice(WINDOW_PX // 2, -(WINDOW_PX // 2))
    sum_a, sum_b, covariance, variances = (one[inside, inside] for one in sums)
    means, squared_means = a[inside, inside], b[inside, inside]
    np.multiply(sum_a, sum_b, out=means)
    np.add(np.square(sum_a, out=sum_a), np.square(sum_b, out=sum_b), out=squared_means)
    # count² times the means' products, and count · (count - 1) times (co)variances: fewer passes, the same quotient
    count = WINDOW_PX**2
    for sums_of_products, product in ((covariance, means), (variances, squared_means)):
        sums_of_products *= count
        sums_of_products -= product
    means *= 2
    covariance *= 2
    for product, spread in ((means, covariance), (squared_means, variances)):
        product += count**2 * _LUMINANCE
        spread += count * (count - 1) * _CONTRAST
        product *= spread
    means /= squared_means
    return float(means.sum())
