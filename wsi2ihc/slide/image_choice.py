"""Choose the slide, and its levels, among the images of a file."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import OptionError, UnreadableSlideError
from ..geometry import Size
from ..text import pluralize
from .metadata import Mpp
from .protocol import ImageEntry, Level, PixelKind, not_rgb, pixel_kind
from .slide_xml import OmeImage, OmeXml

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_COMPANIONS = re.compile(r"(macro|label|thumbnail|overview|barcode)( image)?", re.IGNORECASE)
"""Names that the software of scanners gives to images other than the slide."""

_RIVAL_AREA = 0.5  # fraction of the pixels of the largest image from which another one may be the slide

_MUCH_LARGER = 2.0
"""An image that is not RGB, with more than this many times the pixels of the largest RGB one, is the scan."""

_COARSER = 1.5  # an image with this many times the µm per px is an overview
_FINER = 4.0  # if another image is this many times finer, the largest one may be an overview of a large area


@dataclass(frozen=True, slots=True)
class Choice:
    """The image of a file that the caller wants; None for the slide."""

    series: int | None = None  # number of the image, as `ImageEntry.series`
    page: int | None = None  # number of a page, as `ImageEntry.page`

    def __bool__(self) -> bool:
        return self.series is not None or self.page is not None

    def __str__(self) -> str:
        parts = (("--series", self.series), ("--page", self.page))
        return " ".join(f"{option} {number}" for option, number in parts if number is not None)


NO_CHOICE = Choice()


class CandidateImage(Protocol):
    """An image that may be the slide."""

    @property
    def number(self) -> int: ...
    @property
    def size(self) -> Size: ...
    @property
    def mpp(self) -> Mpp | None: ...
    @property
    def kind(self) -> PixelKind: ...
    @property
    def is_companion(self) -> bool:
        """Whether the file calls it a macro, a label, a thumbnail or a mask."""
        ...


C = TypeVar("C", bound=CandidateImage)


def is_companion_name(name: str) -> bool:
    """Whether software gives this name to macros, labels or thumbnails."""
    return _COMPANIONS.fullmatch(name.strip()) is not None


def the_slide(name: str, images: Sequence[C]) -> C:
    """Return the largest RGB image.

    Raises `UnreadableSlideError` if there is none, or another image may be the slide.
    """
    colors = [image for image in images if image.kind.is_rgb]
    if not colors:
        largest = max(images, key=lambda image: image.size.area_px, default=None)
        raise not_rgb(name, "are missing") if largest is None else largest.kind.refusal(name)
    candidates = [image for image in colors if not image.is_companion] or colors
    slide = max(candidates, key=lambda image: image.size.area_px)
    _check_larger(name, slide, images)
    rivals = [image for image in candidates if image is not slide and _is_rival(image, slide)]
    if rivals:
        listed = ", ".join(
            f"series {image.number} of {image.size} px"
            for image in sorted((slide, *rivals), key=lambda one: one.number)[:6]
        )
        raise UnreadableSlideError(
            f"{name}: {len(rivals) + 1} images in it may be the slide ({listed}); choose one with --series N"
        )
    return slide


def _check_larger(name: str, slide: CandidateImage, images: Sequence[CandidateImage]) -> None:
    """Refuse a file whose RGB image is only a macro, while the scan has another kind of pixels."""
    others = [image for image in images if not image.kind.is_rgb and not image.is_companion]
    largest = max((*others, slide), key=lambda image: image.size.area_px)
    if largest.size.area_px > _MUCH_LARGER * slide.size.area_px:
        raise UnreadableSlideError(
            f"{name}: the pixels of its largest image (series {largest.number}, {largest.size} px) "
            f"{largest.kind.problem}, not 8-bit RGB; if the slide is the RGB image of {slide.size} px, choose it with "
            f"--series {slide.number}"
        )


def _is_rival(image: CandidateImage, slide: CandidateImage) -> bool:
    ratio = None if image.mpp is None or slide.mpp is None else max(image.mpp) / max(slide.mpp)
    if ratio is not None and ratio * _FINER <= 1:
        return True
    return image.size.area_px >= _RIVAL_AREA * slide.size.area_px and (ratio is None or ratio < _COARSER)


def remark_on_others(images: Sequence[CandidateImage], chosen: CandidateImage) -> tuple[str, ...]:
    """Describe the images that are not used; empty if there are none."""
    others = [image for image in images if image.number != chosen.number]
    if not others:
        return ()
    listed = ", ".join(f"series {image.number}: {image.size} px" for image in others[:5])
    more = f", and {len(others) - 5} more" if len(others) > 5 else ""
    noun = "another image" if len(others) == 1 else f"{len(others)} other images"
    return (
        f"The file holds {noun}, not used here ({listed}{more}); the slide is series {chosen.number} of {chosen.size} "
        "px (--series N chooses another).",
    )


def number_list(pages: Sequence[int]) -> str:
    """Format numbers of pages briefly."""
    if len(pages) > 2 and list(pages) == list(range(pages[0], pages[-1] + 1)):
        return f"{pages[0]} to {pages[-1]}"
    return ", ".join(map(str, pages[:12])) + (", …" if len(pages) > 12 else "")


_ROUNDING_PX = 2.0  # largest difference of a side of a level from an exact quotient


def divides_to(full: Size, level: Size, factor: int) -> bool:
    """Whether a level has the size of the slide divided by a whole factor, each side rounded up or down."""
    sides = ((full.width, level.width), (full.height, level.height))
    return all(small in (large // factor, -(-large // factor)) for large, small in sides)


def mean_ratio(full: Size, level: Size) -> float:
    """Return the mean over both sides of the ratio of two sizes."""
    return (full.width / level.width + full.height / level.height) / 2


def fits_as_level(full: Size, level: Size, tile: Size) -> bool:
    """Whether a smaller image can be a level of ``full``, either exact or padded to whole tiles."""
    if level.width > full.width or level.height > full.height or level == full:
        return False
    return has_shape_of(full, level) or factor_range(full, level, tile) is not None


def has_shape_of(full: Size, level: Size, downsample: float | None = None) -> bool:
    """Whether a level has the size of the slide divided by ``downsample`` (by default any), except for rounding."""
    downsample = mean_ratio(full, level) if downsample is None else downsample
    sides = ((full.width, level.width), (full.height, level.height))
    return all(abs(small - large / downsample) <= _ROUNDING_PX for large, small in sides)


def factor_range(full: Size, level: Size, tile: Size) -> tuple[float, float] | None:
    """Return the range of factors for which a level padded to whole tiles has its size; None if there is none.

    A side of ``stored`` px, a multiple of the tile's, holds more than ``stored - tile`` and at most ``stored`` px.
    """
    low, high = 1.0, math.inf
    for large, stored, side in ((full.width, level.width, tile.width), (full.height, level.height, tile.height)):
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
_MAX_STEP = 16  # largest factor relative to the level before that is considered


def fixed_levels(
    levels: Sequence[Level], tiles: Sequence[Size], tag_factors: Sequence[float | None], agreement: Agreement
) -> tuple[Level, ...]:
    """Return the levels with their true factors, and without padding to whole tiles.

    Some writers pad levels to whole tiles, and rarely say so. If the sizes allow several factors, the pixels decide; if
    the pixels do not (a blank slide), the resolution in the tags, or the ratio of the levels before. A level whose
    factor cannot be determined is left out, with those after it.

    ``tiles`` has the size of each level's tiles, 1×1 if unknown; ``tag_factors`` the factors by the resolution tags.
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
    """Return the size of the part of a level that is not padding."""
    return Size(
        min(stored.width, max(1, math.ceil(full.width / factor - 1e-6))),
        min(stored.height, max(1, math.ceil(full.height / factor - 1e-6))),
    )


MAX_PAGES = 512  # most pages that are read. Slides have a dozen; a longer chain is damaged, or a large stack.
MAX_SUBIFDS = 64  # most levels of one page: each halves the one before, so a real pyramid has 20 at most
MAX_DESCRIPTION = 16 * 2**20  # longest ImageDescription of a Philips file, in characters: it holds images

MAX_TAKEN_APART = 2**20
"""Longest ImageDescription in formats whose libraries split it into properties; real ones are far shorter."""

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType (tag 254)


@dataclass(slots=True)
class TiffImage:
    """Pages that belong together."""

    number: int  # in the file: the order of the OME-XML, then that of the pages
    levels: list[TiffPage]  # pages, largest first
    planes: list[int]  # numbers of the pages of the same size: focal planes, times, channels, or unnamed sections
    numbers: list[int | None]  # numbers of the levels' pages; None for a SubIFD
    kind: PixelKind  # kind of the pixels of level 0
    mask: bool  # whether the file marks it as a mask
    ome: OmeImage | None  # its metadata in the OME-XML, or None
    tag_mpp: Mpp | None  # µm per px by its tags, or None
    # size of an image in its SubIFDs that is larger than level 0, and so not a level; or None
    larger: Size | None = None

    @property
    def size(self) -> Size:
        return size_of(self.levels[0])

    @property
    def mpp(self) -> Mpp | None:
        return (self.ome.mpp if self.ome is not None else None) or self.tag_mpp

    @property
    def is_companion(self) -> bool:
        return self.mask or (self.ome is not None and is_companion_name(self.ome.name))

    def entry(self, *, chosen: bool) -> ImageEntry:
        return ImageEntry(
            name="" if self.ome is None else self.ome.name,
            size=self.size,
            series=self.number,
            page=self.planes[0],
            planes=len(self.planes),
            levels=len(self.levels),
            mpp=self.mpp,
            pixels="8-bit RGB" if self.kind.is_rgb else self.kind.problem,
            chosen=chosen,
        )


def size_of(page: TiffPage) -> Size:
    """Return the size of a page in px."""
    return Size(int(page.imagewidth), int(page.imagelength))


def _tile_of(page: TiffPage) -> Size:
    return Size(int(page.tilewidth), int(page.tilelength)) if page.is_tiled else Size(1, 1)


def top_pages(tiff: TiffFile) -> list[TiffPage]:
    """List the pages of the file's chain, at most `MAX_PAGES`, without SubIFDs."""
    from tifffile import TiffPage

    tiff.pages.useframes = False
    return [page for page in itertools.islice(tiff.pages, MAX_PAGES) if isinstance(page, TiffPage)]


def check_description(name: str, text: str, limit: int) -> None:
    """Refuse a description of more than ``limit`` characters."""
    if len(text) > limit:
        raise UnreadableSlideError(
            f"{name}: its description has {len(text):,} characters, more than any slide's ({limit:,}); the file is "
            "damaged: copy it again from its source"
        )


def sub_pages(tiff: TiffFile, page: TiffPage) -> Iterator[TiffPage]:
    """Iterate over the SubIFDs of a page, at most `MAX_SUBIFDS`."""
    from tifffile import TiffPage

    for number, offset in enumerate((page.subifds or ())[:MAX_SUBIFDS]):
        if offset >= 8:
            tiff.filehandle.seek(offset)
            yield TiffPage(tiff, (page.index, number))


def images_of(
    tiff: TiffFile, pages: Sequence[TiffPage], ome: OmeXml | None, tag_mpp: Sequence[Mpp | None], *, pads: bool
) -> list[TiffImage]:
    """Group the pages of a file into images, in the order of their numbers.

    ``tag_mpp`` is the resolution by the tags of each page. With ``pads``, levels may be padded to whole tiles even if
    they are not marked as reduced.
    """
    images: list[TiffImage] = []
    kinds = [pixel_kind(page) for page in pages]

    def add(planes: list[int], about: OmeImage | None) -> None:
        page = pages[planes[0]]
        mask = bool(int(page.subfiletype) & _MASK)
        images.append(
            TiffImage(len(images), [page], planes, [planes[0]], kinds[planes[0]], mask, about, tag_mpp[planes[0]])
        )

    claimed: set[int] = set()
    for planes, about in _ome_planes(ome, pages, PurePath(tiff.filename).name):
        if not claimed.intersection(planes):
            claimed.update(planes)
            add(planes, about)
    first_free = len(images)
    rest = [number for number in range(len(pages)) if number not in claimed and size_of(pages[number]).area_px > 0]
    for number in sorted(rest, key=lambda number: (-size_of(pages[number]).area_px, number)):
        if not any(_join(image, number, pages[number], kinds[number], tag_mpp[number], pads=pads) for image in images):
            add([number], None)
    images[first_free:] = sorted(images[first_free:], key=lambda image: image.planes[0])
    for number, image in enumerate(images):
        image.number = number
        _add_sub_pages(tiff, image)
    return images


def _ome_planes(
    ome: OmeXml | None, pages: Sequence[TiffPage], file_name: str
) -> Iterator[tuple[list[int], OmeImage | None]]:
    """Iterate over the images of the OME-XML in this file, with the numbers of their pages."""
    if ome is None:
        return
    files = {planes.uuid or planes.file_name for image in ome.images for planes in image.planes}
    for image in ome.images:
        numbers: dict[int, None] = {}
        for planes in image.planes:
            elsewhere = len(files) > 1 or (ome.uuid and planes.uuid)
            if elsewhere and planes.uuid.strip() != ome.uuid and planes.file_name != file_name:
                continue
            first = planes.first or 0
            count = planes.count if planes.count is not None else (1 if planes.first is not None else len(pages))
            numbers.update(dict.fromkeys(range(first, min(first + count, len(pages)))))
        # Stale OME-XML, or one without page numbers, refers to pages of other sizes.
        sizes = [number for number in numbers if image.size in (None, size_of(pages[number]))]
        if sizes:
            yield sizes, image


def _join(image: TiffImage, number: int, page: TiffPage, kind: PixelKind, tag_mpp: Mpp | None, *, pads: bool) -> bool:
    """Add a page to an image as a plane or level, if it is one; return whether it is."""
    base = image.levels[0]
    if image.mask or int(page.subfiletype) & _MASK or not _same_kind(kind, image.kind):
        return False
    if size_of(page) == image.size:
        if image.ome is None and not int(page.subfiletype) & _REDUCED and page.is_tiled == base.is_tiled:
            image.planes.append(number)
            return True
        return False
    if not _is_level(image, page, tag_mpp, pads=pads):
        return False
    if size_of(page) not in map(size_of, image.levels):  # else it is a level of another plane
        image.levels.append(page)
        image.numbers.append(number)
    return True


def _same_kind(one: PixelKind, other: PixelKind) -> bool:
    return (one.samples, one.bits, one.is_rgb, one.alpha) == (other.samples, other.bits, other.is_rgb, other.alpha)


def _is_level(image: TiffImage, page: TiffPage, tag_mpp: Mpp | None, *, pads: bool) -> bool:
    """Whether, by its tags, a page is a smaller copy of the image."""
    base, size = image.levels[0], size_of(page)
    if (page.is_tiled, int(page.photometric)) != (base.is_tiled, int(base.photometric)):
        return False
    if pads or int(page.subfiletype) & _REDUCED:
        return fits_as_level(image.size, size, _tile_of(page))
    factor = round(mean_ratio(image.size, size))
    if factor < 2 or not divides_to(image.size, size, factor):
        return False
    if image.tag_mpp is None or tag_mpp is None or image.tag_mpp == tag_mpp:
        return True
    return all(abs(b / a / factor - 1) < 0.02 for a, b in zip(image.tag_mpp, tag_mpp, strict=True))


def _add_sub_pages(tiff: TiffFile, image: TiffImage) -> None:
    """Append the levels in SubIFDs, and sort all levels by size."""
    base = image.levels[0]
    found: list[tuple[TiffPage, int | None]] = list(zip(image.levels, image.numbers, strict=True))
    for page in sub_pages(tiff, base):
        kind, sizes = pixel_kind(page), [size_of(level) for level, _ in found]
        if size_of(page).area_px > (image.larger or image.size).area_px:
            image.larger = size_of(page)
        fits = fits_as_level(image.size, size_of(page), _tile_of(page))
        if fits and size_of(page) not in sizes and _same_kind(kind, image.kind):
            found.append((page, None))
    found[1:] = sorted(found[1:], key=lambda level: -size_of(level[0]).area_px)
    image.levels, image.numbers = [page for page, _ in found], [number for _, number in found]


def choose(
    name: str, images: Sequence[TiffImage], tiff: TiffFile, pages: Sequence[TiffPage], choice: Choice
) -> TiffImage:
    """Choose the image that is the slide; it must be 8-bit RGB, and the only plausible one."""
    image = the_slide(name, images) if not choice else _wanted(name, images, choice)
    if choice.page is not None:
        image = _of_page(name, image, tiff, pages, choice.page)
    if not image.kind.is_rgb:
        raise image.kind.refusal(name)
    if choice.page is None and len(image.planes) > 1:
        raise UnreadableSlideError(
            f"{name}: the image has {len(image.planes)} planes of {image.size} px (a focus stack, a time series or "
            f"several sections), in pages {number_list(image.planes)}; choose one with --page N"
        )
    if not choice:
        _check_larger_subifd(name, images, image)
    return image


def _wanted(name: str, images: Sequence[TiffImage], choice: Choice) -> TiffImage:
    if choice.series is not None:
        if not 0 <= choice.series < len(images):
            raise OptionError(f"{name}: --series {choice.series}: the file has series 0 to {len(images) - 1}")
        image = images[choice.series]
        if choice.page is not None and choice.page not in image.planes:
            raise OptionError(
                f"{name}: --page {choice.page} is not a page of series {choice.series}, which has pages "
                f"{number_list(image.planes)}"
            )
        return image
    for image in images:
        if choice.page in image.planes or choice.page in image.numbers:
            return image
    known = sorted({page for image in images for page in (*image.planes, *image.numbers) if page is not None})
    raise OptionError(f"{name}: --page {choice.page}: the file has pages {number_list(known)}")


def _check_larger_subifd(name: str, images: Sequence[TiffImage], image: TiffImage) -> None:
    """Refuse a thumbnail whose SubIFDs hold the slide, as cameras write them: the slide is not guessed."""
    for other in images:
        if other.larger is not None and other.larger.area_px > image.size.area_px:
            raise UnreadableSlideError(
                f"{name}: series {other.number} ({other.size} px) holds a larger image of {other.larger} px in a "
                "SubIFD, which is not read; convert the file to a tiled, pyramidal TIFF, or choose with --series N"
            )


def _of_page(name: str, image: TiffImage, tiff: TiffFile, pages: Sequence[TiffPage], number: int) -> TiffImage:
    """Return the image whose level 0 is another of its planes."""
    if number == image.planes[0]:
        return image
    page = pages[number]
    one = TiffImage(image.number, [page], [number], [number], pixel_kind(page), False, None, None)
    if number in image.planes:
        one.ome, one.tag_mpp = image.ome, image.tag_mpp
        _add_sub_pages(tiff, one)
        return one
    raise OptionError(f"{name}: --page {number} is a smaller copy of page {image.planes[0]}; choose that page, or none")


def remarks_on(images: Sequence[TiffImage], chosen: TiffImage, ome: OmeXml | None) -> tuple[str, ...]:
    """Describe the images that are not used."""
    planes = next((len(image.planes) for image in images if image.number == chosen.number), 1)
    notes = list(remark_on_others(images, chosen))
    if planes > 1:
        notes.append(f"The image has {planes} planes; page {chosen.planes[0]} is used.")
    if chosen.ome is not None and chosen.ome.depth * chosen.ome.times > max(planes, 1):
        notes.append(
            f"Its OME-XML says that there are {chosen.ome.depth * chosen.ome.times} planes; the file holds {planes}."
        )
    absent = 0 if ome is None else len(ome.images) - sum(image.ome is not None for image in images)
    if absent:
        notes.append(f"Its OME-XML describes {pluralize(absent, 'image')} not in this file, or in another size.")
    return tuple(notes)
