"""Group the pages of a TIFF file into images, and choose the one that is the slide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from ..errors import OptionError, UnreadableSlideError
from ..geometry import Size
from ..text import pluralize
from .image_choice import Choice, is_companion_name, remarks_on_unused, the_slide
from .level_factors import can_be_level, is_divided_by, mean_factor
from .metadata import Mpp
from .protocol import ImageEntry, PixelKind, pixel_kind
from .slide_xml import OmeImage, OmeXml

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAX_PAGES = 512  # most pages that are read. Slides have a dozen; a longer chain is damaged, or a large stack.
MAX_SUBIFDS = 64  # most levels of one page: each halves the one before, so a real pyramid has 20 at most

MAX_DESCRIPTION = 2**20  # longest ImageDescription that OpenSlide or tiffslide may parse; real ones are far shorter
MAX_PHILIPS_DESCRIPTION = 16 * 2**20  # longest one of a Philips file, in characters: it holds images

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType (tag 254)


@dataclass(slots=True, kw_only=True)
class TiffImage:
    """An image: pages of one size, its planes, and the lower levels of the first plane."""

    series: int  # number in the file: the order of the OME-XML, then that of the pages
    levels: list[TiffPage]  # pages of the first plane, largest first
    level_pages: list[int | None]  # page numbers of the levels; None for a SubIFD
    plane_pages: list[int]  # page numbers of the planes: focal planes, times, channels, or unnamed sections
    kind: PixelKind  # kind of the pixels of level 0
    mask: bool = False  # whether the file marks it as a mask
    ome: OmeImage | None = None  # its metadata in the OME-XML, if any
    tag_mpp: Mpp | None = None  # µm per px by its tags, if any
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
            series=self.series,
            page=self.plane_pages[0],
            planes=len(self.plane_pages),
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
        if offset >= 8:  # smaller ones point into the header of a damaged file
            tiff.filehandle.seek(offset)
            yield TiffPage(tiff, (page.index, number))


def images_of(
    tiff: TiffFile, pages: Sequence[TiffPage], ome: OmeXml | None, tag_mpp: Sequence[Mpp | None], *, may_pad: bool
) -> list[TiffImage]:
    """Group the pages of a file into images, in the order of their numbers.

    ``tag_mpp`` is the resolution by the tags of each page. With ``may_pad``, levels may be padded to whole tiles even
    if they are not marked as reduced.
    """
    images: list[TiffImage] = []
    kinds = [pixel_kind(page) for page in pages]

    def add_image(plane_pages: list[int], ome_image: OmeImage | None) -> None:
        first = plane_pages[0]
        image = TiffImage(
            series=len(images), levels=[pages[first]], level_pages=[first], plane_pages=plane_pages, kind=kinds[first],
            mask=bool(int(pages[first].subfiletype) & _MASK), ome=ome_image, tag_mpp=tag_mpp[first],
        )  # fmt: skip
        images.append(image)

    described: set[int] = set()
    for plane_pages, ome_image in _ome_planes(ome, pages, PurePath(tiff.filename).name):
        if not described.intersection(plane_pages):
            described.update(plane_pages)
            add_image(plane_pages, ome_image)
    count = len(images)
    rest = [number for number in range(len(pages)) if number not in described and size_of(pages[number]).area_px > 0]
    # the largest first, so that an image is known before its lower levels
    for number in sorted(rest, key=lambda number: (-size_of(pages[number]).area_px, number)):
        page, kind, mpp = pages[number], kinds[number], tag_mpp[number]
        if not any(_add_if_part(image, number, page, kind, mpp, may_pad=may_pad) for image in images):
            add_image([number], None)
    images[count:] = sorted(images[count:], key=lambda image: image.plane_pages[0])
    for series, image in enumerate(images):
        image.series = series
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
            names_a_file = len(files) > 1 or (ome.uuid and planes.uuid)
            if names_a_file and planes.uuid.strip() != ome.uuid and planes.file_name != file_name:
                continue  # the planes are in another file
            first = planes.first or 0
            count = planes.count if planes.count is not None else (1 if planes.first is not None else len(pages))
            numbers.update(dict.fromkeys(range(first, min(first + count, len(pages)))))
        # Stale OME-XML, or one without page numbers, refers to pages of other sizes.
        fitting = [number for number in numbers if image.size in (None, size_of(pages[number]))]
        if fitting:
            yield fitting, image


def _add_if_part(
    image: TiffImage, number: int, page: TiffPage, kind: PixelKind, tag_mpp: Mpp | None, *, may_pad: bool
) -> bool:
    """Add a page to an image as a plane or level, if it is one; return whether it is."""
    base = image.levels[0]
    if image.mask or int(page.subfiletype) & _MASK or not _same_kind(kind, image.kind):
        return False
    if size_of(page) == image.size:
        if image.ome is None and not int(page.subfiletype) & _REDUCED and page.is_tiled == base.is_tiled:
            image.plane_pages.append(number)
            return True
        return False
    if not _is_level(image, page, tag_mpp, may_pad=may_pad):
        return False
    if size_of(page) not in map(size_of, image.levels):  # else it is a level of another plane
        image.levels.append(page)
        image.level_pages.append(number)
    return True


def _same_kind(one: PixelKind, other: PixelKind) -> bool:
    return (one.samples, one.bits, one.is_rgb, one.alpha) == (other.samples, other.bits, other.is_rgb, other.alpha)


def _is_level(image: TiffImage, page: TiffPage, tag_mpp: Mpp | None, *, may_pad: bool) -> bool:
    """Whether, by its tags, a page is a smaller copy of the image."""
    base, size = image.levels[0], size_of(page)
    if (page.is_tiled, int(page.photometric)) != (base.is_tiled, int(base.photometric)):
        return False
    if may_pad or int(page.subfiletype) & _REDUCED:
        return can_be_level(image.size, size, _tile_of(page))
    factor = round(mean_factor(image.size, size))
    if factor < 2 or not is_divided_by(image.size, size, factor):
        return False
    if image.tag_mpp is None or tag_mpp is None or image.tag_mpp == tag_mpp:
        return True
    return all(abs(b / a / factor - 1) < 0.02 for a, b in zip(image.tag_mpp, tag_mpp, strict=True))


def _add_sub_pages(tiff: TiffFile, image: TiffImage) -> None:
    """Append the levels in SubIFDs, and sort all levels by size."""
    base = image.levels[0]
    found: list[tuple[TiffPage, int | None]] = list(zip(image.levels, image.level_pages, strict=True))
    for page in sub_pages(tiff, base):
        kind, sizes = pixel_kind(page), [size_of(level) for level, _ in found]
        if size_of(page).area_px > (image.larger or image.size).area_px:
            image.larger = size_of(page)
        fits = can_be_level(image.size, size_of(page), _tile_of(page))
        if fits and size_of(page) not in sizes and _same_kind(kind, image.kind):
            found.append((page, None))
    found[1:] = sorted(found[1:], key=lambda level: -size_of(level[0]).area_px)
    image.levels, image.level_pages = [page for page, _ in found], [number for _, number in found]


def choose(
    name: str, images: Sequence[TiffImage], tiff: TiffFile, pages: Sequence[TiffPage], choice: Choice
) -> TiffImage:
    """Choose the image that is the slide; it must be 8-bit RGB, and the only plausible one."""
    image = the_slide(name, images) if not choice else _requested(name, images, choice)
    if choice.page is not None:
        image = _of_page(name, image, tiff, pages, choice.page)
    if not image.kind.is_rgb:
        raise image.kind.refusal(name)
    if choice.page is None and len(image.plane_pages) > 1:
        raise UnreadableSlideError(
            f"{name}: the image has {len(image.plane_pages)} planes of {image.size} px (a focus stack, a time series "
            f"or several sections), in pages {number_list(image.plane_pages)}; choose one with --page N"
        )
    if not choice:
        _check_larger_subifd(name, images, image)
    return image


def _requested(name: str, images: Sequence[TiffImage], choice: Choice) -> TiffImage:
    if choice.series is not None:
        if not 0 <= choice.series < len(images):
            raise OptionError(f"{name}: --series {choice.series}: the file has series 0 to {len(images) - 1}")
        image = images[choice.series]
        if choice.page is not None and choice.page not in image.plane_pages:
            raise OptionError(
                f"{name}: --page {choice.page} is not a page of series {choice.series}, which has pages "
                f"{number_list(image.plane_pages)}"
            )
        return image
    for image in images:
        if choice.page in image.plane_pages or choice.page in image.level_pages:
            return image
    known = sorted({page for image in images for page in (*image.plane_pages, *image.level_pages) if page is not None})
    raise OptionError(f"{name}: --page {choice.page}: the file has pages {number_list(known)}")


def _check_larger_subifd(name: str, images: Sequence[TiffImage], image: TiffImage) -> None:
    """Refuse a thumbnail whose SubIFDs hold the slide, as cameras write them: the slide is not guessed."""
    for other in images:
        if other.larger is not None and other.larger.area_px > image.size.area_px:
            raise UnreadableSlideError(
                f"{name}: series {other.series} ({other.size} px) holds a larger image of {other.larger} px in a "
                "SubIFD, which is not read; convert the file to a tiled, pyramidal TIFF, or choose with --series N"
            )


def _of_page(name: str, image: TiffImage, tiff: TiffFile, pages: Sequence[TiffPage], number: int) -> TiffImage:
    """Return the image whose level 0 is another of its planes."""
    if number == image.plane_pages[0]:
        return image
    if number not in image.plane_pages:
        raise OptionError(
            f"{name}: --page {number} is a smaller copy of page {image.plane_pages[0]}; choose that page, or none"
        )
    plane = TiffImage(
        series=image.series, levels=[pages[number]], level_pages=[number], plane_pages=[number],
        kind=pixel_kind(pages[number]), ome=image.ome, tag_mpp=image.tag_mpp,
    )  # fmt: skip
    _add_sub_pages(tiff, plane)
    return plane


def remarks_on_choice(images: Sequence[TiffImage], chosen: TiffImage, ome: OmeXml | None) -> tuple[str, ...]:
    """Describe images and planes that are not used, and those that the file lacks."""
    planes = len(images[chosen.series].plane_pages)  # ``chosen`` may be a single plane of it
    notes = list(remarks_on_unused(images, chosen))
    if planes > 1:
        notes.append(f"The image has {planes} planes; page {chosen.plane_pages[0]} is used.")
    if chosen.ome is not None and chosen.ome.depth * chosen.ome.times > max(planes, 1):
        notes.append(
            f"Its OME-XML says that there are {chosen.ome.depth * chosen.ome.times} planes; the file holds {planes}."
        )
    absent = 0 if ome is None else len(ome.images) - sum(image.ome is not None for image in images)
    if absent:
        notes.append(f"Its OME-XML describes {pluralize(absent, 'image')} not in this file, or in another size.")
    return tuple(notes)


def number_list(pages: Sequence[int]) -> str:
    """Format numbers of pages briefly."""
    if len(pages) > 2 and list(pages) == list(range(pages[0], pages[-1] + 1)):
        return f"{pages[0]} to {pages[-1]}"
    return ", ".join(map(str, pages[:12])) + (", …" if len(pages) > 12 else "")
