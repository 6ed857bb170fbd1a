"""The local field, from finer and finer blocks, as long as neighbours agree on where they went."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .field_fit import Displacements, FittedField, fit_field
from .local_field import LocalField
from .matching import BlockSize, Matches, match_blocks
from .transform import Transform, jacobian_range, to_moving
from .views import OverviewPair, SlideView

logger = logging.getLogger(__name__)

SIDES_PX = (360, 480)
"""Long side of the slides, px, at the first steps; then it doubles."""

LARGEST_SIDE_PX = 6000
FINEST_MPP = 2.0
"""Where the doubling ends. At 2 µm per px the peak of a block's correlation is known to some 0.2 µm."""

SMALL_BLOCKS_MPP = 1.5 * FINEST_MPP
"""Where the last step is as fine as this, a further one asks smaller blocks."""

MOST_CONTROL_POINTS = 200
"""Along a side; 200² take 0.4 GB and some ten seconds to solve for."""

GO_ON_AGREEMENT = 0.5
"""Finer blocks are asked only where this share of blocks agrees with its neighbours: the cells of serial sections
differ, and below some size blocks find look-alikes."""

KEEP_AGREEMENT = 0.3
"""Blocks that agree less say nothing."""

LEAST_AGREEING = 20

JACOBIAN = (0.5, 2.0)
"""Least and greatest area that a field may make of an area, beside the affine map; beyond, tissue would tear or fold.
A field that does is made stiffer until it does not."""


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """A step: the transform between the overviews; the share of blocks that agreed; the error of a field that was not
    fitted to the blocks it is tried on (median, µm).
    """

    transform: Transform
    agreement: float
    error_um: float


def refined(
    pair: OverviewPair, slides: tuple[SlideView, SlideView], transform: Transform, spacing_um: float, workers: int
) -> Iterator[Refinement]:
    """Better and better transforms; none where blocks warrant no field.

    Parameters
    ----------
    pair
        The overviews, which are asked as long as they are fine enough.
    slides
        Fixed and moving, of which pieces are read afterwards.
    transform
        The affine map between the overviews.
    spacing_um
        Of control points, at least.
    workers
        Threads.
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
        if matches.agreement < GO_ON_AGREEMENT:
            return


def _block_sizes(pair: OverviewPair, slides: tuple[SlideView, SlideView]) -> list[BlockSize]:
    """Coarse to fine; the first looks further, as an affine map leaves more to find."""
    native = max(max(view.mpp) for view in slides)
    finest = max(FINEST_MPP, native, pair.longest_um / LARGEST_SIDE_PX)
    steps = [max(finest, pair.mpp(side)) for side in SIDES_PX]
    while steps[-1] > finest * 1.2:
        steps.append(max(finest, steps[-1] / 2))
    sizes = [BlockSize(mpp, 48, 24, 8 if number else 12) for number, mpp in enumerate(steps)]
    return [*sizes, BlockSize(steps[-1], 32, 16, 8)] if steps[-1] <= SMALL_BLOCKS_MPP else sizes


def _fitted(pair: OverviewPair, transform: Transform, matches: Matches, spacing_um: float) -> FittedField | None:
    """The field that the matches warrant; None if they are too few, or do not agree."""
    if matches.agree.sum() < LEAST_AGREEING or matches.agreement < KEEP_AGREEMENT:
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
