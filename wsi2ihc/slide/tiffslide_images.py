"""Make tiffslide read only the chosen image of a file.

tiffslide reads tifffile's first series, which depends on the order of the pages, and grouping thousands of pages into
series takes minutes. Here the series is built from pages that are already chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnreadableSlideError
from .philips_xml import philips_mpp
from .tiff_images import MAX_PAGES, MAX_SUBIFDS, MAX_TAKEN_APART, check_description, top_pages

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage
    from tiffslide import TiffSlide


def read_images_as(slide: TiffSlide, levels: Sequence[TiffPage]) -> None:
    """Make ``slide`` read these ``levels``, largest first."""
    from tifffile import TiffPageSeries

    tiff = slide.ts_tifffile
    first, *others = (TiffPageSeries([page], page.shape, page.dtype, page.axes, kind="generic") for page in levels)
    first.levels.extend(others)
    # Both are cached properties: values that are set are not computed.
    tiff.__dict__["series"] = [first]
    slide.__dict__["properties"] = _properties(tiff, levels)


def _properties(tiff: TiffFile, levels: Sequence[TiffPage]) -> dict[str, Any]:
    axes = {"YXS": "YXS", "SYX": "CYX"}.get(levels[0].axes, levels[0].axes)
    found: dict[str, Any] = {"tiffslide.series-index": 0, "tiffslide.series-axes": axes}
    if tiff.is_philips:
        found["tiffslide.vendor"] = "philips-tiff"
        mpp = philips_mpp(tiff.pages.first.description or "")
        if mpp is not None:
            found["tiffslide.mpp-x"], found["tiffslide.mpp-y"] = mpp
    full = levels[0]
    for number, page in enumerate(levels):
        key = f"tiffslide.level[{number}]"
        found[f"{key}.width"], found[f"{key}.height"] = int(page.imagewidth), int(page.imagelength)
        found[f"{key}.tile-width"], found[f"{key}.tile-height"] = int(page.tilewidth), int(page.tilelength)
        found[f"{key}.downsample"] = (full.imagewidth / page.imagewidth + full.imagelength / page.imagelength) / 2
    return found


def check_pages(tiff: TiffFile, name: str) -> None:
    """Refuse a file with so many pages, or so long a text, that the libraries would take minutes for them.

    Raises
    ------
    UnreadableSlideError
        If there are too many pages, or the text is too long.
    """
    pages = top_pages(tiff)
    check_description(name, pages[0].description or "", MAX_TAKEN_APART)
    if len(pages) >= MAX_PAGES or any(len(page.subifds or ()) > MAX_SUBIFDS for page in pages):
        raise UnreadableSlideError(
            f"{name}: it has more pages than any slide ({MAX_PAGES} and {MAX_SUBIFDS} of one page at most); the file "
            "is damaged: copy it again from its source"
        )
