"""Metrics of single images: SSIM and the spectral power of upsampling grids."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import RGBImage

WINDOW_PX = 7

_STRIP_PX = 1 << 14
"""Windows processed at a time, so that the buffers stay in the cache of a core."""

_LUMINANCE = (0.01 * 255) ** 2
_CONTRAST = (0.03 * 255) ** 2

_NEAR = 1 / 32
"""Half the side of the square around a grid frequency, in cycles/px. It holds the power of a grid whose strength varies
with structures of 32 px or more. The window spreads a line by one bin to either side, which stays inside from 32 px
on.
"""


def structural_similarity(virtual: RGBImage, reference: RGBImage) -> float:
    """Return the mean structural similarity of two images (H, W, 3) uint8 over channels and windows; 1 if they are
    equal.

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
    """Return the sum over channels and windows. Everything is computed in place: allocation would take most of the
    time.
    """
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


def grid_power(image: RGBImage) -> tuple[float, float]:
    """Return the spectral power of an image's luminance at periods of 2 and of 4 px.

    The image is cropped to a multiple of 4 px and multiplied by a periodic Hann window; otherwise the jump from one
    border to the opposite one would put power on both axes of the spectrum, where most of the grid frequencies are.
    Then |DFT|² is summed over all bins within 1/32 cycles/px, in either axis, of

    - 2 px: (1/2, 0), (0, 1/2) and (1/2, 1/2);
    - 4 px: all (fx, fy) with 0, 1/4, 1/2 or 3/4 in each axis and 1/4 or 3/4 in one or both: twelve points.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, sides of at least 4 px.

    Returns
    -------
    two_px, four_px
        Gray levels squared: what the components contribute to the variance of the luminance.
    """
    height, width = (side // 4 * 4 for side in image.shape[:2])
    luminance = cv2.cvtColor(image[:height, :width].astype(np.float32), cv2.COLOR_RGB2GRAY)
    taper, two, four = _plan(height, width)
    power = np.square(np.abs(np.fft.rfft2(luminance * taper)))
    return float((power * two).sum()), float((power * four).sum())


@functools.lru_cache(maxsize=8)
def _plan(height: int, width: int) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the window (H, W), with a mean square of 1 / (H · W)², and the bins of both periods (H, W // 2 + 1)."""
    taper = np.outer(_hann(height), _hann(width))
    taper /= np.sqrt(np.square(taper).mean()) * height * width
    down, across = np.arange(height) / height, np.arange(width // 2 + 1) / width
    # the spectrum of a real image is symmetric, so only half of it is computed; bins with a mirror image count twice
    weights = np.where((across == 0) | (across == 1 / 2), 1.0, 2.0)
    near = [
        [np.abs((axis - point + 1 / 2) % 1 - 1 / 2) <= _NEAR for point in (0, 1 / 2, 1 / 4, 3 / 4)]
        for axis in (down, across)
    ]
    even = [zero | half for zero, half, _, _ in near]
    all_points = [zero | half | quarter | other for zero, half, quarter, other in near]
    two = np.outer(*even) & ~np.outer(near[0][0], near[1][0])
    four = np.outer(*all_points) & ~np.outer(*even)
    return taper.astype(np.float32), (two * weights).astype(np.float32), (four * weights).astype(np.float32)


def _hann(size: int) -> npt.NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
