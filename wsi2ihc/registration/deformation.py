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

logger = logging.getLogger(__name__)

BoolArray: TypeAlias = npt.NDArray[np.bool_]

Sparse: TypeAlias = Any
"""Sparse array of scipy, whose stubs do not know the results of operations."""

Extent: TypeAlias = tuple[float, float, float, float]
"""Rectangle on the fixed slide: (x, y, width, height) in µm."""

# fit of a field to displacements

STIFFNESSES = tuple(10.0**power for power in range(7))
"""Stiffnesses to choose from, softest first: weights of the bending penalty. At 1e6 a field bends over millimeters
only."""

TUKEY = 4.685
"""Standard deviations beyond which residuals have no weight (95 % efficiency on normal errors)."""

FOLDS = 5
"""Number of parts of cross-validation."""

SAMPLED_SQUARES, SQUARE_BLOCKS = 3, 24
"""Number of squares on which the stiffness of a large field is chosen, and number of blocks along their sides. The
stiffness depends on tissue and block size rather than on area, and the time of a fit grows faster than the area."""

MIN_BLOCKS = 20
"""Minimum number of agreeing blocks for a fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Displacements:
    """Displacements of blocks of the fixed slide relative to the affine map."""

    points_um: FloatArray  # (N, 2), on the fixed slide
    measured_um: FloatArray  # (N, 2), in the frame of the moving slide
    previous_um: FloatArray  # (N, 2), by the previous field
    weights: FloatArray  # (N,), 0 for outliers
    pitch_um: float  # distance between neighboring blocks
    block_um: float  # side of a block; the errors of overlapping blocks are correlated


@dataclass(frozen=True, slots=True, eq=False)
class FittedField:
    """Result of a fit."""

    field: LocalField | None  # None if no plausible field predicts the displacements better than the previous one
    error_um: float  # median held-out error of the field; without one, median error of the previous field
    stiffness: float  # stiffness of the field; infinite without one


def fit_field(
    blocks: Displacements,
    extent_um: Extent,
    spacing_um: float,
    noise_um: float,
    is_plausible: Callable[[LocalField], bool],
) -> FittedField:
    """Fit a local field to displacements, at least `MIN_BLOCKS` with a weight.

    The field covers ``extent_um``. ``noise_um`` is the minimum standard deviation of residuals. The stiffness is raised
    until ``is_plausible`` accepts the field.
    """
    choice = choose_stiffness(blocks, spacing_um, noise_um)
    if choice is not None:
        least, error_um = choice
        controls = _ControlGrid(extent_um, spacing_um)
        design = controls.design(blocks.points_um)
        for stiffness in (value for value in STIFFNESSES if value >= least):
            coefficients = _fit_robustly(controls, design, blocks, blocks.weights, stiffness, noise_um, rounds=6)
            field = LocalField(controls.origin, spacing_um, coefficients.reshape(*controls.shape, 2))
            if is_plausible(field):
                return FittedField(field, error_um, stiffness)
    previous_errors = _lengths(blocks.previous_um - blocks.measured_um)[blocks.weights > 0]
    return FittedField(None, float(np.median(previous_errors)), math.inf)


def choose_stiffness(blocks: Displacements, spacing_um: float, noise_um: float) -> tuple[float, float] | None:
    """Choose the stiffness by cross-validation; also return its median held-out error in µm.

    None if the previous field has a smaller mean error than any new one.
    """
    parts = [_part(blocks, square) for square in _squares(blocks)]
    errors = np.concatenate([_held_out_errors(part, spacing_um, noise_um) for part in parts], axis=1)
    previous = np.concatenate([_clipped(part.previous_um - part.measured_um, part)[part.weights > 0] for part in parts])
    means = errors.mean(axis=1)
    best = int(means.argmin())
    if previous.mean() <= means[best]:
        return None
    # the one-standard-error rule: the stiffest field whose error is not significantly larger than the smallest one;
    # overlapping blocks are not independent, so that only as many as fit side by side count
    independent = max(4.0, errors.shape[1] * min(1.0, blocks.pitch_um / blocks.block_um) ** 2)
    limit = min(means[best] + errors[best].std() / math.sqrt(independent), float(previous.mean()))
    chosen = int(np.flatnonzero(means <= limit)[-1])
    return STIFFNESSES[chosen], float(np.median(errors[chosen]))


def _held_out_errors(blocks: Displacements, spacing_um: float, noise_um: float) -> FloatArray:
    """Return the error at each block of fields that were fitted without it, (stiffnesses, blocks with a weight)."""
    (x, y), (right, bottom) = blocks.points_um.min(axis=0).tolist(), blocks.points_um.max(axis=0).tolist()
    controls = _ControlGrid((x, y, right - x, bottom - y), spacing_um)
    design = controls.design(blocks.points_um)
    # cells of 2 x 2 block sides, all eight neighbors of which are in other folds
    cells = np.floor(blocks.points_um / (2 * blocks.block_um)).astype(int)
    folds = (cells[:, 0] + 2 * cells[:, 1]) % FOLDS
    has_weight = blocks.weights > 0
    # no displacement is predicted if all blocks are in one fold, so that none is left for a fit
    errors = np.tile(_clipped(blocks.measured_um, blocks), (len(STIFFNESSES), 1))
    for fold in range(FOLDS):
        held_out = has_weight & (folds == fold)
        kept = np.where(folds == fold, 0.0, blocks.weights)
        if not held_out.any() or not kept.any():
            continue
        for row, stiffness in enumerate(STIFFNESSES):
            coefficients = _fit_robustly(controls, design, blocks, kept, stiffness, noise_um, rounds=3)
            residuals = np.asarray(design @ coefficients) - blocks.measured_um
            errors[row, held_out] = _clipped(residuals, blocks)[held_out]
    return errors[:, has_weight]


def _clipped(residuals_um: FloatArray, blocks: Displacements) -> FloatArray:
    """Return the lengths of residuals, at most an eighth of a block: outliers must not determine the stiffness."""
    return np.asarray(np.minimum(_lengths(residuals_um), blocks.block_um / 8))


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.hypot(vectors[:, 0], vectors[:, 1]))


class _ControlGrid:
    """Control points of cubic B-splines over a rectangle, one beyond each edge, and their bending penalty."""

    def __init__(self, extent_um: Extent, spacing_um: float) -> None:
        x, y, width, height = extent_um
        self.spacing_um = spacing_um
        self.origin = (x - spacing_um, y - spacing_um)
        self.shape = (math.ceil(height / spacing_um) + 3, math.ceil(width / spacing_um) + 3)
        self.bending = _bending(*self.shape) / spacing_um**2

    def design(self, points_um: FloatArray) -> Sparse:
        """Return the matrix from coefficients to values at points, (points, control points)."""
        (rows, columns), count = self.shape, len(points_um)
        column, weights_x = spline_support(points_um[:, 0], self.origin[0], self.spacing_um, columns)
        row, weights_y = spline_support(points_um[:, 1], self.origin[1], self.spacing_um, rows)
        controls = (row[:, None, :] * columns + column[None, :, :]).reshape(16, count)
        weights = (weights_y[:, None, :] * weights_x[None, :, :]).reshape(16, count)
        points = np.broadcast_to(np.arange(count), (16, count))
        return sparse.csr_array((weights.ravel(), (points.ravel(), controls.ravel())), shape=(count, rows * columns))


def _bending(rows: int, columns: int) -> Sparse:
    """Return the bending energy of a (rows, columns) grid, the sum of squared second differences, as a matrix."""
    xx: Sparse = sparse.kron(_differences(0, rows), _differences(2, columns))
    yy: Sparse = sparse.kron(_differences(2, rows), _differences(0, columns))
    xy: Sparse = sparse.kron(_differences(1, rows), _differences(1, columns))
    return sparse.csc_array(xx.T @ xx + yy.T @ yy + 2 * (xy.T @ xy))


def _differences(order: int, count: int) -> Sparse:
    """Return the matrix of differences between neighbors; order 0 is the identity."""
    stencil = ([1.0], [-1.0, 1.0], [1.0, -2.0, 1.0])[order]
    return sparse.diags_array(stencil, offsets=range(order + 1), shape=(count - order, count))


def _fit_robustly(
    controls: _ControlGrid,
    design: Sparse,
    blocks: Displacements,
    weights: FloatArray,
    stiffness: float,
    noise_um: float,
    rounds: int,
) -> FloatArray:
    """Fit coefficients (control points, 2) by least squares, reweighted in each round by Tukey's biweight."""
    count = controls.bending.shape[0]
    coefficients, current = np.zeros((count, 2)), weights
    # the second term keeps the system regular if there are too few blocks to fix a plane
    penalty = stiffness * controls.bending + 1e-9 * _differences(0, count)
    for _ in range(rounds):
        weighted = design.multiply(current[:, None]).tocsr()
        system = sparse.csc_array(design.T @ weighted + penalty)
        # for symmetric positive definite systems: no pivoting, and an ordering that keeps the factors sparse
        solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        coefficients = solver.solve(np.asarray(weighted.T @ blocks.measured_um))
        residuals = _lengths(np.asarray(design @ coefficients) - blocks.measured_um)
        # 1.4826 times the median is the standard deviation of normal residuals
        spread = max(1.4826 * float(np.median(residuals[weights > 0])), noise_um)
        current = weights * np.clip(1 - (residuals / (TUKEY * spread)) ** 2, 0, None) ** 2
    return coefficients


def _squares(blocks: Displacements) -> list[BoolArray]:
    """Return the blocks on which the stiffness is chosen: all, or those of the fullest squares."""
    has_weight = blocks.weights > 0
    if has_weight.sum() <= SAMPLED_SQUARES * SQUARE_BLOCKS**2:
        return [np.ones(len(has_weight), np.bool_)]
    origin_um = blocks.points_um.min(axis=0)
    cells = np.floor((blocks.points_um - origin_um) / (SQUARE_BLOCKS * blocks.pitch_um)).astype(int)
    square = cells[:, 1] * (cells[:, 0].max() + 1) + cells[:, 0]
    counts = np.bincount(square[has_weight])
    fullest = np.argsort(-counts, kind="stable")[:SAMPLED_SQUARES]
    return [square == one for one in np.sort(fullest) if counts[one] >= min(MIN_BLOCKS, counts.max())]


def _part(blocks: Displacements, is_inside: BoolArray) -> Displacements:
    return dataclasses.replace(
        blocks,
        points_um=blocks.points_um[is_inside],
        measured_um=blocks.measured_um[is_inside],
        previous_um=blocks.previous_um[is_inside],
        weights=blocks.weights[is_inside],
    )


# refinement by block matches, coarse to fine

SIDES_PX = (360, 480)
"""Longer sides of the overviews in px at the first two steps; every further step doubles the resolution."""

LARGEST_SIDE_PX = 6000
"""Maximum longer side of the slides in px at the last step, which limits its time."""

FINEST_MPP = 2.0
"""Finest resolution of a step. At 2 µm per px the peak of a correlation is accurate to about 0.2 µm."""

SMALL_BLOCKS_MPP = 1.5 * FINEST_MPP
"""If the last step is at least as fine, another step matches smaller blocks."""

MOST_CONTROL_POINTS = 200
"""Maximum number of control points along a side; solving for 200² takes 0.4 GB and some ten seconds."""

REFINE_AGREEMENT = 0.5
"""Minimum fraction of blocks that agree with their neighbors for a finer step: the cells of serial sections differ,
and small blocks match similar tissue elsewhere."""

FIT_AGREEMENT = 0.3
"""Minimum fraction of agreeing blocks for a fit."""

NOISE_PX = 0.2
"""Minimum standard deviation of residuals in px: after a close fit, small residuals are not outliers."""

ZERO_WEIGHT_SCORE = 0.1
"""Score at and below which a block has no weight; above, the weight grows with the score."""

JACOBIAN = (0.5, 2.0)
"""Allowed range of the local change of area; beyond, tissue would tear or fold and the stiffness is raised."""


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Result of a step."""

    transform: Transform  # between the overviews
    agreement: float  # fraction of agreeing blocks
    error_um: float  # see `FittedField`


def refine(
    pair: OverviewPair,
    slides: tuple[RegistrationView, RegistrationView],
    transform: Transform,
    spacing_um: float,
    workers: int,
) -> Iterator[Refinement]:
    """Refine an affine map between the overviews step by step, from coarse to fine.

    Blocks are read from the overviews as long as these are fine enough, then from ``slides``, the fixed and the moving
    one. ``spacing_um`` is the minimum spacing of control points.
    """
    for size in _block_sizes(pair, slides):
        if size.mpp >= pair.finest_mpp:
            matches = match_blocks(pair.fixed.view, pair.moving.view, transform, size, workers=workers)
        else:
            matches = match_blocks(*slides, pair.on_slides(transform), size, workers=workers)
            # from the frame of the slide to that of its overview
            matches = dataclasses.replace(matches, points_um=matches.points_um - np.array(pair.fixed.origin_um))
        if matches.agree.sum() < MIN_BLOCKS or matches.agreement < FIT_AGREEMENT:
            return
        fitted = _fit_matches(pair, transform, matches, spacing_um)
        logger.info(
            "%.3g µm/px: %d blocks, %.0f %% agree, %s, error %.2f µm",
            matches.px_um, matches.count, 100 * matches.agreement,
            "previous field" if fitted.field is None else f"stiffness {fitted.stiffness:g}", fitted.error_um,
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
    while steps[-1] > 1.2 * finest:  # a step that is hardly finer than the last one has no use
        steps.append(max(finest, steps[-1] / 2))
    sizes = [BlockSize(mpp, side_px=48, step_px=24, radius_px=8 if number else 12) for number, mpp in enumerate(steps)]
    if steps[-1] <= SMALL_BLOCKS_MPP:
        sizes.append(BlockSize(steps[-1], side_px=32, step_px=16, radius_px=8))
    return sizes


def _fit_matches(pair: OverviewPair, transform: Transform, matches: Matches, spacing_um: float) -> FittedField:
    points = matches.points_um
    affine = to_moving(dataclasses.replace(transform, field=None), points)
    step_um = matches.size.step_px * matches.px_um
    blocks = Displacements(
        points_um=points,
        measured_um=to_moving(transform, points + matches.offsets_um) - affine,
        previous_um=to_moving(transform, points) - affine,
        weights=np.where(matches.agree, np.clip(matches.scores - ZERO_WEIGHT_SCORE, 0, 1), 0.0),
        pitch_um=step_um,
        block_um=matches.size.side_px * matches.px_um,
    )
    extent = pair.fixed.view.extent_um
    # at most two control points from one block to the next
    spacing_um = max(spacing_um, max(extent[2:]) / MOST_CONTROL_POINTS, step_um / 2)

    def is_plausible(field: LocalField) -> bool:
        low, high = jacobian_range(dataclasses.replace(transform, field=field))
        return JACOBIAN[0] <= low and high <= JACOBIAN[1]

    return fit_field(blocks, extent, spacing_um, NOISE_PX * matches.px_um, is_plausible)
