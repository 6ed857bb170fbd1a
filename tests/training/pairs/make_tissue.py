"""Synthetic tissue in two stains, cell by cell: nuclei, cytoplasm, and membranes with DAB from none to 3+.

Images are drawn at positions in µm, so that an IHC moved by a fraction of a px is drawn, not interpolated.
"""

from __future__ import annotations

import cv2
import numpy as np

from wsi2ihc.geometry import RGBImage

HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
COUNTERSTAIN = np.array([0.65, 0.704, 0.286])
DAB = np.array([0.268, 0.570, 0.776])
BROWNER_DAB = np.array([0.36, 0.57, 0.74])
"""With more red than the vector that unmixing assumes: passes for hematoxylin in part."""

LEVELS = {"0": 0.0, "1+": 0.25, "2+": 0.6, "3+": 1.3}
"""Density of DAB on membranes."""


def cells(side_um: float, seed: int = 0, spacing_um: float = 11.0) -> np.ndarray:
    """Centers and radii of nuclei, (N, 3) µm, over a square from -60 to ``side_um`` + 60; denser in some places."""
    rng = np.random.default_rng(seed)
    count = int(((side_um + 120) / spacing_um) ** 2)
    places = rng.uniform(-60, side_um + 60, (3 * count, 2))
    density = np.sin(places[:, 0] / 31 + seed) * np.sin(places[:, 1] / 43 + 2 * seed)
    places = places[rng.uniform(-1.2, 1.2, len(places)) < density][:count]
    return np.column_stack([places, rng.uniform(2.5, 4.5, len(places))])


def he_of(nuclei: np.ndarray, side_px: int, mpp: float) -> RGBImage:
    """H&E, (side_px, side_px, 3)."""
    core, around = _drawn(nuclei, side_px, mpp, (0.0, 0.0))
    return _colored(0.6 * core[..., None] * HEMATOXYLIN + (0.1 + 0.15 * around)[..., None] * EOSIN, 1)


def ihc_of(
    nuclei: np.ndarray,
    side_px: int,
    mpp: float,
    shift_um: tuple[float, float] = (0.0, 0.0),
    level: str = "0",
    dab: np.ndarray = DAB,
) -> RGBImage:
    """IHC of the same cells, moved by ``shift_um``: paler nuclei, and DAB where their membranes are."""
    core, around = _drawn(nuclei, side_px, mpp, shift_um)
    membranes = LEVELS[level] * np.clip(around - core, 0, 1)
    return _colored((0.3 * core + 0.03)[..., None] * COUNTERSTAIN + membranes[..., None] * dab, 2)


def _drawn(nuclei: np.ndarray, side_px: int, mpp: float, shift_um: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """How much of each px is nucleus, and nucleus or its surroundings of 2.5 µm; (side_px, side_px) 0 to 1, soft."""
    planes = []
    for margin_um in (0.0, 2.5):
        plane = np.zeros((side_px, side_px), np.uint8)
        for x, y, radius in nuclei:
            # cv2 counts centers of px from 0; with 6 fractional bits
            center = [round(((at + by) / mpp - 0.5) * 64) for at, by in zip((x, y), shift_um, strict=True)]
            cv2.circle(plane, center, round((radius + margin_um) / mpp * 64), 255, -1, cv2.LINE_AA, 6)
        planes.append(cv2.GaussianBlur(plane.astype(np.float32) / 255, (0, 0), 0.3 / mpp))
    return tuple(planes)


def _colored(density: np.ndarray, seed: int) -> RGBImage:
    noise = np.random.default_rng(seed).normal(0, 1.5, density.shape)
    return np.clip(np.rint(245 * 10**-density + noise), 0, 255).astype(np.uint8)
