"""Read the resolution from the tags of a TIFF page, and from the description that ImageJ writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .resolution import NO_LENGTH, Mpp, unit_um

if TYPE_CHECKING:
    from tifffile import TiffPage

_IMAGEJ_TEXT = 10_000
"""Characters at the start of a description that are searched for ImageJ's unit."""

_UNIT_UM = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""ResolutionUnit to µm: inch and cm (TIFF 6.0), mm and µm (as tifffile and tiffslide read them)."""


def tag_mpp(page: TiffPage) -> Mpp | None:
    """Return µm per px by the resolution tags of a page, plausible or not; None if they do not state it."""
    unit_of_tag = _UNIT_UM.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    unit = imagej_unit(page.description or "")
    # ImageJ itself prefers its own unit.
    scale = unit_of_tag if unit is None else unit_um(unit) or unit_of_tag
    x, y = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    if scale is None or x is None or y is None:
        return None
    values = tuple(_rational(value) for value in (x, y))
    if not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return scale / values[0], scale / values[1]


def unit_problems(page: TiffPage) -> tuple[str, ...]:
    """Describe a unit in ImageJ's description that is unknown."""
    unit = imagej_unit(page.description or "")
    if unit is None or unit in NO_LENGTH or unit_um(unit) is not None:
        return ()
    return (f"Its description states the size of pixels in {unit[:20]!r}, which is not a known unit.",)


def imagej_unit(description: str) -> str | None:
    """Return the unit of length in a description by ImageJ; None in any other description, or if missing."""
    return _imagej_facts(description).get("unit")


def imagej_images(description: str) -> int:
    """Return the number of images in a description by ImageJ; 1 in any other description."""
    text = _imagej_facts(description).get("images", "1")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _imagej_facts(description: str) -> dict[str, str]:
    if not description.startswith("ImageJ="):
        return {}
    pairs = (line.partition("=") for line in description[:_IMAGEJ_TEXT].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def tag_factors(levels: Sequence[TiffPage]) -> tuple[float | None, ...]:
    """Return the factors of the levels by their resolution tags; None if these are only copies of level 0's."""
    mpps = [tag_mpp(level) for level in levels]
    first = mpps[0]
    if first is None:
        return (None,) * len(levels)
    factors = (None if mpp is None else (mpp[0] / first[0] * mpp[1] / first[1]) ** 0.5 for mpp in mpps)
    return tuple(None if factor is None or factor < 1.05 else factor for factor in factors)


def _rational(value: Any) -> float:
    if isinstance(value, tuple):
        return value[0] / value[1] if value[1] else math.nan
    return float(value)
