"""How two slides lie upon each other, up to an affine map; and whether that can be believed.

Shape proposes and texture disposes. Blocks of tissue are looked for around where a candidate puts them, and an affine
map is fitted to where they are. Then every block is asked again, in a search so wide that chance finds few of them: the
share that is where the map puts it is the score. Slides that do not belong together, or lie the wrong way, fail here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .affine_fit import fit_affine
from .coarse import Candidate
from .matching import AGREE_PX, BlockSize, Matches, match_blocks
from .transform import FloatArray, Transform
from .views import OverviewPair

FIT_SIDES_PX = (240, 480)
"""Long side of the slides, px, at which affine maps are fitted, one after the other."""

FIT_RADII_PX = (14, 8)
"""How far blocks are looked for, at each of these."""

PROOFS = ((240, 40, 16), (360, 48, 12))
"""Long side of the slides, of a block, and radius of the search, px, with which a map is put to the proof: blocks so
large that serial sections still share their pattern, in a search so wide that chance finds 5 % of them and less."""

LEAST_SCORE = 0.4
"""Share of blocks that have to be where a map puts them. Measured: 0.44 to 0.87 on serial sections and parts of them,
0.66 and more on restained ones; on 110 pairs of slides that do not belong together 0.27 once, else 0.14 and less; on
layered tissue laid face down upon itself 0.37."""

LEAST_FOUND = 10
"""So many blocks have to be there at the last proof: fewer lie along one edge too easily."""

LEAST_MARGIN = 1.7
"""How many times the score of the next best placement it has to be."""

PROVED = 3
"""Placements that are put to the proof."""

APART = 0.05
"""Maps that differ by less than this share of the slides' length are one."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """An affine map between two overviews, and how good it is.

    candidate:    where it began
    matrix:       (2, 3), from fixed to moving µm of the overviews
    score:        share of blocks that are where it puts them, 0 to 1
    found:        how many those are
    residual_um:  how far they lie from it (median)
    """

    candidate: Candidate
    matrix: FloatArray
    score: float
    found: int
    residual_um: float


def find_placement(
    pair: OverviewPair, candidates: Iterable[Candidate], *, mirror: bool, workers: int
) -> tuple[Placement | None, str]:
    """The best of the placements that began as candidates, and why it is not to be believed; "" if it is.

    Candidates that lie face down are tried in any case: where they fit better than others, these are wrong.
    """
    candidates = list(candidates)
    if not candidates:
        return None, "no placement of the two slides lays tissue upon tissue"
    fitted = [fit for candidate in candidates if (fit := _fitted(pair, candidate, workers)) is not None]
    if not fitted:
        return None, "the tissue does not match: no affine map fits more than a few of its blocks"
    proved = [_proved(pair, one, workers) for one in _distinct(pair, fitted)]
    best, *others = sorted(proved, key=lambda one: -one.score)
    doubt = _doubt(best, others[0].score if others else 0.0)
    if not doubt and best.candidate.mirrored and not mirror:
        doubt = f"the section seems to lie face down ({best.score:.0%} of its blocks agree); allow that with --mirror"
    return best, doubt


def _fitted(pair: OverviewPair, candidate: Candidate, workers: int) -> Placement | None:
    """The affine map that blocks agree on around a candidate; None if there is none."""
    placement = Placement(candidate, candidate.matrix, 0.0, 0, np.inf)
    for side_px in FIT_SIDES_PX:
        for radius_px in FIT_RADII_PX:
            matches = _match(pair, placement.matrix, BlockSize(pair.mpp(side_px), 40, 20, radius_px), workers)
            better = _affine(placement, matches)
            if better is None:
                return None
            placement = better
    return placement


def _affine(placement: Placement, matches: Matches) -> Placement | None:
    """The map through where blocks were found around a placement."""
    linear, shift = placement.matrix[:, :2], placement.matrix[:, 2]
    usable = ~matches.at_border
    points = matches.points_um[usable]
    found = (points + matches.offsets_um[usable]) @ linear.T + shift
    weights = np.clip(matches.scores[usable], 0.05, 1) ** 2
    fit = fit_affine(points, found, weights, AGREE_PX * matches.px_um)
    if fit is None:
        return None
    matrix, agree = fit
    if not agree.any():
        return None
    misses = np.hypot(*(points @ matrix[:, :2].T + matrix[:, 2] - found).T)
    count = int(agree.sum())
    return Placement(placement.candidate, matrix, count / matches.count, count, float(np.median(misses[agree])))


def _proved(pair: OverviewPair, placement: Placement, workers: int) -> Placement:
    """The same placement; its score is the mean of the shares of blocks that the proofs find where it puts them."""
    shares, found = [], 0
    for side_px, block_px, radius_px in PROOFS:
        size = BlockSize(pair.mpp(side_px), block_px, block_px // 2, radius_px)
        matches = _match(pair, placement.matrix, size, workers)
        near = np.hypot(*matches.offsets_um.T) < AGREE_PX * matches.px_um
        shares.append(float(near.mean()) if near.size else 0.0)
        found = int(near.sum())
    return dataclasses.replace(placement, score=sum(shares) / len(shares), found=found)


def _match(pair: OverviewPair, matrix: FloatArray, size: BlockSize, workers: int) -> Matches:
    return match_blocks(pair.fixed.view, pair.moving.view, Transform(matrix), size, workers=workers)


def _distinct(pair: OverviewPair, fitted: Iterable[Placement]) -> list[Placement]:
    """The best maps, clearly different from each other: candidates that began apart may have come to the same."""
    kept: list[Placement] = []
    for one in sorted(fitted, key=lambda one: -one.score):
        if all(pair.fixed.distance_um(one.matrix, other.matrix) > APART * pair.longest_um for other in kept):
            kept.append(one)
    return kept[:PROVED]


def _doubt(best: Placement, next_score: float) -> str:
    if best.found < LEAST_FOUND or best.score < LEAST_SCORE:
        return (
            f"the tissue does not match: the best placement finds {best.found} of its blocks again ({best.score:.0%}), "
            f"where at least {LEAST_FOUND} and {LEAST_SCORE:.0%} are needed"
        )
    if best.score < LEAST_MARGIN * next_score:
        return (
            f"two placements fit nearly as well ({best.score:.0%} and {next_score:.0%} of the blocks), so that either "
            "may be wrong"
        )
    return ""
