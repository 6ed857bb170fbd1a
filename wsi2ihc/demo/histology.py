"""Structures of the synthetic slide as polygons: crypts, vessels, fat and nuclei."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from .layout import STEP_PX, SURFACE_EPITHELIUM_PX, ZONES, SlideLayout
from .textures import (
    FloatImage,
    Floats,
    Points,
    Shapes,
    ellipses,
    jittered_grid,
    joined,
    packed_radii,
    path_lengths,
    polar,
    slow_noise,
    softened,
    uneven_walk,
)

PX_PER_MM2 = 2000**2
CRYPT_SPACING_PX = 208.0
CELL_WIDTH_PX = 13.5
GOBLET_WIDTH_PX = 18.0
FAT_CELL_SPACING_PX = 118.0
VESSELS_PER_MM2 = 9.0
OUTLINE_POINTS = 48
_TURN = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)


@dataclass(frozen=True, slots=True)
class Structures:
    """Everything that is drawn, in the order of painting."""

    layout: SlideLayout  # coarse maps
    flow_px: FloatImage  # coarse map whose level lines are the fibers, with a slope of about 1 per px
    fabric: Mapping[str, FloatImage]  # coarse maps of the properties of a `Zone`, mixed where zones meet
    fat: Shapes  # fat cells
    walls: Shapes  # muscular walls of vessels
    glands: Shapes  # epithelium of the crypts, including the lumen
    goblets: Shapes  # mucin of goblet cells
    lumens: Shapes  # lumens of crypts and vessels
    red_cells: Shapes  # erythrocytes
    rims: Shapes  # stained outlines: basement membranes, brush borders, membranes of fat cells
    borders: Shapes  # lines between epithelial cells
    nuclei: Shapes  # all nuclei; their value is the density


def populate(layout: SlideLayout, rng: np.random.Generator) -> Structures:
    """Populate a layout with structures; reproducible for the same state of ``rng``."""
    crypts, crypt_lumens, crypt_cells = _crypts(layout, rng)
    cells = joined_cells([crypt_cells, _surface_epithelium(layout, rng)])
    fat = _fat(layout, rng)
    walls, lumens, red_cells, wall_nuclei = _vessels(layout, fat, rng)
    occupied = np.zeros(layout.depth_px.shape, np.uint8)
    for shapes in (crypts, walls, fat):
        for outline in np.rint(shapes.points / STEP_PX * 16).astype(np.int32):
            cv2.fillPoly(occupied, [outline], 1, cv2.LINE_8, 4)
    flow = _flow(layout, occupied, rng)
    fabric = {name: _per_zone(layout, name) for name in ("eosin", "fine", "broad", "hematoxylin", "cleft")}
    return Structures(
        layout=layout,
        flow_px=flow,
        fabric=fabric,
        fat=fat,
        walls=walls,
        glands=crypts,
        goblets=cells.goblets,
        lumens=joined([crypt_lumens, lumens]),
        red_cells=red_cells,
        rims=joined([crypts, crypt_lumens, fat]),
        borders=cells.borders,
        nuclei=joined([_stroma(layout, flow, occupied, rng), wall_nuclei, cells.nuclei]),
    )


class Cells(NamedTuple):
    """Cells of an epithelium: nuclei, mucin of goblet cells, borders between cells."""

    nuclei: Shapes
    goblets: Shapes
    borders: Shapes


def joined_cells(parts: list[Cells]) -> Cells:
    """Concatenate the cells of several epithelia."""
    return Cells(*(joined([part[kind] for part in parts]) for kind in range(3)))


def _crypts(layout: SlideLayout, rng: np.random.Generator) -> tuple[Shapes, Shapes, Cells]:
    """Draw outlines, lumens and cells of crypts in the mucosa, packed side by side with stroma in between."""
    centers = _crypt_centers(layout, rng)
    if not len(centers):
        return joined([]), joined([]), joined_cells([])
    outer = packed_radii(centers, _wanted_radii(layout, centers, rng), rng.uniform(12, 34, len(centers)), roundness=4)
    outer = softened(outer, 2)
    openness = rng.beta(2, 4, (len(centers), 1)) * 0.38 + 0.10
    inner = outer * openness
    for harmonic in (2, 3, 4, 6):
        phase = rng.uniform(0, 2 * np.pi, (len(centers), 1))
        wave = rng.standard_normal((len(centers), 1)) * np.cos(harmonic * _TURN + phase)
        inner = inner * (1 + 0.22 / harmonic**0.5 * wave)
    inner = np.clip(inner, 0.08 * outer, outer - 34)
    cells = []
    for center, far, near in zip(centers, outer, inner, strict=True):
        wall = _Wall(center, far, near)
        cells.append(Cells(_basal_nuclei(wall, rng), _goblets(wall, rng.uniform(0.55, 1.0), rng), _borders(wall, rng)))
    return _solid(polar(centers, outer)), _solid(polar(centers, inner)), joined_cells(cells)


def _solid(points: Points) -> Shapes:
    return Shapes(points, np.full(len(points), 255, np.uint8))


@dataclass(frozen=True, slots=True)
class _Wall:
    """Wall of a crypt: center (2,), outer and inner radii in px at equal steps of angle."""

    center: Floats
    outer: Floats
    inner: Floats

    def radii(self, turn: Floats) -> tuple[Floats, Floats]:
        """Interpolate the outer and inner radius at angles."""
        outer, inner = (np.interp(turn, _TURN, radii, period=2 * np.pi) for radii in (self.outer, self.inner))
        return outer, inner

    def points(self, turn: Floats, radius: Floats) -> Floats:
        return self.center + np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]

    def outward(self, turn: Floats) -> Floats:
        """Return the outward normal of the outline, in radians."""
        step = 0.05
        ahead, behind = self.radii(turn + step)[0], self.radii(turn - step)[0]
        slope = (ahead - behind) / (2 * step * self.radii(turn)[0])
        return turn - 0.7 * np.arctan(slope)

    def turns(self, width_px: float, share: float, rng: np.random.Generator) -> Floats:
        """Draw angles of cells ``width_px`` wide at ``share`` of the outer radius, at uneven distances."""
        # equal steps along the outline are unequal steps of angle where it is far from round
        fine = np.linspace(0, 2 * np.pi, 256)
        travelled = path_lengths(self.points(fine, self.radii(fine)[0]))
        count = max(6, int(share * travelled[-1] / width_px))
        at = (np.arange(count) + rng.uniform(-0.28, 0.28, count)) / count * travelled[-1]
        return np.asarray(np.interp(at % travelled[-1], travelled, fine), np.float64)


def _crypt_centers(layout: SlideLayout, rng: np.random.Generator) -> Floats:
    """Draw centers of crypts, (N, 2) px: a jittered grid over the mucosa, a few missing."""
    centers = jittered_grid(rng, layout.frame, CRYPT_SPACING_PX, 0.17)
    fits = (
        (layout.at(layout.zones["lamina propria"], centers) > 0.9)
        & (layout.at(layout.depth_px, centers) > 150)
        & (layout.at(layout.tissue_px, centers) > 105)
    )
    fits &= layout.at(layout.zones["lamina propria"], centers + np.array([0.0, 75.0])) > 0.5
    return centers[fits & (rng.uniform(0, 1, len(centers)) > 0.05)]


def _wanted_radii(layout: SlideLayout, centers: Floats, rng: np.random.Generator) -> Floats:
    """Draw radii of crypts without neighbors: ovals perpendicular to the surface, (N, OUTLINE_POINTS) px."""
    count = len(centers)
    steps = 24.0 * np.eye(2)
    slope = [layout.at(layout.depth_px, centers + s) - layout.at(layout.depth_px, centers - s) for s in steps]
    lengthwise = np.arctan2(slope[1], slope[0])[:, None] + rng.normal(0, 0.35, (count, 1))
    long = rng.uniform(1.0, 1.7, (count, 1))
    short = rng.uniform(64, 118, (count, 1))
    cos, sin = np.cos(_TURN - lengthwise), np.sin(_TURN - lengthwise)
    radius = short / np.sqrt((cos / long) ** 2 + sin**2)
    for harmonic in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        radius = radius * (1 + 0.07 / harmonic * rng.standard_normal((count, 1)) * np.cos(harmonic * _TURN + phase))
    room = np.minimum(
        layout.at(layout.depth_px, centers) - SURFACE_EPITHELIUM_PX - 22, layout.at(layout.tissue_px, centers) - 20
    )
    return np.asarray(np.minimum(radius, np.maximum(room, 48)[:, None]), np.float64)


def _basal_nuclei(wall: _Wall, rng: np.random.Generator) -> Shapes:
    """Draw a row of long nuclei along the outside of the wall."""
    turn = wall.turns(CELL_WIDTH_PX, 0.86, rng)
    outer, inner = wall.radii(turn)
    count = len(turn)
    half = np.stack([rng.normal(9.6, 1.1, count).clip(7, 12.5), rng.normal(5.6, 0.6, count).clip(4.2, 7.2)], axis=1)
    depth = 3.0 + half[:, 0] + np.abs(rng.normal(0, 3.5, count))
    depth = np.minimum(depth, np.maximum(outer - inner - half[:, 0] - 3, 10))
    outline = ellipses(
        rng, wall.points(turn, outer - depth), half, wall.outward(turn) + rng.normal(0, 0.14, count), wobble=0.09
    )
    return Shapes(outline, rng.normal(140, 24, count).clip(80, 215).astype(np.uint8))


def _goblets(wall: _Wall, share: float, rng: np.random.Generator) -> Shapes:
    """Draw drops of mucin between the nuclei and the lumen."""
    turn = wall.turns(GOBLET_WIDTH_PX, 0.55, rng)
    turn = turn[rng.uniform(0, 1, len(turn)) < share]
    outer, inner = wall.radii(turn)
    room = outer - inner - 27
    keep = room > 14
    turn, outer, inner, room = turn[keep], outer[keep], inner[keep], room[keep]
    count = len(turn)
    half_length = np.minimum(room / 2, rng.normal(17, 3, count).clip(9, 26))
    spare = np.maximum(room - 2 * half_length, 0)
    radius = inner + 2 + half_length + spare * rng.uniform(0, 0.7, count)
    between = radius * 2 * np.pi / max(count / share, 1)
    half_width = np.minimum(rng.normal(9.4, 1.4, count).clip(6, 13), np.maximum(0.68 * between, 5))
    outline = ellipses(
        rng,
        wall.points(turn, radius),
        np.stack([half_length, half_width], axis=1),
        wall.outward(turn) + rng.normal(0, 0.06, count),
        wobble=0.07,
    )
    return Shapes(outline, rng.integers(190, 255, count, dtype=np.uint8))


def _borders(wall: _Wall, rng: np.random.Generator) -> Shapes:
    """Draw lines between neighboring cells, from the base to the lumen: (N, 2, 2)."""
    turn = wall.turns(CELL_WIDTH_PX * 1.15, 0.8, rng)
    outer, inner = wall.radii(turn)
    ends = np.stack([wall.points(turn, outer - 4), wall.points(turn + rng.normal(0, 0.03, len(turn)), inner)], axis=1)
    return Shapes(ends.astype(np.float32), rng.integers(60, 150, len(turn), dtype=np.uint8))


def _surface_epithelium(layout: SlideLayout, rng: np.random.Generator) -> Cells:
    """Draw the cells of the surface epithelium (its cytoplasm follows the depth map)."""
    cells = []
    for line in layout.surface:
        at, inward = _along_surface(layout, line, 13.5, rng)
        angle = np.arctan2(inward[:, 1], inward[:, 0])
        count = len(at)
        deep = 30 + rng.normal(0, 3.5, count)
        half = np.stack([rng.normal(9.5, 1.1, count).clip(7, 12), rng.normal(5.3, 0.6, count).clip(4, 7)], axis=1)
        outline = ellipses(rng, at + inward * deep[:, None], half, angle + rng.normal(0, 0.15, count), wobble=0.09)
        nuclei = Shapes(outline, rng.normal(140, 24, count).clip(80, 215).astype(np.uint8))
        ends = np.stack([at + inward * 2, at + inward * 42], axis=1)
        borders = Shapes(ends.astype(np.float32), rng.integers(50, 130, count, dtype=np.uint8))
        at, inward = _along_surface(layout, line, 44, rng)
        half = np.stack([rng.uniform(8, 11, len(at)), rng.uniform(5.5, 8, len(at))], axis=1)
        outline = ellipses(rng, at + inward * 11, half, np.arctan2(inward[:, 1], inward[:, 0]))
        cells.append(Cells(nuclei, Shapes(outline, rng.integers(190, 255, len(at), dtype=np.uint8)), borders))
    return joined_cells(cells)


def _along_surface(
    layout: SlideLayout, line: Floats, step_px: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw points at uneven steps along a free surface, and unit vectors into the tissue: (N, 2) each."""
    at, along = uneven_walk(rng, line, step_px, 30, 30)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    inside = layout.at(layout.tissue_px, at + 40 * normal) > layout.at(layout.tissue_px, at - 40 * normal)
    return at, np.where(inside[:, None], normal, -normal)


def _per_zone(layout: SlideLayout, name: str) -> FloatImage:
    """Return the coarse map of a property of the zones, mixed where they meet."""
    mixed = np.zeros_like(layout.depth_px)
    for zone, share in layout.zones.items():
        mixed += share * np.float32(getattr(ZONES[zone], name))
    return mixed


def _flow(layout: SlideLayout, occupied: npt.NDArray[np.uint8], rng: np.random.Generator) -> FloatImage:
    """Draw the flow of fibers along the layers of the wall, in waves, and around glands and vessels."""
    shape = layout.depth_px.shape
    around = cv2.distanceTransform(1 - occupied, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * np.float32(STEP_PX)
    around = cv2.GaussianBlur(np.minimum(around, 70), (0, 0), 1.5)
    waves = 28 * slow_noise(rng, shape, 420 / STEP_PX) + 9 * slow_noise(rng, shape, 130 / STEP_PX)
    return np.asarray(np.minimum(layout.depth_px, 6000) + 0.6 * around + waves, np.float32)


def _fat(layout: SlideLayout, rng: np.random.Generator) -> Shapes:
    """Draw lobules of fat cells in the submucosa."""
    blobs = slow_noise(rng, layout.depth_px.shape, 700 / STEP_PX)
    centers = jittered_grid(rng, layout.frame, FAT_CELL_SPACING_PX, 0.22)
    inside = (
        (layout.at(layout.zones["submucosa"], centers) > 0.99)
        & (layout.at(blobs, centers) > 0.9)
        & (layout.at(layout.tissue_px, centers) > 60)
    )
    centers = centers[inside]
    wanted = np.full((len(centers), OUTLINE_POINTS), 66.0)
    radii = packed_radii(centers, wanted, np.full(len(centers), 5.0), roundness=9)
    return _solid(polar(centers, radii))


def _vessels(layout: SlideLayout, fat: Shapes, rng: np.random.Generator) -> tuple[Shapes, Shapes, Shapes, Shapes]:
    """Draw walls, lumens, erythrocytes and wall nuclei of vessels in the submucosa."""
    spacing = (PX_PER_MM2 / VESSELS_PER_MM2) ** 0.5
    centers = jittered_grid(rng, layout.frame, spacing, 0.4)
    free = (layout.at(layout.zones["submucosa"], centers) > 0.99) & (layout.at(layout.tissue_px, centers) > 200)
    if len(fat.points):
        to_fat = np.linalg.norm(centers[:, None] - fat.points.mean(axis=1)[None], axis=2).min(axis=1)
        free &= to_fat > 210
    centers = centers[free]
    count = len(centers)
    half = rng.uniform(38, 120, (count, 1)) * rng.uniform(0.65, 1.0, (count, 2))
    angles = rng.uniform(0, np.pi, count)
    outer = ellipses(rng, centers, half, angles, wobble=0.12, points=OUTLINE_POINTS)
    thickness = rng.uniform(0.16, 0.42, (count, 1, 1))
    inner = centers[:, None] + (outer - centers[:, None]) * (1 - thickness)
    red_cells, nuclei = [], []
    for i in range(count):
        filling = rng.choice([0.0, 0.25, 0.8])
        red_cells.append(_red_cells(centers[i], inner[i], filling, rng))
        width = thickness[i, 0, 0] * half[i].mean()
        # lining of the lumen; muscle, where there is room for it; adventitia
        for share, step_px in ((0.97, 36), (0.55, 30), (0.1, 48)) if width > 20 else ((0.9, 36),):
            ring = outer[i] + (inner[i] - outer[i]) * share
            nuclei.append(_ring_nuclei(ring.astype(float), step_px, rng))
    return _solid(outer), _solid(inner.astype(np.float32)), joined(red_cells), joined(nuclei)


def _red_cells(center: Floats, lumen: Floats, filling: float, rng: np.random.Generator) -> Shapes:
    """Draw erythrocytes, 7 µm across, over part of the lumen of a vessel."""
    reach = np.linalg.norm(lumen - center, axis=1)
    count = int(filling * np.pi * (reach**2).mean() / 150)
    turn = rng.uniform(0, 2 * np.pi, count)
    limit = np.interp(turn, _TURN, reach, period=2 * np.pi)
    away = np.sqrt(rng.uniform(0, 1, count)) * (limit - 8)
    points = center + np.stack([np.cos(turn), np.sin(turn)], axis=1) * away[:, None]
    half = rng.uniform(5.5, 7.5, (count, 1)) * rng.uniform(0.75, 1, (count, 2))
    outline = ellipses(rng, points, half, rng.uniform(0, np.pi, count), points=12)
    return Shapes(outline, rng.integers(150, 255, count, dtype=np.uint8))


def _ring_nuclei(ring: Floats, step_px: float, rng: np.random.Generator) -> Shapes:
    """Draw flat nuclei along a closed line."""
    centers, ahead = uneven_walk(rng, np.concatenate([ring, ring[:1]]), step_px, 0, 3)
    count = len(centers)
    half = np.stack([rng.uniform(8, 14, count), rng.uniform(2.2, 3.6, count)], axis=1)
    outline = ellipses(rng, centers, half, np.arctan2(ahead[:, 1], ahead[:, 0]), bend=0.3)
    return Shapes(outline, rng.integers(150, 235, count, dtype=np.uint8))


def _stroma(layout: SlideLayout, flow: FloatImage, occupied: npt.NDArray[np.uint8], rng: np.random.Generator) -> Shapes:
    """Draw nuclei between the glands: round ones of lymphocytes and plasma cells, spindles along the fibers."""
    blocked = cv2.dilate(occupied, np.ones((3, 3), np.uint8)).astype(np.float32)
    down, across = np.gradient(cv2.GaussianBlur(flow, (0, 0), 1.5))
    along_fiber = (np.arctan2(down, across) + np.pi / 2).astype(np.float32)
    # immune cells form clusters
    crowding = np.exp(0.55 * slow_noise(rng, flow.shape, 260 / STEP_PX)).astype(np.float32)
    density = _per_zone(layout, "round_cells")
    density = np.where(layout.zones["follicle"] > 0.5, density, density * crowding)

    def scattered(density: FloatImage) -> Floats:
        """Draw free places of a density per mm², none very close to another: (N, 2) px."""
        per_px = (density / PX_PER_MM2).astype(np.float32)
        greatest = float(per_px.max())
        if greatest <= 0:
            return np.empty((0, 2))
        centers = jittered_grid(rng, layout.frame, (1 / (0.866 * greatest)) ** 0.5, 0.36)
        centers = centers[rng.uniform(0, greatest, len(centers)) < layout.at(per_px, centers)]
        free = (layout.at(blocked, centers) == 0) & (layout.at(layout.depth_px, centers) > 64)
        return np.asarray(centers[free & (layout.at(layout.tissue_px, centers) > 4)])

    centers = scattered(density)
    count = len(centers)
    half = rng.normal(6.3, 0.7, (count, 1)).clip(4.8, 8.5) * rng.uniform(0.78, 1.0, (count, 2))
    outline = ellipses(rng, centers, half, rng.uniform(0, np.pi, count), wobble=0.10)
    round_nuclei = Shapes(outline, rng.normal(212, 28, count).clip(120, 255).astype(np.uint8))

    centers = scattered(_per_zone(layout, "spindle_cells"))
    count = len(centers)
    angles = layout.at(along_fiber, centers).astype(float)
    half = np.stack([rng.uniform(9, 17, count), rng.uniform(2.2, 4.4, count)], axis=1)
    outline = ellipses(rng, centers, half, angles + rng.normal(0, 0.22, count), wobble=0.12, bend=0.35)
    spindles = Shapes(outline, rng.normal(175, 30, count).clip(90, 245).astype(np.uint8))
    return joined([spindles, round_nuclei])
