"""Other images of a file in OpenSlide's properties: labels, macros, regions, focal planes."""

from __future__ import annotations

from collections.abc import Mapping

from ..geometry import Size
from .protocol import ImageEntry
from .resolution import positive_number

_ASSOCIATED = "openslide.associated."

_PLANES = {
    "dicom.TotalPixelMatrixFocalPlanes": "focal planes",
    "dicom.NumberOfFocalPlanes": "focal planes",
    "zeiss.Information.Image.SizeZ": "focal planes",
    "zeiss.Information.Image.SizeT": "times",
    "mirax.HIERARCHICAL.HIER_2_COUNT": "focal planes",
}
"""Properties that count planes of the same area, of which OpenSlide reads one."""


def images_in(properties: Mapping[str, str], size: Size) -> tuple[ImageEntry, ...]:
    """List the slide and OpenSlide's associated images."""
    entries = [ImageEntry("", size, chosen=True)]
    for key in sorted(properties):
        name, _, side = key.removeprefix(_ASSOCIATED).rpartition(".")
        if key.startswith(_ASSOCIATED) and side == "width":
            found = [positive_number(properties.get(f"{_ASSOCIATED}{name}.{side}")) for side in ("width", "height")]
            if found[0] and found[1]:
                entries.append(ImageEntry(name[:80], Size(int(found[0]), int(found[1]))))
    return tuple(entries)


def remarks_on_planes(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Describe planes that are not read, and regions that are read together."""
    notes = []
    for key, noun in _PLANES.items():
        count = positive_number(properties.get(key))
        if count is not None and count >= 2:
            notes.append(f"The slide has {count:g} {noun}; the one that OpenSlide shows is used.")
    regions = sum(key.startswith("openslide.region[") and key.endswith("].width") for key in properties)
    if regions > 1:
        notes.append(f"The slide has {regions} scanned regions; they are shown together, where they lie on the slide.")
    return tuple(dict.fromkeys(notes))
