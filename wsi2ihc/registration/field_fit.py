"""A smooth local field from scattered displacements, with as much smoothing as they warrant.

Minimises ``sum_b w_b |f(p_b) - d_b|² + stiffness · ∫ |second derivatives of f|²`` over uniform cubic B-splines (a
smoothing spline, as thin plates are, with a sparse system), iterated with Tukey's weights against outliers. How stiff
it has to be is asked of the data: the stiffest field that predicts blocks it has not seen as well as any other does,
within one standard error (Hastie, Tibshirani and Friedman, Elements of Statistical Learning, section 7.10).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import splu

from .transform import FloatArray, LocalField, spline_support

BoolArray: TypeAlias = npt.NDArray[np.bool_]

Sparse: TypeAlias = Any
"""A sparse array of scipy's, whose stubs do not know what kind comes of which operation."""

Extent: TypeAlias = tuple[float, float, float, float]
"""A rectangle on the fixed slide: (x, y, width, height) in µm."""

STIFFNESSES = tuple(10.0**power for power in range(7))
"""What is tried, softest first. At 1e6 a field bends over millimetres only."""

TUKEY = 4.685
"""Residuals beyond so many standard deviations count for nothing: 95 % efficiency on normal errors."""

FOLDS = 5
_SAMPLED_SQUARES, _SQUARE_BLOCKS = 3, 24
"""Where there are more blocks than that, stiffness is chosen on so many squares of so many blocks each way: what is
chosen is a property of the tissue and the blocks, and the system to solve grows faster than its number of blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Displacements:
    """Where blocks of the fixed slide were found, beside where the affine map puts them.

    points_um:  (N, 2), on the fixed slide
    moved_um:   (N, 2), displacement in the moving frame, beyond the affine map
    known_um:   (N, 2), what was known of it before
    weights:    (N,), 0 for what is not to be believed
    pitch_um:   distance between neighbouring blocks
    block_um:   side of a block; neighbours that overlap share their errors
    """

    points_um: FloatArray
    moved_um: FloatArray
    known_um: FloatArray
    weights: FloatArray
    pitch_um: float
    block_um: float


@dataclass(frozen=True, slots=True, eq=False)
class FittedField:
    """What the displacements warrant.

    field:      or None, where nothing predicts them better than what was known before
    error_um:   how far blocks lie from a field that was not fitted to them (median)
    stiffness:  of the field
    """

    field: LocalField | None
    error_um: float
    stiffness: float


def fit_field(
    found: Displacements,
    extent_um: Extent,
    spacing_um: float,
    noise_um: float,
    is_possible: Callable[[LocalField], bool],
) -> FittedField:
    """The local field that the displacements warrant.

    Parameters
    ----------
    found
        A dozen of them, at least, with a weight.
    extent_um
        What the field has to cover.
    spacing_um
        Of control points.
    noise_um
        The least standard deviation that is believed of the displacements.
    is_possible
        Whether tissue can deform like this; a field that is not is made stiffer until it is.
    """
    believed = found.weights > 0
    nothing = FittedField(None, float(np.median(_lengths(found.known_um - found.moved_um)[believed])), math.inf)
    choice = choose_stiffness(found, spacing_um, noise_um)
    if choice is None:
        return nothing
    chosen, error_um = choice
    controls = _ControlGrid(extent_um, spacing_um)
    for stiffness in (value for value in STIFFNESSES if value >= chosen):
        coefficients = _robust(controls, found, found.weights, stiffness, noise_um, rounds=6)
        field = LocalField(controls.origin, spacing_um, coefficients.reshape(*controls.shape, 2))
        if is_possible(field):
            return FittedField(field, error_um, stiffness)
    return nothing


def choose_stiffness(found: Displacements, spacing_um: float, noise_um: float) -> tuple[float, float] | None:
    """The stiffness, and the median error, µm, of predicting displacements that were left out.

    None if what was known before predicts them better than any field does.
    """
    parts = [_part(found, square) for square in _squares(found)]
    errors = np.concatenate([_held_out_errors(part, spacing_um, noise_um) for part in parts], axis=1)
    known = np.concatenate([_limited(part.known_um - part.moved_um, part)[part.weights > 0] for part in parts])
    means = errors.mean(axis=1)
    best = int(means.argmin())
    if known.mean() <= means[best]:
        return None
    # blocks that overlap are not independent: as many are counted as would lie side by side
    independent = max(4.0, errors.shape[1] * min(1.0, found.pitch_um / found.block_um) ** 2)
    limit = min(means[best] + errors[best].std() / math.sqrt(independent), float(known.mean()))
    chosen = max(index for index, mean in enumerate(means) if mean <= limit)
    return STIFFNESSES[chosen], float(np.median(errors[chosen]))


def _held_out_errors(found: Displacements, spacing_um: float, noise_um: float) -> FloatArray:
    """(stiffnesses, blocks with a weight): how far each block lies from a field that was fitted without its folds."""
    low, high = found.points_um.min(axis=0), found.points_um.max(axis=0)
    (x, y), (right, bottom) = low.tolist(), high.tolist()
    controls = _ControlGrid((x, y, right - x, bottom - y), spacing_um)
    place = np.floor(found.points_um / (2 * found.block_um)).astype(int)
    fold = (place[:, 0] + 2 * place[:, 1]) % FOLDS
    believed = found.weights > 0
    errors = np.zeros((len(STIFFNESSES), len(found.points_um)))
    design = controls.design(found.points_um)
    for number in range(FOLDS):
        held_out = believed & (fold == number)
        kept = np.where(fold == number, 0.0, found.weights)
        if not held_out.any() or not kept.any():
            continue
        for row, stiffness in enumerate(STIFFNESSES):
            coefficients = _robust(controls, found, kept, stiffness, noise_um, rounds=3, design=design)
            errors[row, held_out] = _limited(np.asarray(design @ coefficients) - found.moved_um, found)[held_out]
    return errors[:, believed]


def _limited(misses_um: FloatArray, found: Displacements) -> FloatArray:
    """How long misses are; a wild block says nothing about stiffness."""
    return np.asarray(np.minimum(_lengths(misses_um), found.block_um / 8))


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.hypot(vectors[:, 0], vectors[:, 1]))


class _ControlGrid:
    """The control points of a rectangle, and what a bend between them costs."""

    def __init__(self, extent_um: Extent, spacing_um: float) -> None:
        x, y, width, height = extent_um
        self.spacing_um = spacing_um
        self.origin = (x - spacing_um, y - spacing_um)
        self.shape = (math.ceil(height / spacing_um) + 3, math.ceil(width / spacing_um) + 3)
        self.bending = _bending(*self.shape) / spacing_um**2

    def design(self, points_um: FloatArray) -> Sparse:
        """The matrix that takes coefficients to values at points: (points, control points)."""
        (rows, columns), count = self.shape, len(points_um)
        j, across = spline_support(points_um[:, 0], self.origin[0], self.spacing_um, columns)
        i, down = spline_support(points_um[:, 1], self.origin[1], self.spacing_um, rows)
        indices = (i[:, None, :] * columns + j[None, :, :]).reshape(16, count)
        weights = (down[:, None, :] * across[None, :, :]).reshape(16, count)
        at = np.broadcast_to(np.arange(count), (16, count))
        return sparse.csr_array((weights.ravel(), (at.ravel(), indices.ravel())), shape=(count, rows * columns))


def _bending(rows: int, columns: int) -> Sparse:
    """Sum of squares of the second differences of a (rows, columns) grid, as a quadratic form."""

    def second(count: int) -> Sparse:
        return sparse.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(count - 2, count))

    def first(count: int) -> Sparse:
        return sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(count - 1, count))

    across: Sparse = sparse.kron(sparse.eye_array(rows), second(columns))
    down: Sparse = sparse.kron(second(rows), sparse.eye_array(columns))
    mixed: Sparse = sparse.kron(first(rows), first(columns))
    return sparse.csc_array(across.T @ across + down.T @ down + 2 * (mixed.T @ mixed))


def _robust(
    controls: _ControlGrid,
    found: Displacements,
    weights: FloatArray,
    stiffness: float,
    noise_um: float,
    rounds: int,
    design: Sparse | None = None,
) -> FloatArray:
    """Coefficients (control points, 2) after so many rounds of Tukey's weights."""
    if design is None:
        design = controls.design(found.points_um)
    believed, current = weights > 0, weights
    coefficients = np.zeros((controls.bending.shape[0], 2))
    # a trace of identity keeps the system regular where there are too few blocks to fix a plane
    penalty = stiffness * controls.bending + 1e-9 * sparse.eye_array(controls.bending.shape[0])
    for _ in range(rounds):
        weighted = design.multiply(current[:, None]).tocsr()
        system = sparse.csc_array(design.T @ weighted + penalty)
        solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        coefficients = solver.solve(np.asarray(weighted.T @ found.moved_um))
        misses = _lengths(np.asarray(design @ coefficients) - found.moved_um)
        spread = max(1.4826 * float(np.median(misses[believed])), noise_um)
        current = weights * np.clip(1 - (misses / (TUKEY * spread)) ** 2, 0, None) ** 2
    return coefficients


def _squares(found: Displacements) -> list[BoolArray]:
    """The blocks on which stiffness is chosen: all, or those of the fullest squares."""
    side_um = _SQUARE_BLOCKS * found.pitch_um
    believed = found.weights > 0
    if believed.sum() <= _SAMPLED_SQUARES * _SQUARE_BLOCKS**2:
        return [np.ones(len(believed), np.bool_)]
    place = np.floor((found.points_um - found.points_um.min(axis=0)) / side_um).astype(int)
    number = place[:, 1] * (place[:, 0].max() + 1) + place[:, 0]
    held = np.bincount(number[believed])
    fullest = np.sort(held)[::-1][:_SAMPLED_SQUARES]
    least = max(12, int(fullest[-1]))
    return [number == square for square in np.flatnonzero(held >= least)[:_SAMPLED_SQUARES]]


def _part(found: Displacements, which: BoolArray) -> Displacements:
    return dataclasses.replace(
        found,
        points_um=found.points_um[which],
        moved_um=found.moved_um[which],
        known_um=found.known_um[which],
        weights=found.weights[which],
    )
