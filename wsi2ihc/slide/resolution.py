"""How large a slide's pixels are, and whether to believe it.

A wrong resolution is worse than none: the generator sees nuclei of the wrong size, and the result lies in the wrong
place over its source. So a figure is taken only where a scanner can have meant it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MissingResolutionError, OptionError
from .protocol import SlideInfo

MPP_RANGE = (0.02, 50.0)
"""What a slide's own metadata may say, µm/px.

Below 0.02 a pixel is a tenth of what light microscopy resolves with the best objective (about 0.2 µm). Above 50 no
cell is visible; the largest that occurs in whole-slide files are their overview images, such as DICOM levels of
29 µm/px.
"""

TAG_MPP_RANGE = (0.02, 20.0)
"""The same for TIFF resolution tags, which any program writes: 72 to 1200 dpi (353 to 21 µm/px) are the resolutions of
screens, printers and flatbed scanners, filled in for want of a better figure."""

_SQUARE_TOLERANCE = 0.01
"""Pixels whose sides differ by less count as square; DICOM slides of 28.969 × 28.968 µm exist."""

_FOR_EXAMPLE = "(µm per pixel, about 0.25 at 40x and 0.5 at 20x)"

_MPP_TIMES_MAGNIFICATION = (2.5, 25.0)
"""Scanners lie between 4.3 and 11 (0.11 and 0.27 µm/px at 40x); exports keep the objective's number at half the px."""

Mpp = tuple[float, float]
"""µm per pixel along (x, y)."""

_PREFIXES = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0, "d": -1, "c": -2,
    "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip

_OTHERS_UM = {
    "Å": 1e-4, "thou": 25.4, "li": 25_400 / 12, "in": 25_400.0, "ft": 304_800.0, "yd": 914_400.0,
    "mi": 1_609_344_000.0, "ua": 149_597_870_700e6, "ly": 9_460_730_472_580_800e6, "pc": 3.085_677_581_491_367e22,
    "pt": 25_400 / 72,
}  # fmt: skip

UNITS_UM = {**{f"{prefix}m": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()}, **_OTHERS_UM}
"""Every unit of length that OME defines (UnitsLength), in µm, except those without a size."""

NO_LENGTH = frozenset({"pixel", "pixels", "reference frame", ""})
"""Units that do not state a length."""

_WORDS = {
    "micron": "µm", "microns": "µm", "micrometer": "µm", "micrometers": "µm", "micrometre": "µm",
    "micrometres": "µm", "um": "µm", "µ": "µm", "u": "µm", "nanometer": "nm", "nanometers": "nm", "nanometre": "nm",
    "millimeter": "mm", "millimeters": "mm", "millimetre": "mm", "centimeter": "cm", "centimeters": "cm",
    "centimetre": "cm", "meter": "m", "meters": "m", "metre": "m", "inch": "in", "inches": "in", "foot": "ft",
    "yard": "yd", "mile": "mi", "angstrom": "Å", "angstroms": "Å", "picometer": "pm", "picometers": "pm",
    "kilometer": "km", "decimeter": "dm",
}  # fmt: skip
"""Other spellings: ImageJ's, and the names that OME-Zarr uses (UDUNITS-2)."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What a caller says of a slide's resolution.

    mpp:     µm per level-0 px along (x, y), or None to believe the slide
    option:  what a user states it with, for messages
    """

    mpp: Mpp | None = None
    option: str = "--mpp"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The decision.

    mpp:       µm per level-0 px along (x, y), or None
    source:    "stated", "slide", "tiff tags" or ""
    problems:  one sentence each, for people
    option:    what a user states another one with
    """

    mpp: Mpp | None
    source: str
    problems: tuple[str, ...] = ()
    option: str = "--mpp"


def checked_mpp(mpp: float | Sequence[float] | None, option: str = "--mpp") -> Stated:
    """A resolution that a caller states, µm/px, once or along (x, y).

    Raises
    ------
    OptionError
        If it is not one or two numbers within `MPP_RANGE`.
    """
    if mpp is None:
        return Stated(None, option)
    pair: tuple[float, ...]
    try:
        pair = (float(mpp),) * 2 if isinstance(mpp, (int, float)) else tuple(float(value) for value in mpp)
    except (TypeError, ValueError):
        pair = ()
    low, high = MPP_RANGE
    # Not "value < low or …": a NaN has to fail too.
    if len(pair) != 2 or not all(low <= value <= high for value in pair):
        raise OptionError(f"{option} {mpp}: the slide's resolution must be between {low:g} and {high:g} µm per pixel")
    return Stated((pair[0], pair[1]), option)


def known_mpp(info: SlideInfo) -> Mpp:
    """A slide's resolution, µm per level-0 px along (x, y).

    Raises
    ------
    MissingResolutionError
        If it is unknown.
    """
    if info.mpp is None:
        raise MissingResolutionError(
            f"{info.name}: the slide does not state its resolution; give it with {info.mpp_option} {_FOR_EXAMPLE}"
        )
    return info.mpp


def resolve(stated: Stated | None, own: Mpp | None, tags: Mpp | None, magnification: float | None = None) -> Resolution:
    """Choose among what the caller states, what the slide's own metadata say, and what its TIFF tags say.

    ``magnification`` is the objective's; a resolution that does not fit it is remarked on.
    """
    stated = stated or Stated()
    found = _believable(own, tags, stated.option)
    if stated.mpp is None:
        remarks = () if found.mpp is None else (*_not_square(found.mpp), *_implausible(found, magnification))
        return Resolution(found.mpp, found.source, (*found.problems, *remarks), stated.option)
    problems = list(_not_square(stated.mpp))
    if found.mpp is not None and max(abs(math.log(a / b)) for a, b in zip(stated.mpp, found.mpp, strict=True)) > 0.05:
        problems.append(
            f"The stated resolution of {_text(stated.mpp)} replaces {_text(found.mpp)}, which the file says."
        )
    chosen = Resolution(stated.mpp, "stated", (), stated.option)
    return dataclasses.replace(chosen, problems=(*problems, *_implausible(chosen, magnification)))


def _implausible(found: Resolution, magnification: float | None) -> tuple[str, ...]:
    low, high = _MPP_TIMES_MAGNIFICATION
    if found.mpp is None or magnification is None:
        return ()
    if all(low <= side * magnification <= high for side in found.mpp):
        return ()
    return (
        f"{_text(found.mpp)} and an objective of {magnification:g}x do not fit: {magnification:g}x gives about "
        f"{10 / magnification:.2g} µm/px. One of them is wrong; if it is the resolution, state it with {found.option}.",
    )


def _believable(own: Mpp | None, tags: Mpp | None, option: str) -> Resolution:
    state_it = f"state it with {option} {_FOR_EXAMPLE}"
    if own is not None:
        if all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in own):
            return Resolution(own, "slide")
        return Resolution(None, "", (f"The slide says {_text(own)}, which no scanner means; {state_it}.",))
    if tags is not None:
        if all(TAG_MPP_RANGE[0] <= value <= TAG_MPP_RANGE[1] for value in tags):
            return Resolution(tags, "tiff tags")
        dpi = " × ".join(f"{25_400 / value:.4g}" for value in dict.fromkeys(tags))
        return Resolution(
            None, "", (f"The TIFF tags say {_text(tags)} ({dpi} dpi), which no scanner means; {state_it}.",)
        )
    return Resolution(None, "", (f"The slide does not say its resolution; {state_it}.",))


def _not_square(mpp: Mpp) -> tuple[str, ...]:
    if abs(mpp[0] / mpp[1] - 1.0) <= _SQUARE_TOLERANCE:
        return ()
    return (f"Its pixels are not square: {mpp[0]:.4g} × {mpp[1]:.4g} µm.",)


def _text(mpp: Mpp) -> str:
    return f"{mpp[0]:.4g} µm/px" if f"{mpp[0]:.4g}" == f"{mpp[1]:.4g}" else f"{mpp[0]:.4g} × {mpp[1]:.4g} µm/px"


def positive_number(value: Any) -> float | None:
    """The number in a metadata value (text, number, None); None where there is none, or none finite and above 0.

    A comma is taken for the decimal point of another language.
    """
    if isinstance(value, str) and value.count(",") == 1 and "." not in value:
        value = value.replace(",", ".")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def unit_um(unit: str) -> float | None:
    """Return a unit in µm; None if it is not a length, or unknown."""
    text = unit.strip()
    # ImageJ's escapes, the Greek letter, and UTF-8 decoded as Latin-1
    for escape in (
        "\\u00B5",
        "\\u00b5",
        "\u03bc",
        "Âµ",
        "Î¼",
    ):
        text = text.replace(escape, "µ")
    text = text.replace("\u212b", "Å").replace("A\u030a", "Å").replace("\\u00C5", "Å").replace("\\u00c5", "Å")
    return UNITS_UM.get(_WORDS.get(text.lower(), text))
