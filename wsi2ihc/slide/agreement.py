"""Check that the lower levels of a slide show the same as level 0, in the same place.

Overviews, tissue masks and coarse working grids are read from lower levels. A level that is padded, shifted, from
another image or partly empty would misplace the mask, and tissue would be lost silently. So windows of level 0 are
compared with each lower level, and levels that disagree are not used.
"""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import RGB, WHITE, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region
from ..runtime import cores
from .protocol import Level, Slide, SlideWrapper

Cells: TypeAlias = npt.NDArray[np.float32]
"""Mean colors of the cells of a window: (side, side, 3)."""

WINDOW_PX = 256
"""Side of the windows in level-0 px."""

CELLS = 8
"""Most cells per side in which a window is compared; a cell has at least two px of the lower level."""

SHARE_OF_SLIDE, WINDOWS = 0.005, (16, 128)
"""Fraction of level 0 that is read, and the fewest and most windows."""

LARGEST_GUIDE_PX = 2_000_000
"""Largest size of the coarsest level for which it is searched for contrast."""

DIFFERENT, ENTIRELY_DIFFERENT = 16.0, 40.0
"""Mean absolute difference of a window's cells, in gray levels. Levels of public slides differ by up to 6, where edges
fall between px."""


_disagreeing: WeakKeyDictionary[Slide, frozenset[int]] = WeakKeyDictionary()
"""The lower levels of open slides that disagree with level 0."""


def agreeing_levels(slide: Slide) -> Slide:
    """Return the slide without the lower levels that disagree with level 0; closing it closes the slide.

    Its `SlideInfo.problems` names the levels that were left out. The result depends on the slide alone, and is
    determined once per open slide. Windows that cannot be read, or that are partly missing from level 0, are not
    compared.
    """
    info = slide.info
    if info.levels_checked or len(info.levels) == 1:
        return slide
    if slide not in _disagreeing:
        _disagreeing[slide] = _find_disagreeing(slide)
    bad = _disagreeing[slide]
    return _SlideOfLevels(slide, tuple(number for number in range(len(info.levels)) if number not in bad))


def level_problems(slide: Slide) -> tuple[str, ...]:
    """Return what `agreeing_levels` adds to the problems of a slide: a sentence, or nothing."""
    return agreeing_levels(slide).info.problems[len(slide.info.problems) :]


def _find_disagreeing(slide: Slide) -> frozenset[int]:
    with ThreadPoolExecutor(min(8, 2 * cores()), thread_name_prefix="levels") as executor:
        differences = np.array(list(executor.map(lambda region: _differences(slide, region), _regions(slide))))
    return frozenset(number for number in range(1, len(slide.info.levels)) if _disagrees(differences[:, number - 1]))


class _SlideOfLevels(SlideWrapper):
    """A slide with some of its levels."""

    def __init__(self, slide: Slide, levels: tuple[int, ...]) -> None:
        self._levels = levels
        stored, problems = slide.info.levels, slide.info.problems
        bad = sorted(set(range(len(stored))).difference(levels))
        if bad:
            left_out = ", ".join(f"{number} ({stored[number].downsample:.4g}x)" for number in bad)
            problems += (
                f"The lower levels {left_out} do not show what level 0 shows in the same place and are not "
                "used; the tissue is looked for on the levels that do.",
            )
        kept = tuple(stored[number] for number in levels)
        super().__init__(slide, dataclasses.replace(slide.info, levels=kept, problems=problems, levels_checked=True))

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """See `Slide.read_level`."""
        return super().read_level(self._levels[level], region, fill)

    def is_blank(self, level: int, region: Region) -> bool:
        """See `Slide.is_blank`."""
        return super().is_blank(self._levels[level], region)


def _regions(slide: Slide) -> list[Region]:
    """Choose windows of level 0: one at random in each cell of a grid over the scanned area, as many at contrast."""
    bounds = slide.info.bounds
    count = int(np.clip(SHARE_OF_SLIDE * bounds.area_px / WINDOW_PX**2, *WINDOWS))
    rng = np.random.default_rng(0)
    columns = max(1, round(math.sqrt(count / 2 * bounds.width / bounds.height)))
    rows = max(1, math.ceil(count / 2 / columns))
    spread = [((i + rng.random()) / columns, (j + rng.random()) / rows) for j in range(rows) for i in range(columns)]
    regions = []
    for across, down in [*spread, *_at_contrast(slide, count - count // 2, rng)]:
        x = bounds.x + int(across * max(0, bounds.width - WINDOW_PX))
        y = bounds.y + int(down * max(0, bounds.height - WINDOW_PX))
        regions.append(Region(x, y, WINDOW_PX, WINDOW_PX).intersection(bounds))
    return regions


def _at_contrast(slide: Slide, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw positions in the scanned area, 0 to 1 per axis, at edges of the coarsest level; at random if it has none."""
    info = slide.info
    number, level = len(info.levels) - 1, info.levels[-1]
    if level.size.area_px <= LARGEST_GUIDE_PX:
        try:
            guide = slide.read_level(number, _on_level(info.bounds, level), WHITE)
        except UnreadableSlideError:
            guide = np.zeros((1, 1, 3), np.uint8)
        gray = cv2.blur(cv2.cvtColor(guide, cv2.COLOR_RGB2GRAY), (3, 3))
        square = np.ones((3, 3), np.uint8)
        contrast = cv2.subtract(cv2.dilate(gray, square), cv2.erode(gray, square)).astype(np.float64)
        contrast[contrast < 12] = 0
        if contrast.any():
            drawn = rng.choice(contrast.size, count, p=(contrast / contrast.sum()).ravel())
            rows, columns = np.unravel_index(drawn, contrast.shape)
            # The position becomes the center of the window, moved inside the scanned area.
            return [
                (
                    _corner(column / contrast.shape[1], info.bounds.width),
                    _corner(row / contrast.shape[0], info.bounds.height),
                )
                for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
            ]
    return [(float(x), float(y)) for x, y in rng.random((count, 2))]


def _corner(middle: float, side_px: int) -> float:
    """Start of a window around ``middle`` (relative to the side), relative to the range of possible starts."""
    return float(np.clip((middle * side_px - WINDOW_PX / 2) / max(1, side_px - WINDOW_PX), 0, 1))


def _differences(slide: Slide, region: Region) -> list[float]:
    """Difference of each lower level from level 0 in a region; NaN if unknown."""
    levels = slide.info.levels
    unknown = [math.nan] * (len(levels) - 1)
    try:
        pixels = slide.read_level(0, region, WHITE)
    except UnreadableSlideError:
        return unknown
    quarters = [
        Region(region.x + dx, region.y + dy, -(-region.width // 2), -(-region.height // 2))
        for dx in (0, region.width // 2)
        for dy in (0, region.height // 2)
    ]
    if any(slide.is_blank(0, quarter) for quarter in quarters):
        return unknown
    return [_difference(slide, number, region, pixels) for number in range(1, len(levels))]


def _difference(slide: Slide, number: int, region: Region, pixels: RGBImage) -> float:
    level = slide.info.levels[number]
    side = min(CELLS, int(min(region.width, region.height) / level.downsample / 2))
    if side < 1:
        return math.nan
    around = _on_level(region, level)
    try:
        part = slide.read_level(number, around, WHITE)
    except UnreadableSlideError:
        return math.nan
    left, top = region.x / level.downsample - around.x, region.y / level.downsample - around.y
    right, bottom = region.right / level.downsample - around.x, region.bottom / level.downsample - around.y
    there = _cells(part, side, (left, top, min(right, around.width), min(bottom, around.height)))
    return float(np.abs(_cells(pixels, side, (0, 0, region.width, region.height)) - there).mean())


def _on_level(region: Region, level: Level) -> Region:
    """Region of a level that covers a region of level 0."""
    x, y = (math.floor(start / level.downsample) for start in (region.x, region.y))
    right, bottom = (math.ceil(stop / level.downsample) for stop in (region.right, region.bottom))
    return Region(x, y, right - x, bottom - y)


def _cells(pixels: RGBImage, side: int, box: tuple[float, float, float, float]) -> Cells:
    reduced = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX, box=box)
    return np.asarray(reduced, np.float32)


def _disagrees(differences: npt.NDArray[np.float64]) -> bool:
    """Whether a level is wrong: two windows are clearly different, or one entirely."""
    known = differences[~np.isnan(differences)]
    return bool((known > DIFFERENT).sum() >= 2 or (known > ENTIRELY_DIFFERENT).any())
