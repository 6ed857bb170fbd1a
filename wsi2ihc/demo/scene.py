"""The things on the synthetic slide: crypts, vessels, fat, and every nucleus, as polygons.

Sizes are in px of 0.5 µm: a crypt is 60 to 120 µm across, a nucleus 6 to 10 µm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt

from .crypts import crypts, surface_epithelium
from .layout import STEP_PX, ZONES, Layout
from .noise import FloatImage, slow_noise
from .shapes import Floats, Points, Shapes, ellipses, jittered_lattice, joined, packed_radii, polar

PX_PER_MM2 = 2000**2
OUTLINE_POINTS = 48

FAT_CELL_SPACING_PX = 118.0
VESSELS_PER_MM2 = 9.0

FABRIC = ("eosin", "fine", "broad", "haematoxylin", "cleft")
"""The properties of a `Zone` that its fibres have."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that is drawn, in the order in which it is painted.

    layout:      the coarse maps
    flow_px:     coarse map whose level lines are the fibres; its slope is about 1 per px
    fabric:      coarse maps of the zones' properties (the names of `FABRIC`), mixed where zones meet
    fat:         fat cells
    walls:       muscular walls of vessels
    glands:      epithelium of the crypts, lumen included
    goblets:     mucin of goblet cells
    lumens:      hollow insides of crypts and vessels
    red_cells:   erythrocytes
    rims:        outlines that stain: basement membranes, brush borders, membranes of fat cells
    borders:     lines between epithelial cells
    nuclei:      all nuclei; their value is how dense they are
    """

    layout: Layout
    flow_px: FloatImage
    fabric: Mapping[str, FloatImage]
    fat: Shapes
    walls: Shapes
    glands: Shapes
    goblets: Shapes
    lumens: Shapes
    red_cells: Shapes
    rims: Shapes
    borders: Shapes
    nuclei: Shapes


def populate(layout: Layout, rng: np.random.Generator) -> Scene:
    """Fill the layout with things; the same generator state gives the same scene."""
    glands = crypts(layout, rng)
    surface = surface_epithelium(layout, rng)
    fat = _fat(layout, rng)
    walls, lumens, red_cells, wall_nuclei = _vessels(layout, fat, rng)
    occupied = np.zeros(layout.depth_px.shape, np.uint8)
    for shapes in (glands.outlines, walls, fat):
        _stamp(occupied, shapes.points)
    flow = _flow(layout, occupied, rng)
    return Scene(
        layout=layout,
        flow_px=flow,
        fabric=MappingProxyType({name: _per_zone(layout, name) for name in FABRIC}),
        fat=fat,
        walls=walls,
        glands=glands.outlines,
        goblets=joined([glands.goblets, surface.goblets]),
        lumens=joined([glands.lumens, lumens]),
        red_cells=red_cells,
        rims=joined([glands.outlines, glands.lumens, fat]),
        borders=joined([glands.borders, surface.borders]),
        nuclei=joined([_stroma(layout, flow, occupied, rng), wall_nuclei, glands.nuclei, surface.nuclei]),
    )


def _stamp(occupied: npt.NDArray[np.uint8], points: Points) -> None:
    for outline in np.rint(points / STEP_PX * 16).astype(np.int32):
        cv2.fillPoly(occupied, [outline], 1, cv2.LINE_8, 4)


def _per_zone(layout: Layout, name: str) -> FloatImage:
    """Coarse map of one property of the zones, mixed where they meet."""
    mixed = np.zeros_like(layout.depth_px)
    for zone, share in layout.zones.items():
        mixed += share * np.float32(getattr(ZONES[zone], name))
    return mixed


def _flow(layout: Layout, occupied: npt.NDArray[np.uint8], rng: np.random.Generator) -> FloatImage:
    """Fibres run along the wall's layers, in waves, and bend around glands and vessels."""
    shape = layout.depth_px.shape
    around = cv2.distanceTransform(1 - occupied, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * np.float32(STEP_PX)
    around = cv2.GaussianBlur(np.minimum(around, 70), (0, 0), 1.5)
    waves = 28 * slow_noise(rng, shape, 420 / STEP_PX) + 9 * slow_noise(rng, shape, 130 / STEP_PX)
    return np.asarray(np.minimum(layout.depth_px, 6000) + 0.6 * around + waves, np.float32)


def _fat(layout: Layout, rng: np.random.Generator) -> Shapes:
    """Lobules of fat cells in the submucosa."""
    blobs = slow_noise(rng, layout.depth_px.shape, 700 / STEP_PX)
    centres = jittered_lattice(rng, layout.frame, FAT_CELL_SPACING_PX, 0.22)
    inside = (
        (layout.at(layout.zones["submucosa"], centres) > 0.99)
        & (layout.at(blobs, centres) > 0.9)
        & (layout.at(layout.tissue_px, centres) > 60)
    )
    centres = centres[inside]
    wanted = np.full((len(centres), OUTLINE_POINTS), 66.0)
    radii = packed_radii(centres, wanted, np.full(len(centres), 5.0), roundness=9)
    return Shapes(polar(centres, radii), np.full(len(centres), 255, np.uint8))


def _vessels(layout: Layout, fat: Shapes, rng: np.random.Generator) -> tuple[Shapes, Shapes, Shapes, Shapes]:
    """Walls, lumens, erythrocytes and wall nuclei of vessels in the submucosa."""
    spacing = (PX_PER_MM2 / VESSELS_PER_MM2) ** 0.5
    centres = jittered_lattice(rng, layout.frame, spacing, 0.4)
    free = (layout.at(layout.zones["submucosa"], centres) > 0.99) & (layout.at(layout.tissue_px, centres) > 200)
    if len(fat.points):
        to_fat = np.linalg.norm(centres[:, None] - fat.points.mean(axis=1)[None], axis=2).min(axis=1)
        free &= to_fat > 210
    centres = centres[free]
    count = len(centres)
    half = rng.uniform(38, 120, (count, 1)) * rng.uniform(0.65, 1.0, (count, 2))
    angles = rng.uniform(0, np.pi, count)
    outer = ellipses(rng, centres, half, angles, wobble=0.12, points=OUTLINE_POINTS)
    thickness = rng.uniform(0.16, 0.42, (count, 1, 1))
    inner = centres[:, None] + (outer - centres[:, None]) * (1 - thickness)
    strength = np.full(count, 255, np.uint8)
    red_cells, nuclei = [], []
    for i in range(count):
        filling = rng.choice([0.0, 0.25, 0.8])
        red_cells.append(_red_cells(centres[i], inner[i], filling, rng))
        width = thickness[i, 0, 0] * half[i].mean()
        # lining of the lumen; muscle, where there is room for it; adventitia
        for share, step_px in ((0.97, 36), (0.55, 30), (0.1, 48)) if width > 20 else ((0.9, 36),):
            ring = outer[i] + (inner[i] - outer[i]) * share
            nuclei.append(_ring_nuclei(ring.astype(float), step_px, rng))
    walls = Shapes(outer, strength)
    return walls, Shapes(inner.astype(np.float32), strength), joined(red_cells), joined(nuclei)


def _red_cells(centre: Floats, lumen: Floats, filling: float, rng: np.random.Generator) -> Shapes:
    """Erythrocytes, 7 µm across, over a share of a vessel's lumen."""
    reach = np.linalg.norm(lumen - centre, axis=1)
    count = int(filling * np.pi * (reach**2).mean() / 150)
    turn = rng.uniform(0, 2 * np.pi, count)
    limit = np.interp(turn, np.linspace(0, 2 * np.pi, len(reach), endpoint=False), reach, period=2 * np.pi)
    away = np.sqrt(rng.uniform(0, 1, count)) * (limit - 8)
    points = centre + np.stack([np.cos(turn), np.sin(turn)], axis=1) * away[:, None]
    half = rng.uniform(5.5, 7.5, (count, 1)) * rng.uniform(0.75, 1, (count, 2))
    outline = ellipses(rng, points, half, rng.uniform(0, np.pi, count), points=12)
    return Shapes(outline, rng.integers(150, 255, count, dtype=np.uint8))


def _ring_nuclei(ring: Floats, step_px: float, rng: np.random.Generator) -> Shapes:
    """Flat nuclei along a closed line."""
    closed = np.concatenate([ring, ring[:1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.arange(0, along[-1], step_px)
    at = at + rng.uniform(-0.3, 0.3, len(at)) * step_px
    centres = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    ahead = np.stack([np.interp(at + 3, along, closed[:, axis]) for axis in (0, 1)], axis=1) - centres
    half = np.stack([rng.uniform(8, 14, len(at)), rng.uniform(2.2, 3.6, len(at))], axis=1)
    outline = ellipses(rng, centres, half, np.arctan2(ahead[:, 1], ahead[:, 0]), bend=0.3)
    return Shapes(outline, rng.integers(150, 235, len(at), dtype=np.uint8))


def _stroma(layout: Layout, flow: FloatImage, occupied: npt.NDArray[np.uint8], rng: np.random.Generator) -> Shapes:
    """Nuclei between the glands: round ones of lymphocytes and plasma cells, long ones along the fibres."""
    blocked = cv2.dilate(occupied, np.ones((3, 3), np.uint8)).astype(np.float32)
    down, across = np.gradient(cv2.GaussianBlur(flow, (0, 0), 1.5))
    along_fibre = (np.arctan2(down, across) + np.pi / 2).astype(np.float32)
    # immune cells come in crowds
    crowding = np.exp(0.55 * slow_noise(rng, flow.shape, 260 / STEP_PX)).astype(np.float32)
    parts = []
    for kind in ("round", "spindle"):
        density = _per_zone(layout, f"{kind}_cells")
        if kind == "round":
            density = np.where(layout.zones["follicle"] > 0.5, density, density * crowding)
        centres = _scattered(layout, (density / PX_PER_MM2).astype(np.float32), rng)
        free = (layout.at(blocked, centres) == 0) & (layout.at(layout.depth_px, centres) > 64)
        centres = centres[free & (layout.at(layout.tissue_px, centres) > 4)]
        angles = layout.at(along_fibre, centres).astype(float)
        parts.append(_round_nuclei(centres, rng) if kind == "round" else _spindle_nuclei(centres, angles, rng))
    return joined(parts[::-1])


def _scattered(layout: Layout, per_px: FloatImage, rng: np.random.Generator) -> Floats:
    """Points at a given density, none very close to another: (N, 2) px."""
    greatest = float(per_px.max())
    if greatest <= 0:
        return np.empty((0, 2))
    centres = jittered_lattice(rng, layout.frame, (1 / (0.866 * greatest)) ** 0.5, 0.36)
    return centres[rng.uniform(0, greatest, len(centres)) < layout.at(per_px, centres)]


def _round_nuclei(centres: Floats, rng: np.random.Generator) -> Shapes:
    count = len(centres)
    half = rng.normal(6.3, 0.7, (count, 1)).clip(4.8, 8.5) * rng.uniform(0.78, 1.0, (count, 2))
    outline = ellipses(rng, centres, half, rng.uniform(0, np.pi, count), wobble=0.10)
    return Shapes(outline, rng.normal(212, 28, count).clip(120, 255).astype(np.uint8))


def _spindle_nuclei(centres: Floats, angles: Floats, rng: np.random.Generator) -> Shapes:
    count = len(centres)
    half = np.stack([rng.uniform(9, 17, count), rng.uniform(2.2, 4.4, count)], axis=1)
    outline = ellipses(rng, centres, half, angles + rng.normal(0, 0.22, count), wobble=0.12, bend=0.35)
    return Shapes(outline, rng.normal(175, 30, count).clip(90, 245).astype(np.uint8))
