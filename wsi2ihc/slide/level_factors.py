"""Factors between the levels of a slide, also of levels that are padded to whole tiles.

The *factor* of a level is the number of level-0 px that one of its pixels spans (`Level.downsample`); its *step* is the
factor relative to the level before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..geometry import Size
from .protocol import Level

_ROUNDING_PX = 2.0  # largest difference of a side of a level from an exact quotient


def is_divided_by(full: Size, level: Size, factor: int) -> bool:
    """Whether a level has the size of the slide divided by a whole factor, each side rounded up or down."""
    sides = ((full.width, level.width), (full.height, level.height))
    return all(small in (large // factor, -(-large // factor)) for large, small in sides)


def mean_factor(full: Size, level: Size) -> float:
    """Return the factor of a level by its size: the mean over both sides."""
    return (full.width / level.width + full.height / level.height) / 2


def can_be_level(full: Size, level: Size, tile: Size) -> bool:
    """Whether a smaller image can be a level of ``full``, either exact or padded to whole tiles."""
    if level.width > full.width or level.height > full.height or level == full:
        return False
    return has_exact_size(full, level) or padded_factor_range(full, level, tile) is not None


def has_exact_size(full: Size, level: Size, factor: float | None = None) -> bool:
    """Whether a level has the size of the slide divided by ``factor`` (None: any), except for rounding: no padding."""
    factor = mean_factor(full, level) if factor is None else factor
    sides = ((full.width, level.width), (full.height, level.height))
    return all(abs(small - large / factor) <= _ROUNDING_PX for large, small in sides)


def padded_factor_range(full: Size, level: Size, tile: Size) -> tuple[float, float] | None:
    """Return the range of factors for which a level padded to whole tiles has its size; None if there is none.

    A side of ``stored`` px that is a multiple of the tile's shows more than ``stored - tile`` and at most ``stored`` px
    of the slide. Any other side is not padded, and only rounded.
    """
    low, high = 1.0, math.inf
    for large, stored, side in ((full.width, level.width, tile.width), (full.height, level.height, tile.height)):
        most, least = (stored + 1, max(stored - 1, 0.5)) if stored % side else (stored + 0.5, stored - side)
        low = max(low, large / most)
        if least > 0:  # a level of a single tile may show any part of it
            high = min(high, large / least)
    return (low, high) if low < high else None


Agreement = Callable[[int, float], float | None]
"""Function of the number of a level and its step: how well the pixels of both levels agree, -1 to 1; None if both are
blank."""

_CERTAIN, _MARGIN = 0.5, 0.03
"""Smallest agreement of a factor that is accepted, and smallest margin over every other one."""

_MAX_CANDIDATES = 40  # most factors of a level whose agreement is measured, which reads pixels
_MAX_STEP = 16  # largest step that is considered


def corrected_levels(
    levels: Sequence[Level], tiles: Sequence[Size], tag_factors: Sequence[float | None], agreement: Agreement
) -> tuple[Level, ...]:
    """Return the levels with their true factors, and without padding to whole tiles.

    Some writers pad levels to whole tiles, and rarely say so. If the size of a level allows several factors, the first
    of these that decides is used: the agreement of its pixels with the level before (not of a blank slide), the
    resolution tags, a reported power of two, or the step of the level before. A level whose factor remains unknown is
    left out, with those after it.

    ``tiles`` has the size of each level's tiles, 1×1 if unknown; ``tag_factors`` the factors by the resolution tags.
    """
    full = levels[0].size
    resolved = [levels[0]]
    for number in range(1, len(levels)):
        candidates = _possible_factors(full, levels[number], tiles[number], resolved[-1].downsample)
        factor = _chosen_factor(number, candidates, levels[number], tag_factors[number], resolved, agreement)
        if factor is None:
            break
        resolved.append(Level(_unpadded_size(full, levels[number].size, factor), factor))
    return tuple(resolved)


def _possible_factors(full: Size, level: Level, tile: Size, before: float) -> list[float]:
    """List the factors that explain the size of a level, padded or not; else the one that its reader reports."""
    factors = {level.downsample} if has_exact_size(full, level.size) else set()
    padded = padded_factor_range(full, level.size, tile)
    if padded is not None:
        first = max(2, math.ceil(padded[0]), math.floor(before) + 1)
        last = min(padded[1], before * _MAX_STEP)
        whole = [
            factor
            for factor in range(first, math.floor(last) + 1)
            if _explains_side(full.width, factor, tile.width, level.size.width)
            and _explains_side(full.height, factor, tile.height, level.size.height)
        ]
        if len(whole) > _MAX_CANDIDATES:
            whole = [factor for factor in whole if factor % before == 0 or _is_power_of_two(factor)]
        factors.update(map(float, whole[:_MAX_CANDIDATES]))
    return sorted(factors) or [level.downsample]


def _explains_side(large: int, factor: int, tile: int, stored: int) -> bool:
    """Whether a side divided by a factor has the stored length, either exact or padded to whole tiles."""
    quotients = (large // factor, -(-large // factor))
    return any(stored in (quotient, -(-quotient // tile) * tile) for quotient in quotients if quotient)


def _chosen_factor(
    number: int,
    candidates: Sequence[float],
    level: Level,
    tag_factor: float | None,
    resolved: Sequence[Level],
    agreement: Agreement,
) -> float | None:
    if len(candidates) == 1:
        return candidates[0]
    before = resolved[-1].downsample
    scores = [(agreement(number, factor / before), factor) for factor in candidates]
    known = sorted(((score, factor) for score, factor in scores if score is not None), reverse=True)
    if known and known[0][0] >= _CERTAIN and (len(known) == 1 or known[0][0] - known[1][0] >= _MARGIN):
        return known[0][1]
    if tag_factor is not None:
        for factor in candidates:
            if abs(tag_factor / factor - 1) < 0.01:
                return factor
    if level.downsample in candidates and _is_power_of_two(level.downsample):
        return level.downsample
    step = before / resolved[-2].downsample if len(resolved) > 1 else 2.0
    return before * step if before * step in candidates else None


def _is_power_of_two(factor: float) -> bool:
    return float(factor).is_integer() and int(factor).bit_count() == 1


def _unpadded_size(full: Size, stored: Size, factor: float) -> Size:
    """Return the size of a level without its padding."""
    return Size(
        min(stored.width, max(1, math.ceil(full.width / factor - 1e-6))),
        min(stored.height, max(1, math.ceil(full.height / factor - 1e-6))),
    )
