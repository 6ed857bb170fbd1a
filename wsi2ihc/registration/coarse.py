"""Coarse registration: rotations, shifts and mirroring on overviews."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from .overview import Overview, OverviewPair, Stain, structure
from .transform import FloatArray

SIDE_PX = 160
"""Long side of the density images."""

ROTATIONS = 48
"""Number of rotations, 7.5° apart: the largest error is 3.75°, or 5 px at the border of an image."""

SCALES = (0.94, 1.0, 1.06)
"""Scales; the largest error for sections that shrank or swelled by a tenth is 4 %."""

CANDIDATES = 6

SATURATED_DENSITY = 0.6
"""Densities are clipped here, so that folds and strong stain do not outweigh the shape."""

LEAST_OVERLAP = 0.5
"""Smallest fraction of the smaller tissue that lies on both slides."""

_APART = 0.12
"""Placements that differ by less than this fraction of the length of the slide are considered equal."""

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class CoarseAlignment:
    """Coarse placement: matrix (2, 3) from fixed to moving µm of the overviews, correlation, and mirroring."""

    matrix: FloatArray
    score: float
    mirrored: bool


@dataclass(frozen=True, slots=True, eq=False)
class _DensityImage:
    """Tissue density of a slide, smoothed, at ``mpp`` µm per px."""

    density: FloatImage
    tissue: FloatImage
    mpp: float


def find_candidates(pair: OverviewPair) -> tuple[CoarseAlignment, ...]:
    """Return the best distinct placements, at most `CANDIDATES`, best first.

    Parameters
    ----------
    pair
        Overviews with tissue.
    """
    mpp = pair.longest_um / SIDE_PX
    reference, moving = _Reference(_density_image(pair.fixed, mpp, "he")), _density_image(pair.moving, mpp, "ihc")
    found = sorted(
        itertools.chain.from_iterable(
            _placements(reference, moving, rotation, scale, mirrored)
            for mirrored in (False, True)
            for scale in SCALES
            for rotation in range(ROTATIONS)
        ),
        key=lambda candidate: -candidate.score,
    )
    return _distinct(found, pair.fixed, _APART * pair.longest_um)


def _density_image(overview: Overview, mpp: float, stain: Stain) -> _DensityImage:
    view = overview.view
    pixels = view.slide.read_level(0, view.slide.info.bounds)
    density = structure(pixels, view.background, stain)[..., 0]
    _, _, width_um, height_um = view.extent_um
    size = (max(8, round(width_um / mpp)), max(8, round(height_um / mpp)))
    small = cv2.resize(np.minimum(density, SATURATED_DENSITY), size, interpolation=cv2.INTER_AREA)
    tissue = cv2.resize(overview.tissue.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return _DensityImage(
        np.asarray(cv2.GaussianBlur(small, (0, 0), 1.0), np.float32), np.asarray(tissue, np.float32), mpp
    )


class _Reference:
    """Fourier transforms of the fixed image, shared by all placements."""

    def __init__(self, image: _DensityImage) -> None:
        self.image = image
        self._spectra: dict[tuple[int, int], tuple[npt.NDArray[np.complex64], ...]] = {}

    def spectra(self, shape: tuple[int, int]) -> tuple[npt.NDArray[np.complex64], ...]:
        """Return the spectra of the density, its square, the frame and the tissue, padded to ``shape``."""
        if shape not in self._spectra:
            density = self.image.density
            planes = (density, density**2, np.ones_like(density), self.image.tissue)
            self._spectra[shape] = tuple(fft.rfft2(plane, shape) for plane in planes)
        return self._spectra[shape]


def _placements(
    reference: _Reference, moving: _DensityImage, rotation: int, scale: float, mirrored: bool
) -> Iterator[CoarseAlignment]:
    """Iterate over the two best shifts of the moving image at one rotation and scale."""
    angle = 2 * math.pi * rotation / ROTATIONS
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    rotated, corner_um = _rotated(moving, linear)
    rows, columns = rotated.density.shape
    correlation = _correlation(reference, rotated)
    for _ in range(2):
        row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
        score = float(correlation[row, column])
        shift_um = np.array([column - columns + 1, row - rows + 1]) * moving.mpp
        if score > 0:
            yield CoarseAlignment(np.column_stack([linear, linear @ (corner_um - shift_um)]), score, mirrored)
        correlation[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9] = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Rotated:
    density: FloatImage
    tissue: FloatImage
    frame: FloatImage


def _rotated(moving: _DensityImage, linear: FloatArray) -> tuple[_Rotated, FloatArray]:
    """Rotate the moving image onto the axes of the fixed slide; also return its corner in µm before the shift."""
    height, width = moving.density.shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) * moving.mpp @ np.linalg.inv(linear).T
    low, high = corners.min(axis=0), corners.max(axis=0)
    columns, rows = (math.ceil(side / moving.mpp) for side in high - low)
    # px (u, v) of the result lies at low + (u + 0.5, v + 0.5) · mpp, which `linear` takes to the moving image
    start = linear @ (low / moving.mpp + 0.5) - 0.5
    inverse_map = np.column_stack([linear, start])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    planes = [
        cv2.warpAffine(plane, inverse_map, (columns, rows), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        for plane in (moving.density, moving.tissue, np.ones_like(moving.density))
    ]
    density, tissue, frame = (np.asarray(plane, np.float32) for plane in planes)
    return _Rotated(density, tissue, frame), low


def _correlation(reference: _Reference, moving: _Rotated) -> FloatImage:
    """Compute the correlation with the last px of the moving image on each px of the fixed one.

    It is multiplied by the root of the fraction of tissue on both slides, so that a small overlap must fit better, and
    is -1 if too little overlaps.
    """
    fixed = reference.image
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


def _distinct(found: list[CoarseAlignment], fixed: Overview, apart_um: float) -> tuple[CoarseAlignment, ...]:
    kept: list[CoarseAlignment] = []
    for candidate in found:
        if all(fixed.distance_um(candidate.matrix, other.matrix) > apart_um for other in kept):
            kept.append(candidate)
        if len(kept) == CANDIDATES:
            break
    return tuple(kept)
