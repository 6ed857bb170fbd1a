"""What a slide is to the rest of the program: facts, and pixels of one level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ..arrays import RGB, WHITE, RGBImage
from ..geometry import Region, Size


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a slide's pyramid.

    ``downsample`` is how many level-0 px one of its pixels spans, a float (1.0 for level 0).
    """

    size: Size
    downsample: float


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One of the images that a file holds.

    name:    as the file calls it, "" where it does not
    size:    in px
    series:  its number, which chooses it; None where it cannot be chosen (a label or macro that OpenSlide lists)
    page:    number of its first page; None where it has none
    planes:  how many images of this size it has: focal planes, times, sections
    levels:  how many resolutions it has
    mpp:     µm per px along (x, y), or None
    pixels:  what its pixels are; "" where it is not known
    chosen:  it is the slide
    """

    name: str
    size: Size
    series: int | None = None
    page: int | None = None
    planes: int = 1
    levels: int = 1
    mpp: tuple[float, float] | None = None
    pixels: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideInfo:
    """The facts of an open slide.

    name:            base name of the file or URL, never its folder
    reader:          "openslide", "tiffslide", "pillow" (plain images) or "memory"
    vendor:          scanner family as the reader names it ("aperio", "generic-tiff", …)
    levels:          largest first; ``levels[0].size`` is the slide's size
    mpp:             µm per level-0 px along (x, y); None where unknown or absurd
    mpp_source:      where mpp comes from: "slide", "tiff tags", "stated" or ""
    magnification:   objective's nominal magnification, or None
    bounds:          the scanned area in level-0 px (the whole slide where the format has none)
    background:      what the format says missing areas look like; white where it says nothing
    icc_profile:     embedded colour profile, or None
    quickhash:       OpenSlide's quickhash-1 where it has one, else a hash of our own with the prefix "sha256:"
    changed_at:      when the file was last changed, whole s since 1970; None of what is no local file. It tells a file
                     that was copied anew from what it was: readers' hashes do not cover all pixels
    problems:        what is wrong or doubtful, one sentence each, for people
    mpp_option:      what a user states another mpp with, for messages
    levels_checked:  whether the lower levels were compared with level 0 (see `agreement`)
    images:          what the file holds, the slide included; empty where that is not known
    """

    name: str
    reader: str
    vendor: str
    levels: tuple[Level, ...]
    mpp: tuple[float, float] | None
    mpp_source: str
    magnification: float | None = None
    bounds: Region
    background: RGB = WHITE
    icc_profile: bytes | None = None
    quickhash: str
    changed_at: int | None = None
    problems: tuple[str, ...] = ()
    mpp_option: str = "--mpp"
    levels_checked: bool = False
    images: tuple[ImageEntry, ...] = ()

    @property
    def size(self) -> Size:
        """Size of level 0 in px."""
        return self.levels[0].size

    def described(self) -> dict[str, Any]:
        """What a report says of the slide, as JSON values; no paths."""
        return {
            "name": self.name,
            "quickhash": self.quickhash,
            "reader": self.reader,
            "vendor": self.vendor,
            "width": self.size.width,
            "height": self.size.height,
            "bounds": [self.bounds.x, self.bounds.y, self.bounds.width, self.bounds.height],
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "magnification": self.magnification,
        }


def is_same_slide(one: SlideInfo, other: SlideInfo) -> bool:
    """Whether two slides are one file, or copies, as far as their hashes tell; False where one has none."""
    return bool(one.quickhash) and (one.quickhash, one.size) == (other.quickhash, other.size)


class Slide(Protocol):
    """An open slide. Thread-safe; not to be pickled or shared over a fork (send the path instead)."""

    @property
    def path(self) -> str | Path:
        """Path or URL that it was opened from."""
        ...

    @property
    def info(self) -> SlideInfo: ...

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """The pixels of ``region``, given in px of that level, as (height, width, 3) uint8 RGB.

        The region may lie partly or wholly outside the level. Where the slide has no pixels (outside, or missing
        tiles), the result is ``fill``, by default ``info.background``; half-transparent pixels are composited on it.

        Raises
        ------
        UnreadableSlideError
            Where the file is damaged there. The message names the file and the place in level-0 px.
        """
        ...

    def is_blank(self, level: int, region: Region) -> bool:
        """Whether it is known, without reading, that ``region`` (px of the level) has no pixels: all is ``fill``."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Slide: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SlideWrapper:
    """A slide that is read through another, and closed with it. Thread-safe, like the slide."""

    def __init__(self, slide: Slide, info: SlideInfo) -> None:
        self._slide = slide
        self._info = info

    @property
    def path(self) -> str | Path:
        """Path or URL that it was opened from."""
        return self._slide.path

    @property
    def info(self) -> SlideInfo:
        """Metadata of the slide as it is shown."""
        return self._info

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        """See `Slide.read_level`."""
        return self._slide.read_level(level, region, fill)

    def is_blank(self, level: int, region: Region) -> bool:
        """See `Slide.is_blank`."""
        return self._slide.is_blank(level, region)

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...] | str:
        return self._slide.__reduce__()
