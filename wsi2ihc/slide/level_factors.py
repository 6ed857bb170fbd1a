"""True downsampling factors of levels, also if these are padded to whole tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..geometry import Size
from .protocol import Level

_ROUNDING_PX = 2.0
"""Largest difference of a side of a level from an exact quotient."""


def whole_factor(full: Size, level: Size) -> int | None:
    """Find the integer by which both sides were divided, rounded up or down; None if there is none."""
    factor = round((full.width / level.width + full.height / level.height) / 2)
    sides = ((full.width, level.width), (full.height, level.height))
    if factor >= 2 and all(small in (large // factor, -(-large // factor)) for large, small in sides):
        return factor
    return None


def fits_as_level(full: Size, level: Size, tile: Size) -> bool:
    """Whether a smaller image can be a level of ``full``, either exact or padded to whole tiles."""
    if level.width > full.width or level.height > full.height or level == full:
        return False
    return has_shape_of(full, level) or factor_range(full, level, tile) is not None


def has_shape_of(full: Size, level: Size) -> bool:
    """Whether a level has the aspect ratio of the slide, except for rounding."""
    downsample = (full.width / level.width + full.height / level.height) / 2
    return all(
        abs(small - large / downsample) <= _ROUNDING_PX
        for small, large in ((level.width, full.width), (level.height, full.height))
    )


def factor_range(full: Size, level: Size, tile: Size) -> tuple[float, float] | None:
    """Return the range of factors for which a level padded to whole tiles has its size; None if there is none.

    A side of ``stored`` px, a multiple of the tile's, holds more than ``stored - tile`` and at most ``stored`` px.
    """
    low, high = 1.0, math.inf
    for large, stored, side in (
        (full.width, level.width, tile.width),
        (full.height, level.height, tile.height),
    ):
        if stored % side:
            # Not padded on this side, so the exact quotient.
            first, last = large / (stored + 1), large / max(stored - 1, 0.5)
        else:
            first, last = large / (stored + 0.5), large / (stored - side) if stored > side else math.inf
        low, high = max(low, first), min(high, last)
    return (low, high) if low < high else None


Agreement = Callable[[int, float], float | None]
"""Function of the number of a level and its factor relative to the level before: how well both levels agree, -1 to 1;
None if both are blank."""

_CERTAIN, _MARGIN = 0.5, 0.03
"""Smallest agreement of a factor that is accepted, and smallest margin over every other one."""

_MAX_CANDIDATES = 40
_MAX_STEP = 16
"""Largest factor relative to the level before that is considered."""


def settled_levels(
    levels: Sequence[Level], tiles: Sequence[Size], tag_factors: Sequence[float | None], agreement: Agreement
) -> tuple[Level, ...]:
    """Return the levels with their true factors, and without padding to whole tiles.

    Some writers pad levels to whole tiles, and rarely say so. If the sizes allow several factors, the pixels decide; if
    the pixels do not (a blank slide), the resolution in the tags, or the ratio of the levels before. A level whose
    factor cannot be determined is left out, with those after it.

    Parameters
    ----------
    levels
        As the library reports them.
    tiles
        Size of each level's tiles; 1×1 where they are not known.
    tag_factors
        The factor of each level by its resolution tags, or None.
    agreement
        Compares a level with the one before it.
    """
    full = levels[0].size
    resolved = [levels[0]]
    for number in range(1, len(levels)):
        options = _possible_factors(full, levels[number], tiles[number], resolved[-1].downsample)
        factor = _decided(number, options, levels[number], tag_factors[number], resolved, agreement)
        if factor is None:
            break
        resolved.append(Level(_held(full, levels[number].size, factor), factor))
    return tuple(resolved)


def _possible_factors(full: Size, level: Level, tile: Size, before: float) -> list[float]:
    """List the factors that explain the size of a level, padded or not; the reported factor if none does."""
    found = {level.downsample} if has_shape_of(full, level.size) else set()
    limits = factor_range(full, level.size, tile)
    if limits is not None:
        first = max(2, math.ceil(limits[0]), math.floor(before) + 1)
        last = min(limits[1], before * _MAX_STEP)
        whole = [
            factor
            for factor in range(first, math.floor(last) + 1)
            if _pads_to(full.width, factor, tile.width, level.size.width)
            and _pads_to(full.height, factor, tile.height, level.size.height)
        ]
        if len(whole) > _MAX_CANDIDATES:
            whole = [factor for factor in whole if factor % before == 0 or factor & (factor - 1) == 0]
        found.update(map(float, whole[:_MAX_CANDIDATES]))
    return sorted(found) or [level.downsample]


def _pads_to(large: int, factor: int, tile: int, stored: int) -> bool:
    """Whether a side divided by a factor has the stored length, either exact or padded to whole tiles."""
    quotients = (large // factor, -(-large // factor))
    return any(stored in (quotient, -(-quotient // tile) * tile) for quotient in quotients if quotient)


def _decided(
    number: int,
    options: Sequence[float],
    level: Level,
    tag_factor: float | None,
    resolved: Sequence[Level],
    agreement: Agreement,
) -> float | None:
    if len(options) == 1:
        return options[0]
    before = resolved[-1].downsample
    scores = [(agreement(number, factor / before), factor) for factor in options]
    known = sorted(((score, factor) for score, factor in scores if score is not None), reverse=True)
    if known and known[0][0] >= _CERTAIN and (len(known) == 1 or known[0][0] - known[1][0] >= _MARGIN):
        return known[0][1]
    if tag_factor is not None:
        for factor in options:
            if abs(tag_factor / factor - 1) < 0.01:
                return factor
    if level.downsample in options and level.downsample.is_integer() and int(level.downsample).bit_count() == 1:
        return level.downsample
    step = before / resolved[-2].downsample if len(resolved) > 1 else 2.0
    regular = before * step
    return regular if regular in options else None


def _held(full: Size, stored: Size, factor: float) -> Size:
    """Size of the part of a level that is not padding."""
    return Size(
        min(stored.width, max(1, math.ceil(full.width / factor - 1e-6))),
        min(stored.height, max(1, math.ceil(full.height / factor - 1e-6))),
    )
