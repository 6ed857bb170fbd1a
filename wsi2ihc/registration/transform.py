"""Transform from the fixed slide (H&E) to the moving slide (IHC)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import TransformError
from ..geometry import Size
from ..slide import SlideInfo, known_mpp

FloatArray: TypeAlias = npt.NDArray[np.float64]

Weights: TypeAlias = Callable[[FloatArray, float], FloatArray]
"""Returns weights of four control points, (4, N), from positions in an interval, (N,), and the spacing in µm."""

_CHUNK_POINTS = 16_384
"""Points of a grid that are evaluated at once: 256 kB, which fit the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalField:
    """Displacements on a grid of control points, joined by uniform cubic B-splines.

    With B the cubic B-spline, s the spacing and (ox, oy) the origin, the displacement at (x, y) is the sum over i and j
    of B((x - ox) / s - j) · B((y - oy) / s - i) · c[i, j]. Beyond the grid its outermost control points repeat, so
    that the field is defined everywhere, smooth, and constant far away.

    Raises
    ------
    TransformError
        If a number is not finite, the spacing is not positive, or the coefficients are no grid.
    """

    origin_um: tuple[float, float]  # fixed position of the control point in row 0, column 0
    spacing_um: float  # distance of neighboring control points
    coefficients: FloatArray  # (rows, columns, 2) float64, µm, (dx, dy) in the moving frame; read-only

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
    """Return the control points that act on each position, (4, N), and their weights, (4, N)."""
    return _support(positions_um, origin_um, spacing_um, count, spline_values)


def spline_values(t: FloatArray, _spacing_um: float) -> FloatArray:
    """Return the weights of the four control points around a position t in the interval, (4, N)."""
    rest = 1 - t
    return np.stack([
        rest**3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (3 * rest**3 - 6 * rest**2 + 4) / 6,
        t**3 / 6,
    ])  # fmt: skip


def spline_slopes(t: FloatArray, spacing_um: float) -> FloatArray:
    """Return the derivatives of `spline_values` per µm."""
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
    """Return the control points that act on each position along one axis, (4, N), and their weights, (4, N)."""
    # Far outside all control points are the outermost one. Clipped there, since a float may exceed any integer.
    place = np.clip((positions - origin_um) / spacing_um, -4.0, count + 4.0)
    before = np.floor(place)
    indices = before.astype(np.intp) + np.arange(-1, 3)[:, None]
    return np.clip(indices, 0, count - 1), weights(place - before, spacing_um)


def displacements(field: LocalField, points: FloatArray, across: Weights, down: Weights) -> FloatArray:
    """Evaluate the field or a derivative at scattered points: (N, 2)."""
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
    """Evaluate the field or a derivative on a grid: (2, H, W), always in the same order of operations."""
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
    """Return a read-only float64 copy of finite numbers."""
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TransformError(
            f"the {what} contains values that are not numbers; check the file, or register again"
        ) from None
    if not np.isfinite(numbers).all():
        raise TransformError(f"the {what} holds values that are not finite; register again")
    numbers.flags.writeable = False
    return numbers


LEAST_STRETCH = 1e-3
"""Smallest scale of a matrix; its inverse would be inaccurate below."""

INVERSE_TOLERANCE_UM = 1e-3
_NEWTON_TOLERANCE_UM = 1e-6
_NEWTON_STEPS = 60
_SHORTEST_STEP = 1 / 64


@dataclass(frozen=True, slots=True)
class SlideFrame:
    """Identity and size of a slide of a transform."""

    name: str  # base name of its file
    size: Size  # level-0 px
    mpp: tuple[float, float]  # µm per level-0 px along (x, y)
    quickhash: str = ""  # as in `SlideInfo`; "" where it is not known


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """Map from positions on the fixed slide to positions on the moving slide, in µm.

    Raises
    ------
    TransformError
        If the matrix has another shape, contains values that are not numbers, or is singular.
    """

    matrix: FloatArray  # (2, 3) float64, read-only; moving = matrix[:, :2] @ fixed + matrix[:, 2] + displacement(fixed)
    field: LocalField | None = None  # the displacement; None for none
    fixed: SlideFrame | None = None  # the slide it maps from, where that is known
    moving: SlideFrame | None = None  # the slide it maps to, where that is known

    def __post_init__(self) -> None:
        matrix = finite_numbers(self.matrix, "matrix of the transform")
        if matrix.shape != (2, 3):
            raise TransformError(f"a matrix of a transform has 2 rows of 3 numbers, not the shape {matrix.shape}")
        if float(np.linalg.svd(matrix[:, :2], compute_uv=False)[-1]) < LEAST_STRETCH:
            raise TransformError(
                f"the matrix {matrix.tolist()} flattens the plane; it has to map µm to µm and be invertible"
            )
        object.__setattr__(self, "matrix", matrix)


def identity() -> Transform:
    """Return the identity transform."""
    return Transform(np.eye(2, 3))


def affine(matrix: npt.ArrayLike) -> Transform:
    """Return a transform from a matrix, (2, 3), or (3, 3) with the last row (0, 0, 1)."""
    numbers = finite_numbers(matrix, "matrix of the transform")
    if numbers.shape == (3, 3) and np.array_equal(numbers[2], (0, 0, 1)):
        numbers = numbers[:2]
    return Transform(numbers)


def frame_of(info: SlideInfo) -> SlideFrame:
    """Return the frame of an open slide of known resolution."""
    return SlideFrame(info.name, info.size, known_mpp(info), info.quickhash)


def to_moving(transform: Transform, points_um: npt.ArrayLike) -> FloatArray:
    """Map positions on the fixed slide, (N, 2) µm, to the moving slide."""
    points = _points(points_um)
    moved = _affine_part(transform, points[:, 0], points[:, 1])
    if transform.field is not None:
        moved += displacements(transform.field, points, spline_values, spline_values)
    return moved


def to_fixed(transform: Transform, points_um: npt.ArrayLike) -> FloatArray:
    """Map positions on the moving slide, (N, 2) µm, to the fixed slide, accurate to 0.001 µm.

    NaN where the iteration finds none, which happens only where the field folds. Newton's method, with steps that are
    halved until they come closer.
    """
    targets = _points(points_um)
    inverse = np.linalg.inv(transform.matrix[:, :2])
    found = (targets - transform.matrix[:, 2]) @ inverse.T
    if transform.field is None:
        return found
    found -= displacements(transform.field, found, spline_values, spline_values) @ inverse.T
    misses = to_moving(transform, found) - targets
    active = np.arange(len(targets))
    result = np.full_like(found, np.nan)
    for _ in range(_NEWTON_STEPS):
        steps = _solved(_jacobians(transform, found[active]), misses[active])
        small = np.hypot(*steps.T) < _NEWTON_TOLERANCE_UM
        done = active[small]
        result[done] = found[done]
        active, steps = active[~small], steps[~small]
        if active.size == 0:
            break
        found[active], misses[active] = _closer(transform, targets[active], found[active], steps, misses[active])
    close = np.hypot(*misses[active].T) < INVERSE_TOLERANCE_UM
    result[active[close]] = found[active[close]]
    return result


def moving_grid(transform: Transform, x_um: npt.ArrayLike, y_um: npt.ArrayLike) -> FloatArray:
    """Map the grid of fixed positions ``x_um`` (W) and ``y_um`` (H) to the moving slide, (H, W, 2) µm.

    Equals `to_moving` of the points of the grid up to rounding. The order of operations does not depend on the grid, so
    that any window of a grid equals the same part of a larger one, to the bit.

    Notes
    -----
    Memory: 16 bytes a point for the result, and as much twice again meanwhile.
    """
    x, y = np.asarray(x_um, np.float64), np.asarray(y_um, np.float64)
    (a, b, tx), (c, d, ty) = transform.matrix.tolist()
    planes = np.empty((2, y.size, x.size))
    np.add.outer(b * y + tx, a * x, out=planes[0])
    np.add.outer(d * y + ty, c * x, out=planes[1])
    if transform.field is not None:
        planes += tensor_product(transform.field, x, y, spline_values, spline_values)
    return np.moveaxis(planes, 0, -1)


def jacobian_range(transform: Transform, points_per_interval: int = 4) -> tuple[float, float]:
    """Return the range of the Jacobian determinant over the field, relative to the matrix.

    1 where the field shifts only; at 0 and below it folds. Looked at on so many points per interval of control points
    each way, over the whole control grid and half an interval around.
    """
    field = transform.field
    if field is None:
        return 1.0, 1.0
    rows, columns = field.coefficients.shape[:2]
    x, y = (
        origin + field.spacing_um * (np.arange(count * points_per_interval + 1) / points_per_interval - 0.5)
        for origin, count in zip(field.origin_um, (columns, rows), strict=True)
    )
    (a, b, _), (c, d, _) = transform.matrix.tolist()
    along_x = tensor_product(field, x, y, spline_slopes, spline_values)
    along_y = tensor_product(field, x, y, spline_values, spline_slopes)
    determinants = ((a + along_x[0]) * (d + along_y[1]) - (b + along_y[0]) * (c + along_x[1])) / (a * d - b * c)
    return float(determinants.min()), float(determinants.max())


def _affine_part(transform: Transform, x: FloatArray, y: FloatArray) -> FloatArray:
    (a, b, tx), (c, d, ty) = transform.matrix.tolist()
    return np.stack([(b * y + tx) + a * x, (d * y + ty) + c * x], axis=-1)


def _jacobians(transform: Transform, points: FloatArray) -> FloatArray:
    """Return the Jacobian at points, (N, 2, 2)."""
    jacobians = np.broadcast_to(transform.matrix[:, :2], (len(points), 2, 2)).copy()
    if transform.field is not None:
        jacobians[:, :, 0] += displacements(transform.field, points, spline_slopes, spline_values)
        jacobians[:, :, 1] += displacements(transform.field, points, spline_values, spline_slopes)
    return jacobians


def _solved(jacobians: FloatArray, misses: FloatArray) -> FloatArray:
    """Return Newton steps, (N, 2); those at singular Jacobians are huge and shortened later."""
    (a, b), (c, d) = jacobians.transpose(1, 2, 0)
    determinant = a * d - b * c
    determinant = np.where(np.abs(determinant) < 1e-9, np.copysign(1e-9, determinant), determinant)
    x = (d * misses[:, 0] - b * misses[:, 1]) / determinant
    y = (a * misses[:, 1] - c * misses[:, 0]) / determinant
    return np.stack([x, y], axis=-1)


def _closer(
    transform: Transform, targets: FloatArray, found: FloatArray, steps: FloatArray, misses: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the points after a step and their errors; the step is halved until the error decreases."""
    after, missed = found.copy(), misses.copy()
    pending, share = np.arange(len(found)), 1.0
    while pending.size and share >= _SHORTEST_STEP:
        tried = found[pending] - share * steps[pending]
        miss = to_moving(transform, tried) - targets[pending]
        better = np.hypot(*miss.T) < np.hypot(*misses[pending].T)
        after[pending[better]], missed[pending[better]] = tried[better], miss[better]
        pending, share = pending[~better], share / 2
    return after, missed


def _points(points_um: npt.ArrayLike) -> FloatArray:
    points = np.asarray(points_um, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points are (N, 2) µm, not {points.shape}")
    return points
