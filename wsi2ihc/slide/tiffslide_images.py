"""Make tiffslide read only the chosen image of a file.

tiffslide reads tifffile's first series, which depends on the order of the pages, and grouping thousands of pages into
series takes minutes. Here the series is built from pages that are already chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnreadableSlideError
from .ome_xml import XmlError, parse_xml
from .resolution import Mpp, positive_number
from .tiff_images import MAX_PAGES, MAX_SUBIFDS, MAX_TAKEN_APART, check_description, top_pages

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage
    from tiffslide import TiffSlide

_MAX_SPACING_CHARACTERS = 1000


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
        mpp = _philips_mpp(tiff.pages.first.description or "")
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


def _philips_mpp(text: str) -> Mpp | None:
    """Return µm per level-0 px along (x, y) by the XML of a Philips TIFF; None if it does not state it.

    Each level states its own resolution (DICOM_PIXEL_SPACING: mm between rows, then between columns); that of level 0
    is the finest.
    """
    values: list[str] = []
    inside = False

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        inside = name == "Attribute" and attributes.get("Name") == "DICOM_PIXEL_SPACING"
        if inside:
            values.append("")

    def end(_name: str) -> None:
        nonlocal inside
        inside = False

    def characters(data: str) -> None:
        if inside and len(values[-1]) < _MAX_SPACING_CHARACTERS:
            values[-1] += data

    try:
        parse_xml(text, start, end, characters)
    except XmlError:
        return None
    pairs = [_spacing(value) for value in values]
    return min((pair for pair in pairs if pair is not None), default=None)


def _spacing(value: str) -> Mpp | None:
    sides = [positive_number(side.strip('"')) for side in value.split()]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    return sides[1] * 1000, sides[0] * 1000
