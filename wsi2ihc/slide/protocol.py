"""The `Slide` protocol: metadata, and pixels of one level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import UnreadableSlideError
from ..geometry import RGB, WHITE, Region, RGBImage, Size
from ..text import pluralize

if TYPE_CHECKING:
    from tifffile import TiffPage


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a slide's pyramid.

    ``downsample`` is how many level-0 px one of its pixels spans, a float (1.0 for level 0).
    """

    size: Size
    downsample: float


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One of the images that a file holds."""

    name: str  # as the file calls it, "" where it does not
    size: Size  # in px
    # its number, which chooses it; None where it cannot be chosen (a label or macro that OpenSlide lists)
    series: int | None = None
    page: int | None = None  # number of its first page; None where it has none
    planes: int = 1  # how many images of this size it has: focal planes, times, sections
    levels: int = 1  # how many resolutions it has
    mpp: tuple[float, float] | None = None  # µm per px along (x, y), or None
    pixels: str = ""  # what its pixels are; "" where it is not known
    chosen: bool = False  # it is the slide


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideInfo:
    """Metadata of an open slide."""

    name: str  # base name of the file or URL, never its folder
    reader: str  # "openslide", "tiffslide", "pillow" (plain images) or "memory"
    vendor: str  # scanner family as the reader names it ("aperio", "generic-tiff", …)
    levels: tuple[Level, ...]  # largest first; ``levels[0].size`` is the slide's size
    mpp: tuple[float, float] | None  # µm per level-0 px along (x, y); None where unknown or absurd
    mpp_source: str  # where mpp comes from: "slide", "tiff tags", "stated" or ""
    magnification: float | None = None  # objective's nominal magnification, or None
    bounds: Region  # the scanned area in level-0 px (the whole slide where the format has none)
    background: RGB = WHITE  # what the format says missing areas look like; white where it says nothing
    icc_profile: bytes | None = None  # embedded color profile, or None
    quickhash: str  # OpenSlide's quickhash-1 where it has one, else a hash of our own with the prefix "sha256:"
    # modification time of a local file, whole s since 1970, else None. It distinguishes a file from one that replaced
    # it, because the hashes of readers do not cover all pixels
    changed_at: int | None = None
    problems: tuple[str, ...] = ()  # human-readable problems and warnings, one sentence each
    mpp_option: str = "--mpp"  # command-line option that states another mpp, for messages
    levels_checked: bool = False  # whether the lower levels were compared with level 0
    images: tuple[ImageEntry, ...] = ()  # images of the file, including the slide; empty if unknown

    @property
    def size(self) -> Size:
        """Size of level 0 in px."""
        return self.levels[0].size

    def described(self) -> dict[str, Any]:
        """Return the metadata for a report, as JSON values without paths."""
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
        """Read the pixels of ``region``, in px of that level: (height, width, 3) uint8 RGB.

        The region may lie partly or wholly outside the level. Where the slide has no pixels (outside, or missing
        tiles), the result is ``fill``, by default ``info.background``; half-transparent pixels are composited on it.
        If the file is damaged there, `UnreadableSlideError` names the file and the place in level-0 px.
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
        return self._slide.path

    @property
    def info(self) -> SlideInfo:
        return self._info

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        return self._slide.read_level(level, region, fill)

    def is_blank(self, level: int, region: Region) -> bool:
        return self._slide.is_blank(level, region)

    def close(self) -> None:
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...] | str:
        return self._slide.__reduce__()


_MIXED_SHARE = 0.1  # largest fraction of half-transparent pixels of an alpha channel, where they occur only at edges


def alpha_in(samples: npt.NDArray[np.uint8]) -> Literal["", "straight", "premultiplied"]:
    """Whether the fourth of four samples, (n, 4), behaves as alpha, and whether the colors are multiplied by it.

    Alpha is 255 or 0 nearly everywhere, and where it is 0 there are no colors. Infrared, focus or filler is not so.
    """
    colors, fourth = samples[:, :3], samples[:, 3]
    clear = fourth == 0
    if not clear.any() or not (fourth == 255).any():
        return ""
    mixed = (fourth > 0) & (fourth < 255)
    if mixed.mean() > _MIXED_SHARE or np.ptp(colors[clear], axis=0).any():
        return ""
    return "premultiplied" if (colors.max(axis=1) <= fourth).all() else "straight"


def transparent(name: str) -> str:
    """Return the message for an image that cannot be seen at all."""
    return f"{name}: its alpha channel makes all of it transparent; export it as RGB without alpha"


def fill_with(pixels: RGBImage, color: RGB) -> None:
    """Set all of an image, or of a view of one, to one color."""
    # One value for all channels is a memset; three are not.
    pixels[...] = color[0] if color[0] == color[1] == color[2] else color


def filled(width: int, height: int, color: RGB) -> RGBImage:
    """Make an image of one color, (height, width, 3)."""
    pixels = np.empty((height, width, 3), np.uint8)
    fill_with(pixels, color)
    return pixels


def composited(image: Image.Image, fill: RGB) -> RGBImage:
    """Composite an RGBA image (not premultiplied) on ``fill``: (height, width, 3) uint8.

    Pixels of full opacity are left exactly as they are, and those of none become exactly ``fill``.
    """
    alpha = image.getchannel("A")
    low, high = alpha.getextrema()
    if low == 255:
        return np.asarray(image.convert("RGB"))
    if high == 0:
        return filled(image.width, image.height, fill)
    base = Image.new("RGB", image.size, fill)
    base.paste(image.convert("RGB"), mask=alpha)
    return np.asarray(base)


_RGB, _PALETTE, _YCBCR = 2, 3, 6

_PHOTOMETRIC = {
    0: "gray levels (MinIsWhite)", 1: "gray levels (MinIsBlack)", 4: "a transparency mask", 5: "inks (CMYK)",
    8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a color filter array", 32844: "LogL", 32845: "LogLuv",
    34892: "linear raw samples", 51177: "a depth map",
}  # fmt: skip
"""PhotometricInterpretation (TIFF tag 262) that is not RGB."""

_SAMPLE_FORMAT = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}

Alpha = Literal["", "straight", "premultiplied", "unspecified"]


@dataclass(frozen=True, slots=True)
class PixelKind:
    """The kind of the samples of an image."""

    samples: int  # samples per pixel
    bits: int  # bits per sample
    problem: str = ""  # why they are not 8-bit RGB, to follow "its pixels"; "" if they are
    alpha: Alpha = ""  # what the fourth sample is; "" if there is none
    note: str = ""  # how they are converted, one sentence, or ""

    @property
    def is_rgb(self) -> bool:
        """Whether the image can be a slide."""
        return not self.problem

    def refusal(self, name: str) -> UnreadableSlideError:
        return not_rgb(name, self.problem)


def pixel_kind(page: TiffPage) -> PixelKind:
    """Determine the kind of the pixels of a TIFF page from its tags."""
    samples, bits = int(page.samplesperpixel), int(page.bitspersample)
    photometric = int(page.photometric)

    def bad(problem: str) -> PixelKind:
        return PixelKind(samples, bits, problem)

    depths = page.tags.valueof(258, default=bits)
    depths = depths if isinstance(depths, tuple) else (depths,)
    if bits != 8 or any(depth != 8 for depth in depths):
        return bad(samples_of_bits(samples, max(bits, *map(int, depths))))
    if int(page.sampleformat) in _SAMPLE_FORMAT:
        return bad(f"are {_SAMPLE_FORMAT[int(page.sampleformat)]}")
    if int(page.imagedepth) != 1:
        return bad(f"lie in {page.imagedepth} planes of one image (ImageDepth)")
    if photometric == _PALETTE and samples == 1:
        return PixelKind(samples, bits, note="Its colors are indexed (a palette); they are converted to RGB.")
    if samples < 3:
        return bad(samples_of_bits(samples, bits))
    if photometric not in (_RGB, _YCBCR):
        meaning = _PHOTOMETRIC.get(photometric, f"of an unknown kind (PhotometricInterpretation {photometric})")
        return bad(f"have {samples} samples that the file declares to be {meaning}")
    if samples == 3:
        return PixelKind(samples, bits)
    if samples > 4 or photometric == _YCBCR:
        return bad(f"have {samples} samples, of which only 3 are colors")
    return PixelKind(samples, bits, alpha=_alpha(page))


def samples_of_bits(samples: int, bits: int) -> str:
    """Describe pixels that have too few samples, or samples of another depth."""
    return f"have {pluralize(samples, 'sample')} of {pluralize(bits, 'bit')}"


def not_rgb(name: str, problem: str) -> UnreadableSlideError:
    """Create the error for an image with pixels of another kind; ``problem`` follows "its pixels"."""
    return UnreadableSlideError(
        f"{name}: its pixels {problem}, not 8-bit RGB, so it cannot be read as a brightfield slide; "
        "export the H&E image as 8-bit RGB"
    )


def _alpha(page: TiffPage) -> Alpha:
    """Determine the kind of the fourth sample (ExtraSamples, TIFF tag 338)."""
    extra = [int(kind) for kind in page.extrasamples]
    if extra[:1] == [1]:
        return "premultiplied"
    return "straight" if extra[:1] == [2] else "unspecified"
