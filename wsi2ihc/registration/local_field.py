"""Displacements by uniform cubic B-splines: what they are, and their values and slopes anywhere.

Rueckert et al., IEEE Trans. Med. Imaging 18(8), 1999, there called free-form deformation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import TransformError

FloatArray: TypeAlias = npt.NDArray[np.float64]

Weights: TypeAlias = Callable[[FloatArray, float], FloatArray]
"""From the share of an interval, (N,), and the spacing in µm, to what four control points weigh, (4, N)."""

_CHUNK_POINTS = 16_384
"""Points of a grid whose displacements are added up at once: 256 kB, which stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalField:
    """Displacements on a grid of control points, joined by uniform cubic B-splines.

    With B the cubic B-spline, s the spacing and (ox, oy) the origin, the displacement at (x, y) is the sum over i and j
    of B((x - ox) / s - j) · B((y - oy) / s - i) · c[i, j]. Beyond the grid its outermost control points go on, so
    that the field is defined everywhere, smooth, and constant far away.

    origin_um:     fixed position of the control point in row 0, column 0
    spacing_um:    distance of neighbouring control points
    coefficients:  (rows, columns, 2) float64, µm, (dx, dy) in the moving frame; read-only

    Raises
    ------
    TransformError
        If a number is not finite, the spacing is not positive, or the coefficients are no grid.
    """

    origin_um: tuple[float, float]
    spacing_um: float
    coefficients: FloatArray

    def __post_init__(self) -> None:
        coefficients = finite_numbers(self.coefficients, "coefficients of the local field")
        if coefficients.ndim != 3 or coefficients.shape[2] != 2 or coefficients.size == 0:
            raise TransformError(
                f"coefficients of a local field are (rows, columns, 2), not {coefficients.shape}; register again"
            )
        if not (np.isfinite(self.origin_um).all() and len(self.origin_um) == 2):
            raise TransformError(f"a local field cannot begin at {self.origin_um} µm; register again")
        if not 0 < self.spacing_um < np.inf:
            raise TransformError(f"control points cannot be {self.spacing_um} µm apart; register again")
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "origin_um", (float(self.origin_um[0]), float(self.origin_um[1])))
        object.__setattr__(self, "spacing_um", float(self.spacing_um))


def spline_support(
    positions_um: FloatArray, origin_um: float, spacing_um: float, count: int
) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """The control points, of ``count`` along an axis, that act on each position, (4, N), and their weights, (4, N)."""
    return _support(positions_um, origin_um, spacing_um, count, spline_values)


def spline_values(t: FloatArray, _spacing_um: float) -> FloatArray:
    """The weights of the control points before, at, after and beyond, (4, N), for a share t of the interval."""
    rest = 1 - t
    return np.stack([
        rest**3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (3 * rest**3 - 6 * rest**2 + 4) / 6,
        t**3 / 6,
    ])  # fmt: skip


def spline_slopes(t: FloatArray, spacing_um: float) -> FloatArray:
    """The derivatives of `spline_values` along the position, per µm."""
    rest = 1 - t
    return np.stack([
        -(rest**2) / 2,
        (9 * t**2 - 12 * t) / 6,
        (12 * rest - 9 * rest**2) / 6,
        t**2 / 2,
    ]) / spacing_um  # fmt: skip


def _support(
    positions: FloatArray, origin_um: float, spacing_um: float, count: int, weights: Weights
) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """The control points that act on each position along one axis, (4, N), and their weights, (4, N)."""
    # Far outside all control points are the outermost one. Clipped there, since a float may exceed any integer.
    place = np.clip((positions - origin_um) / spacing_um, -4.0, count + 4.0)
    before = np.floor(place)
    indices = before.astype(np.intp) + np.arange(-1, 3)[:, None]
    return np.clip(indices, 0, count - 1), weights(place - before, spacing_um)


def displacements(field: LocalField, points: FloatArray, across: Weights, down: Weights) -> FloatArray:
    """The field, or a derivative of it, at scattered points: (N, 2)."""
    rows, columns = field.coefficients.shape[:2]
    j, weight_x = _support(points[:, 0], field.origin_um[0], field.spacing_um, columns, across)
    i, weight_y = _support(points[:, 1], field.origin_um[1], field.spacing_um, rows, down)
    total = np.zeros_like(points)
    for column in range(4):
        part = np.zeros_like(points)
        for row in range(4):
            part += weight_y[row, :, None] * field.coefficients[i[row], j[column]]
        total += weight_x[column, :, None] * part
    return total


def tensor_product(field: LocalField, x: FloatArray, y: FloatArray, across: Weights, down: Weights) -> FloatArray:
    """The field, or a derivative of it, on a grid: (2, H, W). Element by element, always in the same order."""
    rows, columns = field.coefficients.shape[:2]
    j, weight_x = _support(x, field.origin_um[0], field.spacing_um, columns, across)
    i, weight_y = _support(y, field.origin_um[1], field.spacing_um, rows, down)
    coefficients = np.moveaxis(field.coefficients, -1, 0)
    first, last = (int(j.min()), int(j.max()) + 1) if j.size else (0, 1)
    lines = np.zeros((2, y.size, last - first))
    for row in range(4):
        lines += weight_y[row, :, None] * coefficients[:, i[row], first:last]
    total = np.zeros((2, y.size, x.size))
    for start in range(0, y.size, step := max(1, _CHUNK_POINTS // max(1, x.size))):
        chunk = slice(start, start + step)
        for column in range(4):
            total[:, chunk] += lines[:, chunk, j[column] - first] * weight_x[column]
    return total


def finite_numbers(values: Any, what: str) -> FloatArray:
    """A read-only float64 copy of finite numbers."""
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TransformError(f"the {what} holds what is no number; check the file, or register again") from None
    if not np.isfinite(numbers).all():
        raise TransformError(f"the {what} holds values that are not finite; register again")
    numbers.flags.writeable = False
    return numbers
