"""The resolution in the tags of a TIFF page, and in the description that ImageJ writes beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .lengths import NO_LENGTH, unit_um
from .resolution import Mpp

if TYPE_CHECKING:
    from tifffile import TiffPage

_IMAGEJ_TEXT = 10_000
"""Characters of a description in which ImageJ's unit is searched for; it comes before the rest."""

_UNIT_UM = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""ResolutionUnit to µm: inch and cm (TIFF 6.0), mm and µm (as tifffile and tiffslide read them)."""


def tag_mpp(page: TiffPage) -> Mpp | None:
    """µm per px from the resolution tags of a page, whatever they say; None where they say nothing."""
    unit_of_tag = _UNIT_UM.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    unit = imagej_unit(page.description or "")
    # ImageJ itself goes by its own unit, where there is one.
    scale = unit_of_tag if unit is None else unit_um(unit) or unit_of_tag
    x, y = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    if scale is None or x is None or y is None:
        return None
    values = tuple(_rational(value) for value in (x, y))
    if not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return scale / values[0], scale / values[1]


def unit_problems(page: TiffPage) -> tuple[str, ...]:
    """What is wrong with the unit of the resolution that ImageJ states."""
    unit = imagej_unit(page.description or "")
    if unit is None or unit in NO_LENGTH or unit_um(unit) is not None:
        return ()
    return (f"Its description states the size of pixels in {unit[:20]!r}, which is not a known unit.",)


def imagej_unit(description: str) -> str | None:
    """The unit of length in a description by ImageJ; None in any other, and where there is none."""
    return _imagej_facts(description).get("unit")


def imagej_images(description: str) -> int:
    """How many images a description by ImageJ speaks of; 1 in any other."""
    text = _imagej_facts(description).get("images", "1")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _imagej_facts(description: str) -> dict[str, str]:
    if not description.startswith("ImageJ="):
        return {}
    pairs = (line.partition("=") for line in description[:_IMAGEJ_TEXT].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def tag_factors(levels: Sequence[TiffPage]) -> tuple[float | None, ...]:
    """What the resolution tags say of the levels' factors. Many writers copy those of level 0; that says nothing."""
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
