"""Local deformation: smooth B-spline field from block matches."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import splu

from .block_matches import BlockSize, Matches, match_blocks
from .overview import OverviewPair, RegistrationView
from .transform import FloatArray, LocalField, Transform, jacobian_range, spline_support, to_moving

BoolArray: TypeAlias = npt.NDArray[np.bool_]

Sparse: TypeAlias = Any
"""Sparse array of scipy, whose stubs do not know the results of operations."""

Extent: TypeAlias = tuple[float, float, float, float]
"""Rectangle on the fixed slide: (x, y, width, height) in µm."""

STIFFNESSES = tuple(10.0**power for power in range(7))
"""Stiffnesses to choose from, softest first. At 1e6 a field bends over millimeters only."""

TUKEY = 4.685
"""Standard deviations beyond which residuals have no weight (95 % efficiency on normal errors)."""

FOLDS = 5
_SAMPLED_SQUARES, _SQUARE_BLOCKS = 3, 24
"""With more blocks, stiffness is chosen on this number of squares with this number of blocks along a side: it is a
property of tissue and blocks, and the system of equations grows faster than the number of blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Displacements:
    """Displacements of blocks of the fixed slide relative to the affine map."""

    points_um: FloatArray  # (N, 2), on the fixed slide
    moved_um: FloatArray  # (N, 2), measured displacement in the moving frame
    known_um: FloatArray  # (N, 2), displacement by the previous field
    weights: FloatArray  # (N,), 0 for outliers
    pitch_um: float  # distance between neighboring blocks
    block_um: float  # side of a block; the errors of overlapping blocks are correlated


@dataclass(frozen=True, slots=True, eq=False)
class FittedField:
    """Field fitted to displacements."""

    field: LocalField | None  # none if no field predicts them better than the previous one
    error_um: float  # median cross-validation error
    stiffness: float  # stiffness of the field


def fit_field(
    found: Displacements,
    extent_um: Extent,
    spacing_um: float,
    noise_um: float,
    is_possible: Callable[[LocalField], bool],
) -> FittedField:
    """Fit a local field to displacements, at least a dozen with a weight.

    The field covers ``extent_um``. ``noise_um`` is the smallest standard deviation of displacements. If a field is not
    plausible for tissue by ``is_possible``, the stiffness is raised.
    """
    weighted_blocks = found.weights > 0
    nothing = FittedField(None, float(np.median(_lengths(found.known_um - found.moved_um)[weighted_blocks])), math.inf)
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
    """Choose the stiffness by cross-validation; also return its median error in µm.

    None if the previous field predicts displacements better than any new one.
    """
    parts = [_part(found, square) for square in _squares(found)]
    errors = np.concatenate([_held_out_errors(part, spacing_um, noise_um) for part in parts], axis=1)
    known = np.concatenate([_limited(part.known_um - part.moved_um, part)[part.weights > 0] for part in parts])
    means = errors.mean(axis=1)
    best = int(means.argmin())
    if known.mean() <= means[best]:
        return None
    # overlapping blocks are not independent: count as many as fit side by side
    independent = max(4.0, errors.shape[1] * min(1.0, found.pitch_um / found.block_um) ** 2)
    limit = min(means[best] + errors[best].std() / math.sqrt(independent), float(known.mean()))
    chosen = max(index for index, mean in enumerate(means) if mean <= limit)
    return STIFFNESSES[chosen], float(np.median(errors[chosen]))


def _held_out_errors(found: Displacements, spacing_um: float, noise_um: float) -> FloatArray:
    """Return the cross-validation errors, (stiffnesses, blocks with a weight)."""
    low, high = found.points_um.min(axis=0), found.points_um.max(axis=0)
    (x, y), (right, bottom) = low.tolist(), high.tolist()
    controls = _ControlGrid((x, y, right - x, bottom - y), spacing_um)
    place = np.floor(found.points_um / (2 * found.block_um)).astype(int)
    fold = (place[:, 0] + 2 * place[:, 1]) % FOLDS
    weighted_blocks = found.weights > 0
    errors = np.zeros((len(STIFFNESSES), len(found.points_um)))
    design = controls.design(found.points_um)
    for number in range(FOLDS):
        held_out = weighted_blocks & (fold == number)
        kept = np.where(fold == number, 0.0, found.weights)
        if not held_out.any() or not kept.any():
            continue
        for row, stiffness in enumerate(STIFFNESSES):
            coefficients = _robust(controls, found, kept, stiffness, noise_um, rounds=3, design=design)
            errors[row, held_out] = _limited(np.asarray(design @ coefficients) - found.moved_um, found)[held_out]
    return errors[:, weighted_blocks]


def _limited(misses_um: FloatArray, found: Displacements) -> FloatArray:
    """Return the lengths of errors, clipped so that outliers do not affect the stiffness."""
    return np.asarray(np.minimum(_lengths(misses_um), found.block_um / 8))


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.hypot(vectors[:, 0], vectors[:, 1]))


class _ControlGrid:
    """Control points of a rectangle and their bending penalty."""

    def __init__(self, extent_um: Extent, spacing_um: float) -> None:
        x, y, width, height = extent_um
        self.spacing_um = spacing_um
        self.origin = (x - spacing_um, y - spacing_um)
        self.shape = (math.ceil(height / spacing_um) + 3, math.ceil(width / spacing_um) + 3)
        self.bending = _bending(*self.shape) / spacing_um**2

    def design(self, points_um: FloatArray) -> Sparse:
        """Return the matrix from coefficients to values at points, (points, control points)."""
        (rows, columns), count = self.shape, len(points_um)
        j, across = spline_support(points_um[:, 0], self.origin[0], self.spacing_um, columns)
        i, down = spline_support(points_um[:, 1], self.origin[1], self.spacing_um, rows)
        indices = (i[:, None, :] * columns + j[None, :, :]).reshape(16, count)
        weights = (down[:, None, :] * across[None, :, :]).reshape(16, count)
        at = np.broadcast_to(np.arange(count), (16, count))
        return sparse.csr_array((weights.ravel(), (at.ravel(), indices.ravel())), shape=(count, rows * columns))


def _bending(rows: int, columns: int) -> Sparse:
    """Return the sum of squared second differences of a (rows, columns) grid as a quadratic form."""

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
    """Fit coefficients (control points, 2) with rounds of Tukey weights."""
    if design is None:
        design = controls.design(found.points_um)
    weighted_blocks, current = weights > 0, weights
    coefficients = np.zeros((controls.bending.shape[0], 2))
    # regularizes the system where there are too few blocks to fix a plane
    penalty = stiffness * controls.bending + 1e-9 * sparse.eye_array(controls.bending.shape[0])
    for _ in range(rounds):
        weighted = design.multiply(current[:, None]).tocsr()
        system = sparse.csc_array(design.T @ weighted + penalty)
        solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        coefficients = solver.solve(np.asarray(weighted.T @ found.moved_um))
        misses = _lengths(np.asarray(design @ coefficients) - found.moved_um)
        spread = max(1.4826 * float(np.median(misses[weighted_blocks])), noise_um)
        current = weights * np.clip(1 - (misses / (TUKEY * spread)) ** 2, 0, None) ** 2
    return coefficients


def _squares(found: Displacements) -> list[BoolArray]:
    """Return the blocks on which stiffness is chosen: all, or those of the fullest squares."""
    side_um = _SQUARE_BLOCKS * found.pitch_um
    weighted_blocks = found.weights > 0
    if weighted_blocks.sum() <= _SAMPLED_SQUARES * _SQUARE_BLOCKS**2:
        return [np.ones(len(weighted_blocks), np.bool_)]
    place = np.floor((found.points_um - found.points_um.min(axis=0)) / side_um).astype(int)
    number = place[:, 1] * (place[:, 0].max() + 1) + place[:, 0]
    held = np.bincount(number[weighted_blocks])
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


logger = logging.getLogger(__name__)

SIDES_PX = (360, 480)
"""Long sides of the slides in px at the first steps; then the size doubles."""

LARGEST_SIDE_PX = 6000
FINEST_MPP = 2.0
"""Resolution of the last step. At 2 µm per px the peak of a correlation is accurate to about 0.2 µm."""

SMALL_BLOCKS_MPP = 1.5 * FINEST_MPP
"""If the last step is at least as fine, another step matches smaller blocks."""

MOST_CONTROL_POINTS = 200
"""Largest number of control points along a side; solving for 200² takes 0.4 GB and some ten seconds."""

REFINE_AGREEMENT = 0.5
"""Smallest fraction of blocks that agree with their neighbors for a finer step: the cells of serial sections differ,
and small blocks match similar tissue elsewhere."""

FIT_AGREEMENT = 0.3
"""Smallest fraction of agreeing blocks for fitting a field."""

LEAST_AGREEING = 20

JACOBIAN = (0.5, 2.0)
"""Allowed range of the local change of area; beyond, tissue would tear or fold and the stiffness is raised."""


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Transform between the overviews after a step, fraction of agreeing blocks, median cross-validation error."""

    transform: Transform
    agreement: float
    error_um: float


def refined(
    pair: OverviewPair,
    slides: tuple[RegistrationView, RegistrationView],
    transform: Transform,
    spacing_um: float,
    workers: int,
) -> Iterator[Refinement]:
    """Iterate over refined transforms, from coarse to fine, starting with an affine map between the overviews.

    The overviews are used while they are fine enough; finer blocks are read from ``slides``, the fixed and the moving
    one. ``spacing_um`` is the smallest spacing of control points.
    """
    for size in _block_sizes(pair, slides):
        if size.mpp >= pair.finest_mpp:
            matches = match_blocks(pair.fixed.view, pair.moving.view, transform, size, workers=workers)
        else:
            matches = match_blocks(*slides, pair.on_slides(transform), size, workers=workers)
            matches = dataclasses.replace(matches, points_um=matches.points_um - np.array(pair.fixed.origin_um))
        fitted = _fitted(pair, transform, matches, spacing_um)
        if fitted is None:
            return
        logger.info(
            "%.3g µm/px: %d blocks, %.0f %% agree, stiffness %g, left-out error %.2f µm",
            matches.px_um, matches.count, 100 * matches.agreement, fitted.stiffness, fitted.error_um,
        )  # fmt: skip
        if fitted.field is not None:
            transform = dataclasses.replace(transform, field=fitted.field)
        yield Refinement(transform, matches.agreement, fitted.error_um)
        if matches.agreement < REFINE_AGREEMENT:
            return


def _block_sizes(pair: OverviewPair, slides: tuple[RegistrationView, RegistrationView]) -> list[BlockSize]:
    """Return the sizes of blocks, coarse to fine; the first has a larger search radius."""
    native = max(max(view.mpp) for view in slides)
    finest = max(FINEST_MPP, native, pair.longest_um / LARGEST_SIDE_PX)
    steps = [max(finest, pair.mpp(side)) for side in SIDES_PX]
    while steps[-1] > finest * 1.2:
        steps.append(max(finest, steps[-1] / 2))
    sizes = [BlockSize(mpp, 48, 24, 8 if number else 12) for number, mpp in enumerate(steps)]
    return [*sizes, BlockSize(steps[-1], 32, 16, 8)] if steps[-1] <= SMALL_BLOCKS_MPP else sizes


def _fitted(pair: OverviewPair, transform: Transform, matches: Matches, spacing_um: float) -> FittedField | None:
    """Fit a field to matches; None if they are too few or do not agree."""
    if matches.agree.sum() < LEAST_AGREEING or matches.agreement < FIT_AGREEMENT:
        return None
    points = matches.points_um
    straight = to_moving(dataclasses.replace(transform, field=None), points)
    step_um = matches.size.step_px * matches.px_um
    displacements = Displacements(
        points_um=points,
        moved_um=to_moving(transform, points + matches.offsets_um) - straight,
        known_um=to_moving(transform, points) - straight,
        weights=np.where(matches.agree, np.clip(matches.scores - 0.1, 0, 1), 0.0),
        pitch_um=step_um,
        block_um=matches.size.side_px * matches.px_um,
    )
    extent = pair.fixed.view.extent_um
    spacing_um = max(spacing_um, max(extent[2:]) / MOST_CONTROL_POINTS, step_um / 2)

    def is_possible(field: LocalField) -> bool:
        low, high = jacobian_range(dataclasses.replace(transform, field=field))
        return JACOBIAN[0] <= low and high <= JACOBIAN[1]

    return fit_field(displacements, extent, spacing_um, 0.2 * matches.px_um, is_possible)
