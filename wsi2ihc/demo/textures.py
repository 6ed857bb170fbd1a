"""Noise textures and outlines of cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import Region

FloatImage = npt.NDArray[np.float32]
Points = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Layer = npt.NDArray[np.uint8]

SIDE_PX = 1024  # period of every texture along both axes, in px


@lru_cache(maxsize=16)
def texture(wavelength_x_px: float, wavelength_y_px: float, seed: int) -> FloatImage:
    """Draw Gaussian noise of zero mean and unit variance, smooth at two wavelengths: (SIDE_PX, SIDE_PX) float32.

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
    """Sample a texture at the pixels of ``region``: (height, width) float32."""
    columns = np.arange(region.x, region.right) % SIDE_PX
    rows = np.arange(region.y, region.bottom) % SIDE_PX
    return np.take(np.take(noise, rows, axis=0), columns, axis=1)


def at_points(noise: FloatImage, x_px: FloatImage, y_px: FloatImage) -> FloatImage:
    """Interpolate a texture at any positions."""
    # cv2.remap keeps coordinates in 16 bits; whole periods are taken off first
    x = x_px - np.floor(x_px.min() / SIDE_PX) * SIDE_PX
    y = y_px - np.floor(y_px.min() / SIDE_PX) * SIDE_PX
    return np.asarray(cv2.remap(noise, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)


def slow_noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> FloatImage:
    """Draw noise of about unit variance, smooth at ``wavelength`` map px: ``shape`` float32."""
    cell = max(1.0, wavelength / 2)
    rows, columns = (int(side / cell) + 4 for side in shape)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    large = cv2.resize(grid, (round(columns * cell), round(rows * cell)), interpolation=cv2.INTER_CUBIC)
    offset = round(cell)
    return np.ascontiguousarray(large[offset : offset + shape[0], offset : offset + shape[1]], np.float32)


_SHIFT = 4  # fractional bits of coordinates in OpenCV's drawing functions


@dataclass(frozen=True, slots=True)
class Shapes:
    """Polygons or polylines of one kind."""

    points: Points  # vertices (x, y) in slide px, (N, K, 2) float32
    values: npt.NDArray[np.uint8]  # strength of each shape, (N,) uint8
    _boxes: Points = field(init=False, repr=False)

    def __post_init__(self) -> None:
        boxes = np.concatenate(
            [self.points.min(axis=1, initial=np.inf), self.points.max(axis=1, initial=-np.inf)], axis=1
        )
        object.__setattr__(self, "_boxes", boxes)

    def drawn_in(self, region: Region) -> Iterator[tuple[npt.NDArray[np.int32], int]]:
        """Yield the shapes near the region, in order, in the fixed-point coordinates that OpenCV draws with."""
        left, top, right, bottom = self._boxes.T
        around = region.grown(4)
        meets = (right > around.x) & (left < around.right) & (bottom > around.y) & (top < around.bottom)
        origin = np.array([region.x, region.y], np.float32)
        fixed_point = np.rint((self.points[meets] - origin) * (1 << _SHIFT)).astype(np.int32)
        yield from zip(fixed_point, self.values[meets].tolist(), strict=True)


def joined(parts: list[Shapes]) -> Shapes:
    """Concatenate collections with the same number of points per shape; all may be empty."""
    parts = [part for part in parts if len(part.values)]
    if not parts:
        return Shapes(np.empty((0, 3, 2), np.float32), np.empty(0, np.uint8))
    return Shapes(np.concatenate([p.points for p in parts]), np.concatenate([p.values for p in parts]))


def filled(shapes: Shapes, region: Region) -> Layer:
    """Draw filled polygons, anti-aliased: (height, width) uint8; later ones cover earlier ones."""
    layer = np.zeros((region.height, region.width), np.uint8)
    for points, value in shapes.drawn_in(region):
        cv2.fillPoly(layer, [points], value, cv2.LINE_AA, _SHIFT)
    return layer


def stroked(shapes: Shapes, region: Region, thickness_px: int, *, closed: bool) -> Layer:
    """Draw the shapes' outlines (``closed``) or open lines: (height, width) uint8."""
    layer = np.zeros((region.height, region.width), np.uint8)
    for points, value in shapes.drawn_in(region):
        cv2.polylines(layer, [points], closed, value, thickness_px, cv2.LINE_AA, _SHIFT)
    return layer


def uneven_walk(
    rng: np.random.Generator, line: Floats, step_px: float, behind_px: float, ahead_px: float
) -> tuple[Floats, Floats]:
    """Draw points at uneven steps along a line (N, 2), and the secant of the line around each: (M, 2) both."""
    travelled = path_lengths(line)
    steps = np.arange(0, travelled[-1], step_px)
    steps = steps + rng.uniform(-0.3, 0.3, len(steps)) * step_px
    at, ahead, behind = (
        np.stack([np.interp(steps + offset, travelled, line[:, axis]) for axis in (0, 1)], axis=1)
        for offset in (0, ahead_px, -behind_px)
    )
    return at, ahead - behind


def path_lengths(line: Floats) -> Floats:
    """Return the distance along a line (N, 2) from its start to each point: (N,)."""
    return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])


def ellipses(
    rng: np.random.Generator,
    centers: Floats,
    half_axes_px: Floats,
    angles: Floats,
    *,
    wobble: float = 0.08,
    bend: float = 0.0,
    points: int = 16,
) -> Points:
    """Draw irregular ellipses: (N, points, 2) float32.

    ``centers`` (N, 2), ``half_axes_px`` (N, 2) with the first along ``angles`` (N,) in radians; ``wobble`` is the
    relative amplitude of the outline's second to fourth harmonic; ``bend`` curves the long axis (of the order of 1).
    """
    count = len(centers)
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = np.ones((count, points))
    for harmonic in (2, 3, 4):
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        radius += wobble / harmonic * rng.standard_normal((count, 1)) * np.cos(harmonic * turn + phase)
    along, across = np.cos(turn) * radius, np.sin(turn) * radius
    across = across + bend * rng.uniform(-1, 1, (count, 1)) * (along**2 - 0.5)
    along, across = along * half_axes_px[:, :1], across * half_axes_px[:, 1:]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x = centers[:, :1] + along * cos - across * sin
    y = centers[:, 1:] + along * sin + across * cos
    return np.stack([x, y], axis=-1).astype(np.float32)


def packed_radii(centers: Floats, wanted_px: Floats, gaps_px: Floats, roundness: float) -> Floats:
    """Limit the radii ``wanted_px`` (N, K) of cells by their neighbors: (N, K) px at K equal steps of angle.

    Each cell stays ``gaps_px`` (N,) / 2 on its own side of the bisector to every neighbor. The two limits are joined
    by a power mean: ``roundness`` 4 gives soft, 12 nearly polygonal cells.
    """
    if not len(centers):
        return wanted_px
    angles = np.linspace(0, 2 * np.pi, wanted_px.shape[1], endpoint=False)
    reach = 2 * wanted_px.max() + gaps_px.max()
    radii = wanted_px.copy()
    for i, center in enumerate(centers):
        offset = centers - center
        distance = np.hypot(offset[:, 0], offset[:, 1])
        near = (distance > 0) & (distance < reach)
        if not near.any():
            continue
        facing = np.cos(angles[None, :] - np.arctan2(offset[near, 1], offset[near, 0])[:, None])
        room = (distance[near] / 2 - gaps_px[i] / 2)[:, None] / np.maximum(facing, 1e-3)
        limit = np.maximum(room.min(axis=0), 4.0)
        radii[i] = (wanted_px[i] ** -roundness + limit**-roundness) ** (-1 / roundness)
    return radii


def softened(radii: Floats, window: int) -> Floats:
    """Average radii (N, K) over ``2 * window + 1`` neighboring angles to round corners."""
    return np.asarray(sum(np.roll(radii, step, axis=1) for step in range(-window, window + 1)) / (2 * window + 1))


def polar(centers: Floats, radii_px: Floats) -> Points:
    """Make closed outlines around ``centers`` (N, 2) with ``radii_px`` (N, K) at K equal steps of angle: (N, K, 2)."""
    angles = np.linspace(0, 2 * np.pi, radii_px.shape[1], endpoint=False)
    x = centers[:, :1] + radii_px * np.cos(angles)
    y = centers[:, 1:] + radii_px * np.sin(angles)
    return np.stack([x, y], axis=-1).astype(np.float32)


def jittered_grid(rng: np.random.Generator, region: Region, spacing_px: float, jitter: float) -> Floats:
    """Draw points of a hexagonal grid over ``region``, moved by up to ``jitter`` × spacing: (N, 2) as (x, y)."""
    rows = np.arange(region.y, region.bottom + spacing_px, spacing_px * 0.866)
    columns = np.arange(region.x, region.right + spacing_px, spacing_px)
    y = np.repeat(rows, len(columns))
    x = np.tile(columns, len(rows)) + np.repeat(np.arange(len(rows)) % 2 * spacing_px / 2, len(columns))
    return np.stack([x, y], axis=1) + rng.uniform(-jitter, jitter, (len(x), 2)) * spacing_px
