"""Units of length, as slides state them."""

from __future__ import annotations

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
