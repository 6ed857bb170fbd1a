"""Epithelium: crypts cut across, and the lining of the surface that faces the gut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layout import SURFACE_EPITHELIUM_PX, Layout
from .shapes import Floats, Shapes, ellipses, jittered_lattice, joined, no_shapes, packed_radii, polar, softened

SPACING_PX = 208.0
OUTLINE_POINTS = 48
CELL_WIDTH_PX = 13.5
GOBLET_WIDTH_PX = 18.0


@dataclass(frozen=True, slots=True)
class Crypts:
    """Shapes of an epithelium: outer outlines, lumens, mucin of goblet cells, borders between cells, nuclei."""

    outlines: Shapes
    lumens: Shapes
    goblets: Shapes
    borders: Shapes
    nuclei: Shapes


def crypts(layout: Layout, rng: np.random.Generator) -> Crypts:
    """Crypts wherever the mucosa has room for them, packed side by side with some stroma in between."""
    centres = _sites(layout, rng)
    if not len(centres):
        return Crypts(no_shapes(OUTLINE_POINTS), no_shapes(OUTLINE_POINTS), no_shapes(16), no_shapes(2), no_shapes(16))
    outer = packed_radii(centres, _wanted_radii(layout, centres, rng), rng.uniform(12, 34, len(centres)), roundness=4)
    outer = softened(outer, 2)
    turn = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    openness = rng.beta(2, 4, (len(centres), 1)) * 0.38 + 0.10
    inner = outer * openness
    for harmonic in (2, 3, 4, 6):
        phase = rng.uniform(0, 2 * np.pi, (len(centres), 1))
        inner = inner * (
            1 + 0.22 / harmonic**0.5 * rng.standard_normal((len(centres), 1)) * np.cos(harmonic * turn + phase)
        )
    inner = np.clip(inner, 0.08 * outer, outer - 34)
    strength = np.full(len(centres), 255, np.uint8)
    goblets, borders, nuclei = [], [], []
    for centre, far, near in zip(centres, outer, inner, strict=True):
        wall = _Wall(centre, far, near)
        nuclei.append(_basal_nuclei(wall, rng))
        goblets.append(_goblets(wall, rng.uniform(0.55, 1.0), rng))
        borders.append(_borders(wall, rng))
    return Crypts(
        Shapes(polar(centres, outer), strength),
        Shapes(polar(centres, inner), strength),
        joined(goblets),
        joined(borders),
        joined(nuclei),
    )


@dataclass(frozen=True, slots=True)
class _Wall:
    """The wall of one crypt: its centre (2,), outer and inner radii in px at equal steps of angle."""

    centre: Floats
    outer: Floats
    inner: Floats

    def radii(self, turn: Floats) -> tuple[Floats, Floats]:
        """Outer and inner radius at any angles."""
        at = np.linspace(0, 2 * np.pi, len(self.outer), endpoint=False)
        return np.interp(turn, at, self.outer, period=2 * np.pi), np.interp(turn, at, self.inner, period=2 * np.pi)

    def points(self, turn: Floats, radius: Floats) -> Floats:
        return self.centre + np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]

    def outward(self, turn: Floats) -> Floats:
        """Direction from the lumen to the stroma, square to the outline, in radians."""
        step = 0.05
        ahead, behind = self.radii(turn + step)[0], self.radii(turn - step)[0]
        slope = (ahead - behind) / (2 * step * self.radii(turn)[0])
        return turn - 0.7 * np.arctan(slope)

    def turns(self, width_px: float, share: float, rng: np.random.Generator) -> Floats:
        """Angles of cells ``width_px`` wide at ``share`` of the outer radius, at uneven distances."""
        # equal steps along the outline are unequal steps of angle where it is far from round
        fine = np.linspace(0, 2 * np.pi, 256)
        outline = self.points(fine, self.radii(fine)[0])
        travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(outline, axis=0), axis=1))])
        count = max(6, int(share * travelled[-1] / width_px))
        at = (np.arange(count) + rng.uniform(-0.28, 0.28, count)) / count * travelled[-1]
        return np.asarray(np.interp(at % travelled[-1], travelled, fine), np.float64)


def _sites(layout: Layout, rng: np.random.Generator) -> Floats:
    """Centres of crypts, (N, 2) px: a loose lattice over the mucosa, a few missing."""
    centres = jittered_lattice(rng, layout.frame, SPACING_PX, 0.17)
    fits = (
        (layout.at(layout.zones["lamina propria"], centres) > 0.9)
        & (layout.at(layout.depth_px, centres) > 150)
        & (layout.at(layout.tissue_px, centres) > 105)
    )
    ahead = centres + np.array([0.0, 75.0])
    fits &= layout.at(layout.zones["lamina propria"], ahead) > 0.5
    return centres[fits & (rng.uniform(0, 1, len(centres)) > 0.05)]


def _wanted_radii(layout: Layout, centres: Floats, rng: np.random.Generator) -> Floats:
    """Radii that crypts would have without neighbours: ovals, longer square to the surface, (N, OUTLINE_POINTS) px."""
    count = len(centres)
    turn = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    step = 24.0
    slope = [
        layout.at(layout.depth_px, centres + step * axis) - layout.at(layout.depth_px, centres - step * axis)
        for axis in (np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    ]
    lengthwise = np.arctan2(slope[1], slope[0])[:, None] + rng.normal(0, 0.35, (count, 1))
    long = rng.uniform(1.0, 1.7, (count, 1))
    short = rng.uniform(64, 118, (count, 1))
    cos, sin = np.cos(turn - lengthwise), np.sin(turn - lengthwise)
    radius = short / np.sqrt((cos / long) ** 2 + sin**2)
    for harmonic in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        radius = radius * (1 + 0.07 / harmonic * rng.standard_normal((count, 1)) * np.cos(harmonic * turn + phase))
    room = np.minimum(
        layout.at(layout.depth_px, centres) - SURFACE_EPITHELIUM_PX - 22, layout.at(layout.tissue_px, centres) - 20
    )
    return np.asarray(np.minimum(radius, np.maximum(room, 48)[:, None]), np.float64)


def _basal_nuclei(wall: _Wall, rng: np.random.Generator) -> Shapes:
    """Long nuclei in a row along the outside of the wall."""
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
    """Drops of mucin between the nuclei and the lumen, wide ends inwards."""
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
    """Lines between neighbouring cells, from the base to the lumen: (N, 2, 2)."""
    turn = wall.turns(CELL_WIDTH_PX * 1.15, 0.8, rng)
    outer, inner = wall.radii(turn)
    ends = np.stack([wall.points(turn, outer - 4), wall.points(turn + rng.normal(0, 0.03, len(turn)), inner)], axis=1)
    return Shapes(ends.astype(np.float32), rng.integers(60, 150, len(turn), dtype=np.uint8))


def surface_epithelium(layout: Layout, rng: np.random.Generator) -> Crypts:
    """Nuclei, goblet cells and borders of the lining of the free surface (its cytoplasm follows the depth map)."""
    nuclei, goblets, borders = [no_shapes(16)], [no_shapes(16)], [no_shapes(2)]
    for line in layout.surface:
        at, inward = _along_surface(layout, line, 13.5, rng)
        angle = np.arctan2(inward[:, 1], inward[:, 0])
        count = len(at)
        deep = 30 + rng.normal(0, 3.5, count)
        half = np.stack([rng.normal(9.5, 1.1, count).clip(7, 12), rng.normal(5.3, 0.6, count).clip(4, 7)], axis=1)
        outline = ellipses(rng, at + inward * deep[:, None], half, angle + rng.normal(0, 0.15, count), wobble=0.09)
        nuclei.append(Shapes(outline, rng.normal(140, 24, count).clip(80, 215).astype(np.uint8)))
        ends = np.stack([at + inward * 2, at + inward * 42], axis=1)
        borders.append(Shapes(ends.astype(np.float32), rng.integers(50, 130, count, dtype=np.uint8)))
        at, inward = _along_surface(layout, line, 44, rng)
        half = np.stack([rng.uniform(8, 11, len(at)), rng.uniform(5.5, 8, len(at))], axis=1)
        outline = ellipses(rng, at + inward * 11, half, np.arctan2(inward[:, 1], inward[:, 0]))
        goblets.append(Shapes(outline, rng.integers(190, 255, len(at), dtype=np.uint8)))
    empty = no_shapes(OUTLINE_POINTS)
    return Crypts(empty, empty, joined(goblets), joined(borders), joined(nuclei))


def _along_surface(layout: Layout, line: Floats, step_px: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Points at uneven steps along a free surface, and the unit vectors from there into the tissue: (N, 2) each."""
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    steps = np.arange(0, travelled[-1], step_px)
    steps = steps + rng.uniform(-0.3, 0.3, len(steps)) * step_px
    at = np.stack([np.interp(steps, travelled, line[:, axis]) for axis in (0, 1)], axis=1)
    ahead = np.stack([np.interp(steps + 30, travelled, line[:, axis]) for axis in (0, 1)], axis=1)
    behind = np.stack([np.interp(steps - 30, travelled, line[:, axis]) for axis in (0, 1)], axis=1)
    along = ahead - behind
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    inside = layout.at(layout.tissue_px, at + 40 * normal) > layout.at(layout.tissue_px, at - 40 * normal)
    return at, np.where(inside[:, None], normal, -normal)
