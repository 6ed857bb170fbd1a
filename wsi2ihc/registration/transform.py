"""Where a place on the fixed slide (H&E) lies on the moving one (IHC).

Positions are (x, y) in µm from the top left corner of a slide's level 0, and continuous: the centre of level-0 px
(i, j) lies at ((i + 0.5) · mpp_x, (j + 0.5) · mpp_y). A transform maps from fixed to moving, which is what a pixel of
the output has to ask: an affine map, and where wanted a displacement (`local_field`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import TransformError
from ..geometry import Size
from ..slide import SlideInfo, known_mpp
from .local_field import (
    FloatArray,
    LocalField,
    displacements,
    finite_numbers,
    spline_slopes,
    spline_support,
    spline_values,
    tensor_product,
)

__all__ = [
    "FloatArray",
    "LocalField",
    "SlideFrame",
    "Transform",
    "affine",
    "frame_of",
    "identity",
    "jacobian_range",
    "moving_grid",
    "spline_support",
    "to_fixed",
    "to_moving",
]

LEAST_STRETCH = 1e-3
"""A matrix that shrinks some direction more than a thousandfold is a mistake, and its inverse is of no use."""

INVERSE_TOLERANCE_UM = 1e-3
_NEWTON_TOLERANCE_UM = 1e-6
_NEWTON_STEPS = 60
_SHORTEST_STEP = 1 / 64


@dataclass(frozen=True, slots=True)
class SlideFrame:
    """Which slide a side of a transform belongs to.

    name:       base name of its file
    size:       level-0 px
    mpp:        µm per level-0 px along (x, y)
    quickhash:  as in `SlideInfo`; "" where it is not known
    """

    name: str
    size: Size
    mpp: tuple[float, float]
    quickhash: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """A map from positions on the fixed slide to positions on the moving slide, in µm.

    matrix:  (2, 3) float64, read-only; moving = matrix[:, :2] @ fixed + matrix[:, 2] + displacement(fixed)
    field:   the displacement; None for none
    fixed:   the slide it maps from, where that is known
    moving:  the slide it maps to, where that is known

    Raises
    ------
    TransformError
        If the matrix has another shape, holds what is no number, or flattens the plane.
    """

    matrix: FloatArray
    field: LocalField | None = None
    fixed: SlideFrame | None = None
    moving: SlideFrame | None = None

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
    """The transform of two slides that lie upon each other, µm for µm."""
    return Transform(np.eye(2, 3))


def affine(matrix: npt.ArrayLike) -> Transform:
    """A transform of nothing but a matrix, (2, 3); a (3, 3) one whose last row is (0, 0, 1) will do, too.

    Raises
    ------
    TransformError
        If it is no such matrix.
    """
    numbers = finite_numbers(matrix, "matrix of the transform")
    if numbers.shape == (3, 3) and np.array_equal(numbers[2], (0, 0, 1)):
        numbers = numbers[:2]
    return Transform(numbers)


def frame_of(info: SlideInfo) -> SlideFrame:
    """The frame of an open slide.

    Raises
    ------
    MissingResolutionError
        If its resolution is unknown: µm have no meaning on it.
    """
    return SlideFrame(info.name, info.size, known_mpp(info), info.quickhash)


def to_moving(transform: Transform, points_um: npt.ArrayLike) -> FloatArray:
    """Positions on the moving slide, (N, 2) µm, of positions on the fixed one, (N, 2) µm."""
    points = _points(points_um)
    moved = _affine_part(transform, points[:, 0], points[:, 1])
    if transform.field is not None:
        moved += displacements(transform.field, points, spline_values, spline_values)
    return moved


def to_fixed(transform: Transform, points_um: npt.ArrayLike) -> FloatArray:
    """Positions on the fixed slide, (N, 2) µm, that lie at ``points_um`` on the moving one, to 0.001 µm.

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
    """Positions on the moving slide, (H, W, 2) µm, of the grid of the fixed positions ``x_um`` (W) and ``y_um`` (H).

    Equals `to_moving` of the grid's points but for rounding. Each value is added up in one order whatever the grid, so
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
    """Least and greatest determinant of the transform's Jacobian over its field, relative to the matrix alone.

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
    """Derivatives of the moving position along the fixed one, (N, 2, 2)."""
    jacobians = np.broadcast_to(transform.matrix[:, :2], (len(points), 2, 2)).copy()
    if transform.field is not None:
        jacobians[:, :, 0] += displacements(transform.field, points, spline_slopes, spline_values)
        jacobians[:, :, 1] += displacements(transform.field, points, spline_values, spline_slopes)
    return jacobians


def _solved(jacobians: FloatArray, misses: FloatArray) -> FloatArray:
    """Newton's steps, (N, 2). Where a Jacobian is singular the step is huge, and is shortened later."""
    (a, b), (c, d) = jacobians.transpose(1, 2, 0)
    determinant = a * d - b * c
    determinant = np.where(np.abs(determinant) < 1e-9, np.copysign(1e-9, determinant), determinant)
    x = (d * misses[:, 0] - b * misses[:, 1]) / determinant
    y = (a * misses[:, 1] - c * misses[:, 0]) / determinant
    return np.stack([x, y], axis=-1)


def _closer(
    transform: Transform, targets: FloatArray, found: FloatArray, steps: FloatArray, misses: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The points after a step, and what they miss by: the longest of 1, 1/2, 1/4 … of it that comes closer."""
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
