"""Outlines of cells and glands as polygons, and how they are packed and painted."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import Region

Points = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Layer = npt.NDArray[np.uint8]

_SHIFT = 4  # fractional bits of the coordinates that cv2 draws with


@dataclass(frozen=True, slots=True)
class Shapes:
    """Polygons or polylines of one kind.

    points: (N, K, 2) float32, (x, y) in slide px
    values: (N,) uint8, the strength that each is painted with
    """

    points: Points
    values: npt.NDArray[np.uint8]
    _boxes: Points = field(init=False, repr=False)

    def __post_init__(self) -> None:
        boxes = np.concatenate(
            [self.points.min(axis=1, initial=np.inf), self.points.max(axis=1, initial=-np.inf)], axis=1
        )
        object.__setattr__(self, "_boxes", boxes)

    def near(self, region: Region, margin_px: int = 4) -> Shapes:
        """Those whose bounding box meets the region grown by a margin, in their order."""
        left, top, right, bottom = self._boxes.T
        around = region.grown(margin_px)
        meets = (right > around.x) & (left < around.right) & (bottom > around.y) & (top < around.bottom)
        return Shapes(self.points[meets], self.values[meets])


def no_shapes(points: int = 3) -> Shapes:
    """An empty collection."""
    return Shapes(np.empty((0, points, 2), np.float32), np.empty(0, np.uint8))


def joined(parts: list[Shapes]) -> Shapes:
    """All shapes of several collections with the same number of points each; empty where there are none."""
    parts = [part for part in parts if len(part.values)]
    if not parts:
        return no_shapes()
    return Shapes(np.concatenate([p.points for p in parts]), np.concatenate([p.values for p in parts]))


def filled(shapes: Shapes, region: Region) -> Layer:
    """The shapes as filled polygons, anti-aliased: (height, width) uint8; later ones cover earlier ones."""
    layer = np.zeros((region.height, region.width), np.uint8)
    here = shapes.near(region)
    for points, value in zip(_fixed_point(here.points, region), here.values.tolist(), strict=True):
        cv2.fillPoly(layer, [points], value, cv2.LINE_AA, _SHIFT)
    return layer


def stroked(shapes: Shapes, region: Region, layer: Layer, thickness_px: int, closed: bool) -> None:
    """Draw the shapes' outlines (``closed``) or open lines into ``layer``."""
    here = shapes.near(region)
    for points, value in zip(_fixed_point(here.points, region), here.values.tolist(), strict=True):
        cv2.polylines(layer, [points], closed, value, thickness_px, cv2.LINE_AA, _SHIFT)


def _fixed_point(points: Points, region: Region) -> npt.NDArray[np.int32]:
    origin = np.array([region.x, region.y], np.float32)
    return np.asarray(np.rint((points - origin) * (1 << _SHIFT)), np.int32)


def ellipses(
    rng: np.random.Generator,
    centres: Floats,
    half_axes_px: Floats,
    angles: Floats,
    *,
    wobble: float = 0.08,
    bend: float = 0.0,
    points: int = 16,
) -> Points:
    """Irregular ellipses: (N, points, 2) float32.

    ``centres`` (N, 2), ``half_axes_px`` (N, 2) with the first along ``angles`` (N,) in radians; ``wobble`` is the
    relative amplitude of the outline's second to fourth harmonic; ``bend`` curves the long axis (of the order of 1).
    """
    count = len(centres)
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = np.ones((count, points))
    for harmonic in (2, 3, 4):
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        radius += wobble / harmonic * rng.standard_normal((count, 1)) * np.cos(harmonic * turn + phase)
    along, across = np.cos(turn) * radius, np.sin(turn) * radius
    across = across + bend * rng.uniform(-1, 1, (count, 1)) * (along**2 - 0.5)
    along, across = along * half_axes_px[:, :1], across * half_axes_px[:, 1:]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x = centres[:, :1] + along * cos - across * sin
    y = centres[:, 1:] + along * sin + across * cos
    return np.stack([x, y], axis=-1).astype(np.float32)


def packed_radii(centres: Floats, wanted_px: Floats, gaps_px: Floats, roundness: float) -> Floats:
    """Radii of cells that share the plane with their neighbours: (N, K) px at K equal steps of angle.

    Each cell would like the radii ``wanted_px`` (N, K), and stays ``gaps_px`` (N,) / 2 on its own side of the
    bisector to every neighbour. The two limits are joined by a power mean: ``roundness`` 4 gives soft, 12 nearly
    polygonal cells.
    """
    if not len(centres):
        return wanted_px
    angles = np.linspace(0, 2 * np.pi, wanted_px.shape[1], endpoint=False)
    reach = 2 * wanted_px.max() + gaps_px.max()
    radii = wanted_px.copy()
    for i, centre in enumerate(centres):
        offset = centres - centre
        distance = np.hypot(offset[:, 0], offset[:, 1])
        near = (distance > 0) & (distance < reach)
        if not near.any():
            continue
        facing = np.cos(angles[None, :] - np.arctan2(offset[near, 1], offset[near, 0])[:, None])
        room = (distance[near] / 2 - gaps_px[i] / 2)[:, None] / np.maximum(facing, 1e-3)
        limit = np.maximum(room.min(axis=0), 4.0)
        radii[i] = (wanted_px[i] ** -roundness + limit**-roundness) ** (-1 / roundness)
    return radii


def softened(radii: Floats, reach: int) -> Floats:
    """Radii (N, K) averaged over ``2 * reach + 1`` neighbouring angles: corners become round."""
    return np.asarray(sum(np.roll(radii, step, axis=1) for step in range(-reach, reach + 1)) / (2 * reach + 1))


def polar(centres: Floats, radii_px: Floats) -> Points:
    """Closed outlines about ``centres`` (N, 2) with ``radii_px`` (N, K) at K equal steps of angle: (N, K, 2)."""
    angles = np.linspace(0, 2 * np.pi, radii_px.shape[1], endpoint=False)
    x = centres[:, :1] + radii_px * np.cos(angles)
    y = centres[:, 1:] + radii_px * np.sin(angles)
    return np.stack([x, y], axis=-1).astype(np.float32)


def jittered_lattice(rng: np.random.Generator, region: Region, spacing_px: float, jitter: float) -> Floats:
    """Points of a hexagonal lattice over ``region``, each moved by up to ``jitter`` × spacing: (N, 2) as (x, y)."""
    rows = np.arange(region.y, region.bottom + spacing_px, spacing_px * 0.866)
    columns = np.arange(region.x, region.right + spacing_px, spacing_px)
    y = np.repeat(rows, len(columns))
    x = np.tile(columns, len(rows)) + np.repeat(np.arange(len(rows)) % 2 * spacing_px / 2, len(columns))
    return np.stack([x, y], axis=1) + rng.uniform(-jitter, jitter, (len(x), 2)) * spacing_px
