"""Choose the image that is the slide among the images of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..errors import UnreadableSlideError
from ..geometry import Size
from .metadata import Mpp
from .protocol import PixelKind, not_rgb

_COMPANIONS = re.compile(r"(macro|label|thumbnail|overview|barcode)( image)?", re.IGNORECASE)
"""Names that the software of scanners gives to images other than the slide."""

_RIVAL_AREA = 0.5  # an image with at least this fraction of the pixels of the largest one may be the slide as well

_MUCH_LARGER = 2.0
"""The largest RGB image is only a macro if another kind of image has more than this many times its pixels."""

_COARSER = 1.5  # an image with this many times the µm per px is an overview
_FINER = 4.0  # if another image is this many times finer, the largest one may be an overview of a large area


@dataclass(frozen=True, slots=True)
class Choice:
    """The image of a file that the caller requests. With neither number, it is chosen automatically (`the_slide`)."""

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
    def series(self) -> int: ...  # number of the image in the file
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
    """Return the largest RGB image; `UnreadableSlideError` if there is none, or another image may be the slide."""
    rgb_images = [image for image in images if image.kind.is_rgb]
    if not rgb_images:
        largest = max(images, key=lambda image: image.size.area_px, default=None)
        raise largest.kind.refusal(name) if largest else not_rgb(name, "are missing")
    candidates = [image for image in rgb_images if not image.is_companion] or rgb_images
    slide = max(candidates, key=lambda image: image.size.area_px)
    _check_larger(name, slide, images)
    rivals = [image for image in candidates if image is not slide and _is_rival(image, slide)]
    if rivals:
        listed = ", ".join(
            f"series {image.series} of {image.size} px"
            for image in sorted((slide, *rivals), key=lambda one: one.series)[:6]
        )
        raise UnreadableSlideError(
            f"{name}: {len(rivals) + 1} images in it may be the slide ({listed}); choose one with --series N"
        )
    return slide


def _check_larger(name: str, slide: CandidateImage, images: Sequence[CandidateImage]) -> None:
    """Refuse a file whose RGB image is only a macro, while the scanned slide has another kind of pixels."""
    others = [image for image in images if not image.kind.is_rgb and not image.is_companion]
    largest = max((*others, slide), key=lambda image: image.size.area_px)
    if largest.size.area_px > _MUCH_LARGER * slide.size.area_px:
        raise UnreadableSlideError(
            f"{name}: the pixels of its largest image (series {largest.series}, {largest.size} px) "
            f"{largest.kind.problem}, not 8-bit RGB; if the slide is the RGB image of {slide.size} px, choose it with "
            f"--series {slide.series}"
        )


def _is_rival(image: CandidateImage, slide: CandidateImage) -> bool:
    """Whether an image may be the slide as well: it is nearly as large and not coarser, or much finer."""
    coarser = None if image.mpp is None or slide.mpp is None else max(image.mpp) / max(slide.mpp)
    if coarser is not None and coarser * _FINER <= 1:
        return True
    return image.size.area_px >= _RIVAL_AREA * slide.size.area_px and (coarser is None or coarser < _COARSER)


def remarks_on_unused(images: Sequence[CandidateImage], chosen: CandidateImage) -> tuple[str, ...]:
    """Describe the images that are not used; empty if there are none."""
    others = [image for image in images if image.series != chosen.series]
    if not others:
        return ()
    listed = ", ".join(f"series {image.series}: {image.size} px" for image in others[:5])
    more = f", and {len(others) - 5} more" if len(others) > 5 else ""
    noun = "another image" if len(others) == 1 else f"{len(others)} other images"
    return (
        f"The file holds {noun}, not used here ({listed}{more}); the slide is series {chosen.series} of {chosen.size} "
        "px (--series N chooses another).",
    )
