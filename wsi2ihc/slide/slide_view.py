"""View of a slide: upright, and without the padding of its stored levels."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import RGB, RGBImage
from ..errors import UnreadableSlideError
from ..geometry import Region, Size
from .level_factors import settled_levels
from .pixels import fill_with
from .protocol import Level, Slide, SlideInfo, SlideWrapper
from .reader import SlideReader

_PATCH_PX = 64
_PATCHES = 12
_MIN_CONTRAST = 3.0
"""Smallest standard deviation of gray values of a patch that is compared."""

_TURNED = frozenset({5, 6, 7, 8})
_FLIPS = {2: "x", 3: "xy", 4: "y", 6: "x", 7: "xy", 8: "y"}
"""Axes along which an orientation (TIFF tag 274, EXIF) mirrors, after the transposition."""


class SlideView(SlideWrapper):
    """An open slide, turned upright and cropped. Thread-safe, like the slide.

    Parameters
    ----------
    slide
        The slide as stored; closed with this view.
    levels
        Its levels with their true factors, of the sizes to which they are cropped.
    orientation
        Value of TIFF tag 274.
    """

    def __init__(self, slide: SlideReader, levels: tuple[Level, ...], orientation: int) -> None:
        self._stored = levels
        self._turned = orientation in _TURNED
        self._flips = _FLIPS.get(orientation, "")
        super().__init__(slide, self._described(slide.info, orientation))

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """See `Slide.read_level`."""
        if not 0 <= level < len(self._stored):
            raise IndexError(f"{self._info.name} has levels 0 to {len(self._stored) - 1}, not {level}")
        size = self._stored[level].size
        stored = self._to_stored(level, region)
        inside = stored.intersection(Region(0, 0, size.width, size.height))
        if inside == stored:
            return self._upright(self._slide.read_level(level, stored, fill))
        pixels = np.empty((stored.height, stored.width, 3), np.uint8)
        fill_with(pixels, self._info.background if fill is None else fill)
        if not inside.is_empty:
            pixels[inside.slices_in(stored)] = self._slide.read_level(level, inside, fill)
        return self._upright(pixels)

    def is_blank(self, level: int, region: Region) -> bool:
        """See `Slide.is_blank`."""
        size = self._stored[level].size
        return self._slide.is_blank(
            level, self._to_stored(level, region).intersection(Region(0, 0, size.width, size.height))
        )

    def _to_stored(self, level: int, region: Region) -> Region:
        """Convert a region of the upright level to the stored one."""
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
        shown = tuple(Level(self._turn(level.size), level.downsample) for level in self._stored)
        mpp, bounds = info.mpp, info.bounds
        if self._turned:
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

    def _turn(self, size: Size) -> Size:
        return Size(size.height, size.width) if self._turned else size

    def _remarks(self, info: SlideInfo, orientation: int) -> list[str]:
        notes = []
        if orientation != 1:
            notes.append(
                f"Its orientation tag ({orientation}) is applied, so that it is upright; positions and masks refer to "
                "the upright slide, and programs that ignore the tag show it turned or mirrored."
            )
        padded = [
            number
            for number, (kept, stored) in enumerate(zip(self._stored, info.levels, strict=False))
            if kept.downsample != stored.downsample
        ]
        if padded:
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
            levels = settled_levels(levels, slide.tile_sizes, slide.tag_factors, _Comparison(slide).agreement)
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

    def agreement(self, level: int, times: float) -> float | None:
        """Correlate patches of a level with the level before, which is assumed to be ``times`` finer."""
        try:
            inside = self._inside(level, times)
            if inside is None:
                return -1.0
            pairs = [self._pair(level, patch, pixels, times) for patch, pixels in inside]
        except UnreadableSlideError:
            return None
        if not pairs:
            return None
        ours = np.concatenate([_centered(pixels) for pixels, _ in pairs])
        theirs = np.concatenate([_centered(pixels) for _, pixels in pairs])
        norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
        return float(ours @ theirs) / norm if norm > 0 else 0.0

    def _inside(self, level: int, times: float) -> list[tuple[Region, RGBImage]] | None:
        """Patches with the most contrast inside the slide at this factor; None if the padding has contrast."""
        finer = self._slide.info.levels[level - 1].size
        width, height = finer.width / times + 1, finer.height / times + 1
        found: list[tuple[Region, RGBImage]] = []
        for contrast, patch, pixels in self._contrasts(level):
            if patch.right <= width and patch.bottom <= height:
                found.append((patch, pixels))
            elif (patch.x >= width or patch.y >= height) and contrast >= _MIN_CONTRAST:
                return None
        return found[:_PATCHES]

    def _contrasts(self, level: int) -> list[tuple[float, Region, RGBImage]]:
        """Patches of a level with enough contrast, the highest first."""
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

    def _pair(self, level: int, patch: Region, pixels: RGBImage, times: float) -> tuple[RGBImage, RGBImage]:
        """A patch, and the same area of the level before."""
        left, top, right, bottom = (side * times for side in (patch.x, patch.y, patch.right, patch.bottom))
        region = Region(int(left), int(top), int(right) + 1 - int(left), int(bottom) + 1 - int(top))
        found = Image.fromarray(self._slide.read_level(level - 1, region))
        box = (left - region.x, top - region.y, right - region.x, bottom - region.y)
        return pixels, np.asarray(found.resize((patch.width, patch.height), Image.Resampling.BOX, box))


def _lattice(size: Size, side: int) -> list[Region]:
    """Patches spread over a level; they cover all of a small one."""
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
