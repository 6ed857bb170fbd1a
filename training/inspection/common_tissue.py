"""Which patches show the same tissue: candidates by votes, confirmed by the correlation of what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.ordered import ordered_map

from .fingerprints import Fingerprint, turned
from .voting import Candidate, find_candidates

LEAST_CORRELATION = 0.5
"""Of the thumbnails' fine structure where they lie on each other. The same tissue has 0.85 to 1, compressed, noisy or
blurred, too; 0.5 to 0.8 if it is also turned by 1° or 2 % larger; less if turned by 2°. Candidates that were none had
up to 0.42 (in photographs of houses; tissue had no such candidate)."""

FINE_PX = 4.0
"""Standard deviation of the Gaussian that is taken off: what is wider than that looks alike in much tissue."""

LEAST_CONTRAST = 1.0
"""Grey levels of standard deviation below which there is nothing to correlate."""

STEPS_PX = (-1.0, -0.5, 0.5, 1.0)
"""Shifts of the thumbnail that are tried around the one that was voted for: along x, and from the best along y."""

AHEAD = 64


@dataclass(frozen=True, slots=True)
class Common:
    """Tissue that two patches have in common.

    first, second:  their numbers, first < second
    turn:           what brings the first into the second's orientation, as `turn_matrix` numbers it
    shift_px:       and then onto it: (x, y) between their centres, in px of the patches
    share:          of the smaller patch, 0 to 1
    correlation:    of the fine structure there
    """

    first: int
    second: int
    turn: int
    shift_px: tuple[float, float]
    share: float
    correlation: float


def find_common(
    prints: Sequence[Fingerprint],
    factor: int,
    pool: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> list[Common]:
    """All pairs of patches that show the same tissue, in the order of their numbers.

    A common part that is narrower than 30 reduced px is not found, nor one of glass alone. On 1,311 real patches of
    256 px (742 overlapping pairs, by the correlation of all pairs at all shifts), 485 of 486 that share 15 % and more
    of a patch were found, 74 of 80 that share 10 to 15 %, and 43 of 108 that share 5 to 10 %. All 608 pairs that were
    found are true. Of pairs that were compressed, blurred, made noisy, darkened, mirrored or turned and share half a
    patch of 512 px, all were found, and 9 of 10 that share a fifth.

    Parameters
    ----------
    prints
        of all patches
    factor
        by which they were reduced
    pool
        of threads
    progress
        called with the number of candidates that are looked at and that of all
    """
    candidates = find_candidates(prints)
    found = []
    looked_at = ordered_map(pool, lambda one: _confirmed(prints, one, factor), candidates, AHEAD)
    for done, common in enumerate(looked_at, 1):
        if common is not None:
            found.append(common)
        if progress:
            progress(done, len(candidates))
    return found


def _confirmed(prints: Sequence[Fingerprint], candidate: Candidate, factor: int) -> Common | None:
    first, second = prints[candidate.first], prints[candidate.second]
    share = common_share(first, second, candidate.turn, candidate.shift_px)
    correlation = _correlation(first, second, candidate.turn, candidate.shift_px)
    if correlation < LEAST_CORRELATION:
        return None
    shift = (candidate.shift_px[0] * factor, candidate.shift_px[1] * factor)
    return Common(candidate.first, candidate.second, candidate.turn, shift, share, correlation)


def common_share(first: Fingerprint, second: Fingerprint, turn: int, shift_px: tuple[float, float]) -> float:
    """Share of the smaller patch that lies in both, if the first is turned and shifted (reduced px, of centres)."""
    width, height = (first.size.height, first.size.width) if turn & 4 else (first.size.width, first.size.height)
    sides = (width, second.size.width, shift_px[0]), (height, second.size.height, shift_px[1])
    overlaps = [min(a / 2 + shift, b / 2) - max(-a / 2 + shift, -b / 2) for a, b, shift in sides]
    smaller = min(first.size.width * first.size.height, second.size.width * second.size.height)
    return max(overlaps[0], 0.0) * max(overlaps[1], 0.0) / smaller


def _correlation(first: Fingerprint, second: Fingerprint, turn: int, shift_px: tuple[float, float]) -> float:
    """The highest one near the shift; 0 where there is nothing to correlate."""
    step = max(first.step, second.step)
    moving, fixed = _fine(turned(_at_step(first, step), turn)), _fine(_at_step(second, step))
    # of the upper left corners, since pixels are counted from there
    corner = [
        shift / step + (to - of) / 2
        for shift, of, to in zip(shift_px, moving.shape[::-1], fixed.shape[::-1], strict=True)
    ]
    best, x, y = _at(moving, fixed, corner[0], corner[1]), corner[0], corner[1]
    best, x = max([(best, x), *((_at(moving, fixed, x + step, y), x + step) for step in STEPS_PX)])
    return max([best, *(_at(moving, fixed, x, y + step) for step in STEPS_PX)])


def _at_step(one: Fingerprint, step: int) -> npt.NDArray[np.uint8]:
    """The thumbnail, at the coarser step of a larger patch."""
    if one.step == step:
        return one.thumbnail
    rows, columns = (max(1, round(side * one.step / step)) for side in one.thumbnail.shape)
    return np.asarray(cv2.resize(one.thumbnail, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def _fine(plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    values = np.ascontiguousarray(plane).astype(np.float32)
    return np.asarray(cv2.subtract(values, cv2.GaussianBlur(values, (0, 0), FINE_PX)), np.float32)


def _at(moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32], x: float, y: float) -> float:
    """Pearson's correlation with the moving plane's corner at (x, y) of the fixed one."""
    size = (fixed.shape[1], fixed.shape[0])
    matrix = np.array([[1, 0, x], [0, 1, y]])
    shifted = cv2.warpAffine(moving, matrix, size, flags=cv2.INTER_LINEAR)
    rows = slice(max(0, int(np.ceil(y))), int(min(size[1], np.floor(y + moving.shape[0] - 1) + 1)))
    columns = slice(max(0, int(np.ceil(x))), int(min(size[0], np.floor(x + moving.shape[1] - 1) + 1)))
    one, other = shifted[rows, columns].ravel(), fixed[rows, columns].ravel()
    if one.size < 4 or min(one.std(), other.std()) < LEAST_CONTRAST:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
