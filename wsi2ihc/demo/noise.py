"""Periodic noise textures: the grain of everything that the synthetic slide shows.

A texture is made once per process and sampled at the slide's own coordinates, so that neighbouring blocks meet
without a seam whatever order they are painted in. Together the textures take about 20 MB.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import Region

FloatImage = npt.NDArray[np.float32]

SIDE_PX = 1024
"""Period of every texture along both axes, in px."""


@lru_cache(maxsize=16)
def texture(wavelength_x_px: float, wavelength_y_px: float, seed: int) -> FloatImage:
    """Gaussian noise of zero mean and unit variance, smooth at the two wavelengths: (SIDE_PX, SIDE_PX) float32.

    The spectrum of white noise is cut by a Gaussian whose width is one cycle per wavelength along each axis; as the
    cut is made in the Fourier domain, the texture repeats without an edge.
    """
    white = np.random.default_rng(seed).standard_normal((SIDE_PX, SIDE_PX), dtype=np.float32)
    across = np.fft.rfftfreq(SIDE_PX) * wavelength_x_px
    down = np.fft.fftfreq(SIDE_PX) * wavelength_y_px
    spectrum = np.fft.rfft2(white) * np.exp(-0.5 * (across[None, :] ** 2 + down[:, None] ** 2) * 4)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=white.shape).astype(np.float32)
    noise /= noise.std()
    noise.flags.writeable = False
    return noise


def at_region(noise: FloatImage, region: Region) -> FloatImage:
    """The texture at the pixels of ``region``: (height, width) float32."""
    columns = np.arange(region.x, region.right) % SIDE_PX
    rows = np.arange(region.y, region.bottom) % SIDE_PX
    return np.take(np.take(noise, rows, axis=0), columns, axis=1)


def at_points(noise: FloatImage, x_px: FloatImage, y_px: FloatImage) -> FloatImage:
    """The texture at any positions, bilinear: an array of the shape of ``x_px`` and ``y_px``, float32."""
    # cv2.remap keeps coordinates in 16 bits; whole periods are taken off first
    x = x_px - np.floor(x_px.min() / SIDE_PX) * SIDE_PX
    y = y_px - np.floor(y_px.min() / SIDE_PX) * SIDE_PX
    return np.asarray(cv2.remap(noise, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)


def slow_noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> FloatImage:
    """Noise of about unit variance on a coarse map, smooth at ``wavelength`` map px: ``shape`` float32."""
    cell = max(1.0, wavelength / 2)
    rows, columns = (int(side / cell) + 4 for side in shape)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    large = cv2.resize(grid, (round(columns * cell), round(rows * cell)), interpolation=cv2.INTER_CUBIC)
    offset = round(cell)
    return np.ascontiguousarray(large[offset : offset + shape[0], offset : offset + shape[1]], np.float32)
