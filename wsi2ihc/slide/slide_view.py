"""Views of a slide: agreement of its levels, orientation and crop."""

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

from ..errors import UnreadableSlideError
from ..geometry import RGB, WHITE, Region, RGBImage, Size
from ..system import cores
from .level_factors import corrected_levels
from .protocol import Level, Slide, SlideInfo, SlideWrapper, fill_with
from .readers.base import SlideReader

Cells: TypeAlias = npt.NDArray[np.float32]  # mean colors of the cells of a window: (side, side, 3)
WINDOW_PX = 256  # side of the windows in level-0 px
CELLS = 8  # most cells per side in which a window is compared; a cell has at least two px of the lower level
SHARE_OF_SLIDE, WINDOWS = 0.005, (16, 128)  # fraction of level 0 that is read, and the fewest and most windows
LARGEST_GUIDE_PX = 2_000_000  # largest size of the coarsest level for which it is searched for contrast

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
        return super().read_level(self._levels[level], region, fill)

    def is_blank(self, level: int, region: Region) -> bool:
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
    """Return the start of a window around ``middle`` (of the side), as a fraction of the possible starts."""
    return float(np.clip((middle * side_px - WINDOW_PX / 2) / max(1, side_px - WINDOW_PX), 0, 1))


def _differences(slide: Slide, region: Region) -> list[float]:
    """Return the difference of each lower level from level 0 in a region; NaN if unknown."""
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
    """Return the region of a level that covers a region of level 0."""
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


_PATCH_PX = 64
_PATCHES = 12
_MIN_CONTRAST = 3.0  # smallest standard deviation of gray values of a patch that is compared

_TURNED = frozenset({5, 6, 7, 8})
_FLIPS = {2: "x", 3: "xy", 4: "y", 6: "x", 7: "xy", 8: "y"}
"""Axes along which an orientation (TIFF tag 274, EXIF) mirrors, after the transposition."""


class SlideView(SlideWrapper):
    """An open slide, turned upright by its TIFF tag 274 and cropped to ``levels``, those with their true factors.

    Closing it closes the slide. Thread-safe, like the slide.
    """

    def __init__(self, slide: SlideReader, levels: tuple[Level, ...], orientation: int) -> None:
        self._stored = levels
        self._turned = orientation in _TURNED
        self._flips = _FLIPS.get(orientation, "")
        super().__init__(slide, self._described(slide.info, orientation))

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        if not 0 <= level < len(self._stored):
            raise IndexError(f"{self._info.name} has levels 0 to {len(self._stored) - 1}, not {level}")
        stored = self._to_stored(level, region)
        inside = stored.intersection(self._stored[level].size.frame)
        if inside == stored:
            return self._upright(self._slide.read_level(level, stored, fill))
        pixels = np.empty((stored.height, stored.width, 3), np.uint8)
        fill_with(pixels, self._info.background if fill is None else fill)
        if not inside.is_empty:
            pixels[inside.slices_in(stored)] = self._slide.read_level(level, inside, fill)
        return self._upright(pixels)

    def is_blank(self, level: int, region: Region) -> bool:
        return self._slide.is_blank(level, self._to_stored(level, region).intersection(self._stored[level].size.frame))

    def _to_stored(self, level: int, region: Region) -> Region:
        size = self._info.levels[level].size
        x = size.width - region.right if "x" in self._flips else region.x
        y = size.height - region.bottom if "y" in self._flips else region.y
        return Region(y, x, region.height, region.width) if self._turned else Region(x, y, region.width, region.height)

    def _upright(self, pixels: RGBImage) -> RGBImage:
        if self._turned:
            pixels = pixels.transpose(1, 0, 2)
        if "x" in self._flips:
            pixels = pixels[:, ::-1]
        if "y" in self._flips:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)

    def _described(self, info: SlideInfo, orientation: int) -> SlideInfo:
        shown, mpp, bounds = self._stored, info.mpp, info.bounds
        if self._turned:
            shown = tuple(Level(Size(one.size.height, one.size.width), one.downsample) for one in self._stored)
            bounds = Region(bounds.y, bounds.x, bounds.height, bounds.width)
            if mpp is not None and info.mpp_source != "stated":
                mpp = mpp[1], mpp[0]
        size = shown[0].size
        bounds = Region(
            size.width - bounds.right if "x" in self._flips else bounds.x,
            size.height - bounds.bottom if "y" in self._flips else bounds.y,
            bounds.width,
            bounds.height,
        )
        return dataclasses.replace(
            info, levels=shown, mpp=mpp, bounds=bounds, problems=(*info.problems, *self._remarks(info, orientation))
        )

    def _remarks(self, info: SlideInfo, orientation: int) -> list[str]:
        notes = []
        if orientation != 1:
            notes.append(
                f"Its orientation tag ({orientation}) is applied, so that it is upright; positions and masks refer to "
                "the upright slide, and programs that ignore the tag show it turned or mirrored."
            )
        levels = zip(self._stored, info.levels, strict=False)
        if any(kept.downsample != stored.downsample for kept, stored in levels):
            notes.append(
                f"Its levels are padded to whole tiles; the true factors are "
                f"{', '.join(f'{level.downsample:g}' for level in self._stored)}, and the padding is left out."
            )
        if len(self._stored) < len(info.levels):
            notes.append(
                f"{len(info.levels) - len(self._stored)} of its levels are not used: their scale cannot be determined."
            )
        return notes


def as_shown(slide: SlideReader) -> Slide:
    """Return the slide itself if it is stored upright and unpadded, else a view of it."""
    try:
        levels = slide.info.levels
        if slide.tile_sizes is not None:
            levels = corrected_levels(levels, slide.tile_sizes, slide.tag_factors, _Comparison(slide).agreement)
        if levels == slide.info.levels and slide.orientation == 1:
            return slide
        return SlideView(slide, levels, slide.orientation)
    except BaseException:
        slide.close()
        raise


class _Comparison:
    """Comparison of successive levels of a slide, to find the factor between them."""

    def __init__(self, slide: SlideReader) -> None:
        self._slide = slide
        self._places: dict[int, list[tuple[float, Region, RGBImage]]] = {}

    def agreement(self, level: int, step: float) -> float | None:
        """Correlate patches of a level with the level before, which is assumed to be ``step`` times finer."""
        try:
            inside = self._inside(level, step)
            if inside is None:
                return -1.0
            pairs = [self._pair(level, patch, pixels, step) for patch, pixels in inside]
        except UnreadableSlideError:
            return None
        if not pairs:
            return None
        ours = np.concatenate([_centered(pixels) for pixels, _ in pairs])
        theirs = np.concatenate([_centered(pixels) for _, pixels in pairs])
        norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
        return float(ours @ theirs) / norm if norm > 0 else 0.0

    def _inside(self, level: int, step: float) -> list[tuple[Region, RGBImage]] | None:
        """Return patches with the most contrast inside the slide at this factor; None if the padding has contrast."""
        finer = self._slide.info.levels[level - 1].size
        width, height = finer.width / step + 1, finer.height / step + 1
        found: list[tuple[Region, RGBImage]] = []
        for contrast, patch, pixels in self._contrasts(level):
            if patch.right <= width and patch.bottom <= height:
                found.append((patch, pixels))
            elif (patch.x >= width or patch.y >= height) and contrast >= _MIN_CONTRAST:
                return None
        return found[:_PATCHES]

    def _contrasts(self, level: int) -> list[tuple[float, Region, RGBImage]]:
        """List patches of a level with enough contrast, the highest first."""
        if level not in self._places:
            size = self._slide.info.levels[level].size
            side = max(8, min(_PATCH_PX, size.width // 4, size.height // 4))
            found = []
            for patch in _lattice(size, side):
                pixels = self._slide.read_level(level, patch)
                contrast = float(_gray(pixels).std())
                if contrast >= _MIN_CONTRAST:
                    found.append((contrast, patch, pixels))
            self._places[level] = sorted(found, key=lambda one: -one[0])
        return self._places[level]

    def _pair(self, level: int, patch: Region, pixels: RGBImage, step: float) -> tuple[RGBImage, RGBImage]:
        """Return a patch, and the same area of the level before."""
        left, top, right, bottom = (side * step for side in (patch.x, patch.y, patch.right, patch.bottom))
        region = Region(int(left), int(top), int(right) + 1 - int(left), int(bottom) + 1 - int(top))
        found = Image.fromarray(self._slide.read_level(level - 1, region))
        box = (left - region.x, top - region.y, right - region.x, bottom - region.y)
        return pixels, np.asarray(found.resize((patch.width, patch.height), Image.Resampling.BOX, box))


def _lattice(size: Size, side: int) -> list[Region]:
    """List patches spread over a level; they cover all of a small one."""
    steps_x = min(12, max(1, size.width // side))
    steps_y = min(12, max(1, size.height // side))
    return [
        Region(round(column * (size.width - side) / max(1, steps_x - 1)),
               round(row * (size.height - side) / max(1, steps_y - 1)), side, side)
        for row in range(steps_y)
        for column in range(steps_x)
    ]  # fmt: skip


def _gray(pixels: RGBImage) -> npt.NDArray[np.float32]:
    gray: npt.NDArray[np.float32] = pixels.mean(axis=2, dtype=np.float32)
    return gray


def _centered(pixels: RGBImage) -> npt.NDArray[np.float32]:
    gray = _gray(pixels).ravel()
    gray -= gray.mean()
    return gray
