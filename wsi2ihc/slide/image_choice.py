"""Which of several images is the slide.

It is the largest RGB image. Where several are equally plausible, the choice is left to the user.
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
"""Names that scanners' software gives to images that are not the slide."""

_RIVAL_AREA = 0.5
"""An image with this share of the largest one's px may be the one that is meant."""

_MUCH_LARGER = 2.0
"""An image with so many times the px of the largest RGB one is what was scanned."""

_COARSER = 1.5
"""An image whose px are so many times larger is an overview."""

_FINER = 4.0
"""Where another image is so many times finer, the largest may be an overview of a large area."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which image of a file a caller wants; None: the slide.

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
        """In the file, from 0."""
        ...

    @property
    def size(self) -> Size:
        """Size of level 0 in px."""
        ...

    @property
    def mpp(self) -> Mpp | None:
        """µm per px, as far as the file says."""
        ...

    @property
    def kind(self) -> PixelKind:
        """Of the pixels of level 0."""
        ...

    @property
    def is_companion(self) -> bool:
        """Whether the file calls it a macro, a label, a thumbnail or a mask."""
        ...


C = TypeVar("C", bound=Candidate)


def is_companion_name(name: str) -> bool:
    """Whether a name is one that software gives to a macro, a label or a thumbnail."""
    return _COMPANIONS.fullmatch(name.strip()) is not None


def the_slide(name: str, images: Sequence[C]) -> C:
    """The largest RGB image.

    Raises
    ------
    UnreadableSlideError
        If there is none, or another one may be meant.
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
    """Refuse a file in which the RGB image is a macro, and what was scanned is of another kind."""
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
    """What is said of the images that are not used; nothing where there are none."""
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
    """Numbers of pages in few characters."""
    if len(pages) > 2 and list(pages) == list(range(pages[0], pages[-1] + 1)):
        return f"{pages[0]} to {pages[-1]}"
    return ", ".join(map(str, pages[:12])) + (", …" if len(pages) > 12 else "")
