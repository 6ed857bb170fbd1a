"""Where two slides may lie upon each other: every rotation, every shift, mirrored or not, on small pictures.

Masked normalised cross-correlation (Padfield, IEEE Trans. Image Process. 21:2706, 2012) of tissue density, for a set
of rotations and scales. It looks at nothing but coarse shape, so it proposes several placements and decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from .structure import Stain, structure
from .transform import FloatArray
from .views import Overview, OverviewPair

SIDE_PX = 160
"""Long side of the pictures."""

TURNS = 48
"""Rotations: 7.5° apart, so that none is further than 3.75° off, or 5 px at the end of a picture."""

SCALES = (0.94, 1.0, 1.06)
"""Between them, sections that shrank or swelled by a tenth are at most 4 % off."""

CANDIDATES = 6

SATURATED_DENSITY = 0.6
"""Darker tissue counts like this: a fold or a strong stain must not outweigh the shape."""

LEAST_OVERLAP = 0.5
"""Share of the smaller tissue that has to lie on both slides."""

_APART = 0.12
"""Placements that differ by less than this share of the slide's length (mean over its corners) are one."""

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A placement: matrix from fixed to moving µm, (2, 3), of the overviews; correlation, 0 to 1; mirrored or not."""

    matrix: FloatArray
    score: float
    mirrored: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """Tissue density of a slide, smoothed, at ``mpp`` µm per px."""

    density: FloatImage
    tissue: FloatImage
    mpp: float


def find_candidates(pair: OverviewPair) -> tuple[Candidate, ...]:
    """The most promising placements, best first; at most `CANDIDATES`, all clearly different from each other.

    Parameters
    ----------
    pair
        Overviews with some tissue.
    """
    mpp = pair.longest_um / SIDE_PX
    reference, moving = _Reference(_picture(pair.fixed, mpp, "he")), _picture(pair.moving, mpp, "ihc")
    found = sorted(
        itertools.chain.from_iterable(
            _placements(reference, moving, turn, scale, mirrored)
            for mirrored in (False, True)
            for scale in SCALES
            for turn in range(TURNS)
        ),
        key=lambda candidate: -candidate.score,
    )
    return _distinct(found, pair.fixed, _APART * pair.longest_um)


def _picture(overview: Overview, mpp: float, stain: Stain) -> _Picture:
    view = overview.view
    pixels = view.slide.read_level(0, view.slide.info.bounds)
    density = structure(pixels, view.glass, stain)[..., 0]
    _, _, width_um, height_um = view.extent_um
    size = (max(8, round(width_um / mpp)), max(8, round(height_um / mpp)))
    small = cv2.resize(np.minimum(density, SATURATED_DENSITY), size, interpolation=cv2.INTER_AREA)
    tissue = cv2.resize(overview.tissue.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return _Picture(np.asarray(cv2.GaussianBlur(small, (0, 0), 1.0), np.float32), np.asarray(tissue, np.float32), mpp)


class _Reference:
    """The fixed picture's part of the correlations, which all placements share."""

    def __init__(self, picture: _Picture) -> None:
        self.picture = picture
        self._spectra: dict[tuple[int, int], tuple[npt.NDArray[np.complex64], ...]] = {}

    def spectra(self, shape: tuple[int, int]) -> tuple[npt.NDArray[np.complex64], ...]:
        """Of the density, its square, the frame and the tissue, padded to ``shape``."""
        if shape not in self._spectra:
            density = self.picture.density
            planes = (density, density**2, np.ones_like(density), self.picture.tissue)
            self._spectra[shape] = tuple(fft.rfft2(plane, shape) for plane in planes)
        return self._spectra[shape]


def _placements(
    reference: _Reference, moving: _Picture, turn: int, scale: float, mirrored: bool
) -> Iterator[Candidate]:
    """The two best shifts of the moving picture at one turn and scale."""
    angle = 2 * math.pi * turn / TURNS
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    turned, corner_um = _turned(moving, linear)
    rows, columns = turned.density.shape
    correlation = _correlation(reference, turned)
    for _ in range(2):
        row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
        score = float(correlation[row, column])
        shift_um = np.array([column - columns + 1, row - rows + 1]) * moving.mpp
        if score > 0:
            yield Candidate(np.column_stack([linear, linear @ (corner_um - shift_um)]), score, mirrored)
        correlation[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9] = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Turned:
    density: FloatImage
    tissue: FloatImage
    frame: FloatImage


def _turned(moving: _Picture, linear: FloatArray) -> tuple[_Turned, FloatArray]:
    """The moving picture as the fixed slide's axes have it, and where its corner then lies, in µm before the shift."""
    height, width = moving.density.shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) * moving.mpp @ np.linalg.inv(linear).T
    low, high = corners.min(axis=0), corners.max(axis=0)
    columns, rows = (math.ceil(side / moving.mpp) for side in high - low)
    # px (u, v) of the result lies at low + (u + 0.5, v + 0.5) · mpp, which `linear` takes to the moving picture
    start = linear @ (low / moving.mpp + 0.5) - 0.5
    inverse_map = np.column_stack([linear, start])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    planes = [
        cv2.warpAffine(plane, inverse_map, (columns, rows), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        for plane in (moving.density, moving.tissue, np.ones_like(moving.density))
    ]
    density, tissue, frame = (np.asarray(plane, np.float32) for plane in planes)
    return _Turned(density, tissue, frame), low


def _correlation(reference: _Reference, moving: _Turned) -> FloatImage:
    """At [row, column]: with the moving picture's last px on that px of the fixed one; -1 where too little is shared.

    Lowered by the root of the share of tissue that lies on both slides, so that a small overlap has to fit better.
    """
    fixed = reference.picture
    shape = tuple(
        fft.next_fast_len(a + b - 1, real=True) for a, b in zip(fixed.density.shape, moving.density.shape, strict=True)
    )
    rows, columns = (a + b - 1 for a, b in zip(fixed.density.shape, moving.density.shape, strict=True))
    f1, f2, f_frame, f_tissue = reference.spectra((shape[0], shape[1]))
    framed = moving.density * moving.frame
    m1, m2, m_frame, m_tissue = (
        fft.rfft2(plane[::-1, ::-1], shape) for plane in (framed, framed * moving.density, moving.frame, moving.tissue)
    )

    def back(spectrum: npt.NDArray[np.complex64]) -> FloatImage:
        return np.asarray(fft.irfft2(spectrum, shape)[:rows, :columns], np.float32)

    shared = np.maximum(back(f_frame * m_frame), 1.0)
    sum_f, sum_m = back(f1 * m_frame), back(f_frame * m1)
    covariance = back(f1 * m1) - sum_f * sum_m / shared
    spread_f = np.maximum(back(f2 * m_frame) - sum_f**2 / shared, 0)
    spread_m = np.maximum(back(f_frame * m2) - sum_m**2 / shared, 0)
    product = np.sqrt(spread_f * spread_m)
    least_tissue = max(1.0, float(min(fixed.tissue.sum(), moving.tissue.sum())))
    overlap = np.minimum(back(f_tissue * m_frame), back(f_frame * m_tissue)) / least_tissue
    usable = (overlap > LEAST_OVERLAP) & (product > 1e-3 * product.max())
    values = covariance / np.maximum(product, 1e-9) * np.sqrt(np.clip(overlap, 0, 1))
    return np.asarray(np.where(usable, values, -1.0), np.float32)


def _distinct(found: list[Candidate], fixed: Overview, apart_um: float) -> tuple[Candidate, ...]:
    kept: list[Candidate] = []
    for candidate in found:
        if all(fixed.distance_um(candidate.matrix, other.matrix) > apart_um for other in kept):
            kept.append(candidate)
        if len(kept) == CANDIDATES:
            break
    return tuple(kept)
