"""Read the resolution from the XML of a Philips TIFF."""

from __future__ import annotations

from .ome_xml import XmlError, parse_xml
from .resolution import Mpp, positive_number

_MAX_VALUE = 1000


def philips_mpp(text: str) -> Mpp | None:
    """Return µm per level-0 px along (x, y); None if the text does not state it.

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
        if inside and len(values[-1]) < _MAX_VALUE:
            values[-1] += data

    try:
        parse_xml(text, start, end, characters)
    except XmlError:
        return None
    pairs = [_pair(value) for value in values]
    return min((pair for pair in pairs if pair is not None), default=None)


def _pair(value: str) -> Mpp | None:
    sides = [positive_number(side.strip('"')) for side in value.split()]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    return sides[1] * 1000, sides[0] * 1000
