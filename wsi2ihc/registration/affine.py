"""Affine registration from block matches, and its acceptance test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .block_matches import AGREE_PX, BlockSize, Matches, match_blocks
from .coarse import CoarseAlignment
from .deformation import TUKEY
from .overview import OverviewPair
from .transform import FloatArray, Transform

LEAST_MATCHES = 6

STRETCH = (0.85, 1.18)
"""Smallest and largest stretch between two sections; a map beyond is rejected. A measured pair of kidney sections has
0.905 along its worse axis."""

LARGEST_SHEAR = 1.18
"""Largest ratio of the two stretches."""

_ROUNDS = 30


def fit_affine(
    points_um: FloatArray, found_um: FloatArray, weights: FloatArray, tolerance_um: float
) -> tuple[FloatArray, npt.NDArray[np.bool_]] | None:
    """Fit an affine map to matches: RANSAC, then least squares with Tukey weights.

    Parameters
    ----------
    points_um, found_um
        (N, 2) each.
    weights
        (N,) weights of the matches.
    tolerance_um
        Largest distance of an inlier from the map.

    Returns
    -------
    matrix, agree
        Map (2, 3) and inliers (N,); None if no plausible map was found.
    """
    if len(points_um) < LEAST_MATCHES:
        return None
    # for 1,500 matches 0.3 to 0.9 ms; scikit-image's RANSAC takes 29 to 240
    guess, _ = cv2.estimateAffine2D(
        points_um.astype(np.float32), found_um.astype(np.float32), method=cv2.RANSAC,
        ransacReprojThreshold=tolerance_um, maxIters=5000, confidence=0.999,
    )  # fmt: skip
    if guess is None or not np.isfinite(guess).all():
        return None
    matrix = np.asarray(guess, np.float64)
    homogeneous = np.column_stack([points_um, np.ones(len(points_um))])
    for _ in range(_ROUNDS):
        distances = np.hypot(*(homogeneous @ matrix.T - found_um).T)
        near = distances[distances < tolerance_um]
        spread = max(1.4826 * float(np.median(near)) if near.size else tolerance_um, tolerance_um / 5)
        roots = np.sqrt(weights) * np.clip(1 - (distances / (TUKEY * spread)) ** 2, 0, None)
        if (roots > 0).sum() < LEAST_MATCHES:
            break
        matrix = np.linalg.lstsq(homogeneous * roots[:, None], found_um * roots[:, None], rcond=None)[0].T
    if not is_possible(matrix):
        return None
    return matrix, np.hypot(*(homogeneous @ matrix.T - found_um).T) < tolerance_um


def is_possible(matrix: FloatArray) -> bool:
    """Return whether the stretch and shear of a map are plausible for two sections."""
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(STRETCH[0] <= small and large <= STRETCH[1] and large <= LARGEST_SHEAR * small)


FIT_SIDES_PX = (240, 480)
"""Long sides of the slides in px at which affine maps are fitted in turn."""

FIT_RADII_PX = (14, 8)
"""Search radii at each of these sizes."""

VERIFICATIONS = ((240, 40, 16), (360, 48, 12))
"""Long side of the slides, side of a block, and search radius in px, used to verify a map. The blocks are so large that
serial sections share their pattern, and the search so wide that chance finds at most 5 % of them."""

LEAST_SCORE = 0.4
"""Smallest fraction of blocks found where a map predicts them. Measured: 0.44 to 0.87 on serial sections and parts of
them, at least 0.66 on restained ones; on 110 mismatched pairs at most 0.14, but once 0.27; on layered tissue mirrored
onto itself 0.37."""

LEAST_FOUND = 10
"""Smallest number of blocks found in the last verification; fewer may lie along one edge."""

LEAST_MARGIN = 1.7
"""Smallest ratio of the best score to the second best."""

VERIFIED = 3
"""Number of placements that are verified."""

APART = 0.05
"""Maps that differ by less than this fraction of the length of the slides are considered equal."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Affine map between two overviews and its quality."""

    candidate: CoarseAlignment  # coarse alignment from which it was fitted
    matrix: FloatArray  # (2, 3), from fixed to moving µm of the overviews
    score: float  # fraction of blocks found where it predicts them
    found: int  # number of these blocks
    residual_um: float  # their median distance from the prediction


def find_placement(
    pair: OverviewPair, candidates: Iterable[CoarseAlignment], *, mirror: bool, workers: int
) -> tuple[Placement | None, str]:
    """Return the best placement among the candidates and why it was rejected, or "" if it was accepted.

    Mirrored candidates are always tried: if one fits better, the others are wrong.
    """
    candidates = list(candidates)
    if not candidates:
        return None, "no placement of the two slides overlaps their tissue"
    fitted = [fit for candidate in candidates if (fit := _fitted(pair, candidate, workers)) is not None]
    if not fitted:
        return None, "the tissue does not match: no affine map fits more than a few of its blocks"
    verified = [_verified(pair, one, workers) for one in _distinct(pair, fitted)]
    best, *others = sorted(verified, key=lambda one: -one.score)
    problem = _rejection(best, others[0].score if others else 0.0)
    if not problem and best.candidate.mirrored and not mirror:
        problem = f"the section seems to lie face down ({best.score:.0%} of its blocks agree); allow that with --mirror"
    return best, problem


def _fitted(pair: OverviewPair, candidate: CoarseAlignment, workers: int) -> Placement | None:
    """Fit an affine map around a candidate; None if blocks do not agree on one."""
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
    """Fit the affine map of matches around a placement."""
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
    distances = np.hypot(*(points @ matrix[:, :2].T + matrix[:, 2] - found).T)
    count = int(agree.sum())
    return Placement(placement.candidate, matrix, count / matches.count, count, float(np.median(distances[agree])))


def _verified(pair: OverviewPair, placement: Placement, workers: int) -> Placement:
    """Return the placement with its score: the mean fraction of blocks found in the verifications."""
    shares, found = [], 0
    for side_px, block_px, radius_px in VERIFICATIONS:
        size = BlockSize(pair.mpp(side_px), block_px, block_px // 2, radius_px)
        matches = _match(pair, placement.matrix, size, workers)
        near = np.hypot(*matches.offsets_um.T) < AGREE_PX * matches.px_um
        shares.append(float(near.mean()) if near.size else 0.0)
        found = int(near.sum())
    return dataclasses.replace(placement, score=sum(shares) / len(shares), found=found)


def _match(pair: OverviewPair, matrix: FloatArray, size: BlockSize, workers: int) -> Matches:
    return match_blocks(pair.fixed.view, pair.moving.view, Transform(matrix), size, workers=workers)


def _distinct(pair: OverviewPair, fitted: Iterable[Placement]) -> list[Placement]:
    """Return the best distinct maps; different candidates may converge to the same map."""
    kept: list[Placement] = []
    for one in sorted(fitted, key=lambda one: -one.score):
        if all(pair.fixed.distance_um(one.matrix, other.matrix) > APART * pair.longest_um for other in kept):
            kept.append(one)
    return kept[:VERIFIED]


def _rejection(best: Placement, next_score: float) -> str:
    if best.found < LEAST_FOUND or best.score < LEAST_SCORE:
        return (
            f"the tissue does not match: the best placement finds {best.found} of its blocks ({best.score:.0%}), "
            f"but at least {LEAST_FOUND} and {LEAST_SCORE:.0%} are required"
        )
    if best.score < LEAST_MARGIN * next_score:
        return (
            f"two placements fit nearly as well ({best.score:.0%} and {next_score:.0%} of the blocks), so that either "
            "may be wrong"
        )
    return ""
