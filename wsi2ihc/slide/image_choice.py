"""Choose the slide among several images.

It is the largest RGB image. If several are equally plausible, the user has to choose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..errors import UnreadableSlideError
from ..geometry import Size
from .pixel_kinds import PixelKind, not_rgb
from .resolution import Mpp

_COMPANIONS = re.compile(r"(macro|label|thumbnail|overview|barcode)( image)?", re.IGNORECASE)
"""Names that the software of scanners gives to images other than the slide."""

_RIVAL_AREA = 0.5
"""Fraction of the pixels of the largest image from which another one may be the slide."""

_MUCH_LARGER = 2.0
"""An image that is not RGB, with more than this many times the pixels of the largest RGB one, is the scan."""

_COARSER = 1.5
"""An image with this many times the µm per px is an overview."""

_FINER = 4.0
"""If another image is this many times finer, the largest one may be an overview of a large area."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The image of a file that the caller wants; None for the slide.

    series:  number of the image, as `ImageEntry.series`
    page:    number of a page, as `ImageEntry.page`
    """

    series: int | None = None
    page: int | None = None

    def __bool__(self) -> bool:
        return self.series is not None or self.page is not None

    def __str__(self) -> str:
        parts = (("--series", self.series), ("--page", self.page))
        return " ".join(f"{option} {number}" for option, number in parts if number is not None)


NO_CHOICE = Choice()


class Candidate(Protocol):
    """An image that may be the slide."""

    @property
    def number(self) -> int:
        """Number in the file, from 0."""
        ...

    @property
    def size(self) -> Size:
        """Size of level 0 in px."""
        ...

    @property
    def mpp(self) -> Mpp | None:
        """µm per px, if the file states it."""
        ...

    @property
    def kind(self) -> PixelKind:
        """Kind of the pixels of level 0."""
        ...

    @property
    def is_companion(self) -> bool:
        """Whether the file calls it a macro, a label, a thumbnail or a mask."""
        ...


C = TypeVar("C", bound=Candidate)


def is_companion_name(name: str) -> bool:
    """Whether software gives this name to macros, labels or thumbnails."""
    return _COMPANIONS.fullmatch(name.strip()) is not None


def the_slide(name: str, images: Sequence[C]) -> C:
    """Return the largest RGB image.

    Raises
    ------
    UnreadableSlideError
        If there is none, or another image may be the slide.
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


def _check_larger(name: str, slide: Candidate, images: Sequence[Candidate]) -> None:
    """Refuse a file whose RGB image is only a macro, while the scan has another kind of pixels."""
    others = [image for image in images if not image.kind.is_rgb and not image.is_companion]
    largest = max((*others, slide), key=lambda image: image.size.area_px)
    if largest.size.area_px > _MUCH_LARGER * slide.size.area_px:
        raise UnreadableSlideError(
            f"{name}: the pixels of its largest image (series {largest.number}, {largest.size} px) "
            f"{largest.kind.problem}, not 8-bit RGB; if the slide is the RGB image of {slide.size} px, choose it with "
            f"--series {slide.number}"
        )


def _is_rival(image: Candidate, slide: Candidate) -> bool:
    ratio = None if image.mpp is None or slide.mpp is None else max(image.mpp) / max(slide.mpp)
    if ratio is not None and ratio * _FINER <= 1:
        return True
    return image.size.area_px >= _RIVAL_AREA * slide.size.area_px and (ratio is None or ratio < _COARSER)


def remark_on_others(images: Sequence[Candidate], chosen: Candidate) -> tuple[str, ...]:
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
