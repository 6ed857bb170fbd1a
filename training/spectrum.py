"""How strong the grid is that upsampling leaves in generated images.

A transposed convolution of stride 2 treats even and odd pixels unequally. Its output is multiplied, as it were, by a
pattern of period 2 px, or 4 px after a second one (Odena et al., "Deconvolution and checkerboard artifacts", Distill
2016). In the spectrum that is a copy of the image's low frequencies around every point of the pattern's reciprocal
lattice, so the power is taken there, and compared with a reference's at the same places.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage

_NEAR = 1 / 32
"""Half the side of the square around a lattice point, in cycles/px: it holds the power of a grid that comes and goes
with structures of 32 px or more. The window spreads a line by one bin to either side, which is inside from 32 px on."""


def grid_power(image: RGBImage) -> tuple[float, float]:
    """Spectral power of an image's luminance at the periods of 2 and of 4 px.

    The image is cropped to a multiple of 4 px and multiplied by a periodic Hann window, since otherwise the jump from
    one border to the opposite one puts power on both axes of the spectrum, which holds most of the lattice points. Then
    |DFT|² is summed over all bins that are at most 1/32 cycles/px off, in either axis, from

    - 2 px: (1/2, 0), (0, 1/2) and (1/2, 1/2);
    - 4 px: all (fx, fy) with 0, 1/4, 1/2 or 3/4 in each axis and 1/4 or 3/4 in one or both: twelve points.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, sides at least 4 px

    Returns
    -------
    two_px, four_px
        in grey levels squared: what the components add to the variance of the luminance
    """
    height, width = (side // 4 * 4 for side in image.shape[:2])
    luminance = cv2.cvtColor(image[:height, :width].astype(np.float32), cv2.COLOR_RGB2GRAY)
    taper, two, four = _plan(height, width)
    power = np.square(np.abs(np.fft.rfft2(luminance * taper)))
    return float((power * two).sum()), float((power * four).sum())


@functools.lru_cache(maxsize=8)
def _plan(height: int, width: int) -> tuple[npt.NDArray[np.float32], ...]:
    """The window (H, W), scaled to a mean square of 1 / (H · W)², and both periods' bins (H, W // 2 + 1)."""
    taper = np.outer(_hann(height), _hann(width))
    taper /= np.sqrt(np.square(taper).mean()) * height * width
    down, across = np.arange(height) / height, np.arange(width // 2 + 1) / width
    # a real image's spectrum is symmetric, so only half of it is computed; what has a mirror image there counts twice
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
