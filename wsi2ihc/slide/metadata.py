"""Resolution of a slide: the given one, or that of its metadata or TIFF tags; units of length; ImageJ descriptions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MissingResolutionError, OptionError
from .protocol import SlideInfo

if TYPE_CHECKING:
    from tifffile import TiffPage

MPP_RANGE = (0.02, 50.0)
"""Plausible values in the metadata of a slide, µm/px.

The best objectives resolve about 0.2 µm, ten times the minimum. Above 50, no cell is visible; the largest values in
whole-slide files are those of overviews, such as DICOM levels of 29 µm/px.
"""

TAG_MPP_RANGE = (0.02, 20.0)
"""Plausible values of TIFF resolution tags. Programs write 72 to 1200 dpi (353 to 21 µm/px) by default, the resolutions
of screens, printers and flatbed scanners."""

_SQUARE_TOLERANCE = 0.01
"""Relative difference up to which pixels count as square; DICOM slides of 28.969 × 28.968 µm exist."""

_FOR_EXAMPLE = "(µm per pixel, about 0.25 at 40x and 0.5 at 20x)"

_MPP_TIMES_MAGNIFICATION = (2.5, 25.0)
"""Plausible products of µm/px and magnification. Scanners have 4.3 to 11 (0.11 to 0.27 µm/px at 40x); exports of half
the resolution often keep the magnification."""

_SAME_RESOLUTION = 0.05
"""Relative difference up to which a given resolution is not reported to replace that of the file."""

Mpp = tuple[float, float]  # µm per pixel along (x, y)

_PREFIXES = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0, "d": -1, "c": -2,
    "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip

# without metric prefix; "li" is the line (1/12 inch) and "ua" the astronomical unit, as OME spells them
_OTHER_UNITS_UM = {
    "Å": 1e-4, "thou": 25.4, "li": 25_400 / 12, "in": 25_400.0, "ft": 304_800.0, "yd": 914_400.0,
    "mi": 1_609_344_000.0, "ua": 149_597_870_700e6, "ly": 9_460_730_472_580_800e6, "pc": 3.085_677_581_491_367e22,
    "pt": 25_400 / 72,
}  # fmt: skip

UNITS_UM = {**{f"{prefix}m": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()}, **_OTHER_UNITS_UM}
"""All units of OME (UnitsLength) in µm, except `UNITS_WITHOUT_LENGTH`."""

UNITS_WITHOUT_LENGTH = frozenset({"pixel", "pixels", "reference frame", ""})

_UNIT_SPELLINGS = {
    "micron": "µm", "microns": "µm", "micrometer": "µm", "micrometers": "µm", "micrometre": "µm",
    "micrometres": "µm", "um": "µm", "µ": "µm", "u": "µm", "nanometer": "nm", "nanometers": "nm", "nanometre": "nm",
    "millimeter": "mm", "millimeters": "mm", "millimetre": "mm", "centimeter": "cm", "centimeters": "cm",
    "centimetre": "cm", "meter": "m", "meters": "m", "metre": "m", "inch": "in", "inches": "in", "foot": "ft",
    "yard": "yd", "mile": "mi", "angstrom": "Å", "angstroms": "Å", "picometer": "pm", "picometers": "pm",
    "kilometer": "km", "decimeter": "dm",
}  # fmt: skip
"""Other spellings: ImageJ's, and the names that OME-Zarr uses (UDUNITS-2)."""


@dataclass(frozen=True, slots=True)
class GivenResolution:
    """Resolution given by a caller: µm per level-0 px along (x, y), or None; and the option by which it is given."""

    mpp: Mpp | None = None
    option: str = "--mpp"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Resolution of a slide."""

    mpp: Mpp | None  # µm per level-0 px along (x, y), or None
    source: str  # "stated" (given), "slide" (its metadata), "tiff tags" or ""
    problems: tuple[str, ...] = ()  # human-readable problems, one sentence each
    option: str = "--mpp"  # command-line option by which another resolution is given


def check_mpp(mpp: float | Sequence[float] | None, option: str = "--mpp") -> GivenResolution:
    """Check a resolution that a caller gives, in µm/px, for both axes or along (x, y).

    Raises `OptionError` if it is not one or two numbers within `MPP_RANGE`.
    """
    if mpp is None:
        return GivenResolution(None, option)
    pair: tuple[float, ...]
    try:
        pair = (float(mpp),) * 2 if isinstance(mpp, (int, float)) else tuple(float(value) for value in mpp)
    except (TypeError, ValueError):
        pair = ()
    low, high = MPP_RANGE
    # Not "value < low or …", because NaN has to fail too.
    if len(pair) != 2 or not all(low <= value <= high for value in pair):
        raise OptionError(f"{option} {mpp}: the slide's resolution must be between {low:g} and {high:g} µm per pixel")
    return GivenResolution((pair[0], pair[1]), option)


def known_mpp(info: SlideInfo) -> Mpp:
    """Return the resolution of a slide, µm per level-0 px along (x, y).

    Raises `MissingResolutionError` if it is unknown.
    """
    if info.mpp is None:
        raise MissingResolutionError(
            f"{info.name}: the slide does not state its resolution; give it with {info.mpp_option} {_FOR_EXAMPLE}"
        )
    return info.mpp


def resolve_mpp(
    given: GivenResolution | None, in_metadata: Mpp | None, tags: Mpp | None, magnification: float | None = None
) -> Resolution:
    """Choose the given resolution, or else that of the slide's metadata, or else that of its TIFF tags.

    A resolution that does not fit ``magnification``, that of the objective, is reported as a problem.
    """
    given = given or GivenResolution()
    found = _resolution_of_file(in_metadata, tags, given.option)
    if given.mpp is None:
        if found.mpp is None:
            return found
        advice = f"give the right one with {given.option}"
        problems = [*_shape_problems(found.mpp), *_magnification_problems(found.mpp, magnification, advice)]
        return dataclasses.replace(found, problems=tuple(problems))
    problems = list(_shape_problems(given.mpp))
    # The problems of the file's own resolution are dropped: it is not used.
    if found.mpp is not None and any(
        abs(math.log(a / b)) > _SAME_RESOLUTION for a, b in zip(given.mpp, found.mpp, strict=True)
    ):
        problems.append(f"The given resolution of {_text(given.mpp)} replaces {_text(found.mpp)} of the file.")
    problems += _magnification_problems(given.mpp, magnification, f"check {given.option}")
    return Resolution(given.mpp, "stated", tuple(problems), given.option)


def _magnification_problems(mpp: Mpp, magnification: float | None, advice: str) -> tuple[str, ...]:
    low, high = _MPP_TIMES_MAGNIFICATION
    if magnification is None or all(low <= side * magnification <= high for side in mpp):
        return ()
    return (
        f"{_text(mpp)} and an objective of {magnification:g}x do not fit: {magnification:g}x gives about "
        f"{10 / magnification:.2g} µm/px. If the resolution is wrong, {advice}.",
    )


def _resolution_of_file(in_metadata: Mpp | None, tags: Mpp | None, option: str) -> Resolution:
    problem = "The slide does not state its resolution"
    if in_metadata is not None:
        if all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in in_metadata):
            return Resolution(in_metadata, "slide", (), option)
        problem = f"The slide states {_text(in_metadata)}, which is not plausible"
    elif tags is not None:
        if all(TAG_MPP_RANGE[0] <= value <= TAG_MPP_RANGE[1] for value in tags):
            return Resolution(tags, "tiff tags", (), option)
        dpi = " × ".join(f"{25_400 / value:.4g}" for value in dict.fromkeys(tags))
        problem = f"The TIFF tags state {_text(tags)} ({dpi} dpi), which is not plausible"
    return Resolution(None, "", (f"{problem}; give it with {option} {_FOR_EXAMPLE}.",), option)


def _shape_problems(mpp: Mpp) -> tuple[str, ...]:
    if abs(mpp[0] / mpp[1] - 1.0) <= _SQUARE_TOLERANCE:
        return ()
    return (f"The pixels are not square: {mpp[0]:.4g} × {mpp[1]:.4g} µm.",)


def _text(mpp: Mpp) -> str:
    return f"{mpp[0]:.4g} µm/px" if f"{mpp[0]:.4g}" == f"{mpp[1]:.4g}" else f"{mpp[0]:.4g} × {mpp[1]:.4g} µm/px"


_ENCODINGS = {
    "µ": ("\\u00B5", "\\u00b5", "\u03bc", "Âµ", "Î¼"),
    "Å": ("\\u00C5", "\\u00c5", "\u212b", "A\u030a"),
}
"""Other encodings of letters: ImageJ's escapes, other code points, and UTF-8 decoded as Latin-1."""


def positive_number(value: Any) -> float | None:
    """Parse a metadata value (text, number, None); return None unless it is a finite number above 0.

    A comma counts as a decimal point, as some languages write it.
    """
    if isinstance(value, str) and value.count(",") == 1 and "." not in value:
        value = value.replace(",", ".")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def unit_to_um(unit: str) -> float | None:
    """Return a unit in µm; None if it is not a length, or unknown."""
    text = unit.strip()
    for letter, encodings in _ENCODINGS.items():
        for encoding in encodings:
            text = text.replace(encoding, letter)
    return UNITS_UM.get(_UNIT_SPELLINGS.get(text.lower(), text))


_MAX_IMAGEJ_CHARACTERS = 10_000  # at the start of a description, which are parsed as ImageJ's

_RESOLUTION_UNITS_UM = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""ResolutionUnit to µm: inch and cm (TIFF 6.0), mm and µm (as tifffile and tiffslide read them)."""


def tag_mpp(page: TiffPage) -> Mpp | None:
    """Return µm per px by the resolution tags of a page, plausible or not; None if they do not state it."""
    unit_of_tag = _RESOLUTION_UNITS_UM.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    unit = imagej_unit(page.description or "")
    # The unit in ImageJ's description goes before the tag, as in ImageJ itself, unless it is unknown.
    scale = (unit_to_um(unit) if unit is not None else None) or unit_of_tag
    x, y = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    if scale is None or x is None or y is None:
        return None
    values = tuple(_rational(value) for value in (x, y))
    if not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return scale / values[0], scale / values[1]


def unit_problems(page: TiffPage) -> tuple[str, ...]:
    """Return a sentence about the unit in ImageJ's description, if it is unknown.

    A missing or empty unit, or pixels, is normal for ImageJ; in OME-XML, `slide_xml` reports it.
    """
    unit = imagej_unit(page.description or "")
    if unit is None or unit in UNITS_WITHOUT_LENGTH or unit_to_um(unit) is not None:
        return ()
    return (f"The ImageJ description states the size of pixels in {unit[:20]!r}, which is not a known unit.",)


def imagej_unit(description: str) -> str | None:
    """Return the unit of length in a description by ImageJ; None in any other description, or if missing."""
    return _imagej_metadata(description).get("unit")


def imagej_image_count(description: str) -> int:
    """Return the number of images in a description by ImageJ; 1 in any other description."""
    text = _imagej_metadata(description).get("images", "1")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _imagej_metadata(description: str) -> dict[str, str]:
    if not description.startswith("ImageJ="):
        return {}
    pairs = (line.partition("=") for line in description[:_MAX_IMAGEJ_CHARACTERS].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def tag_factors(levels: Sequence[TiffPage]) -> tuple[float | None, ...]:
    """Return the downsampling factors by the resolution tags of the levels.

    None for tags that are missing, or equal those of level 0 (within 5 %), from which some programs copy them.
    """
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
