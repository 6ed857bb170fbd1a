"""How regions, amounts of memory and counts are written on the command line and in manifests, and lists in messages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .geometry import Region

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_region(text: str) -> Region:
    """``X,Y,W,H`` in px; not empty.

    Raises
    ------
    ValueError
        Saying what is wrong with it, to follow the text itself.
    """
    parts = re.fullmatch(r"\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    if parts is None:
        raise ValueError("is not X,Y,W,H in whole pixels, such as 1000,2000,512,512")
    x, y, width, height = map(int, parts.groups())
    if not width or not height:
        raise ValueError("is empty: width and height must be at least 1")
    return Region(x, y, width, height)


def parse_bytes(text: str) -> int:
    """An amount of memory such as ``4G``, ``1500M`` or ``0.5T``, in bytes; units are powers of 1024.

    Raises
    ------
    ValueError
        Saying what is wrong with it, to follow the text itself.
    """
    parts = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if parts is None:
        raise ValueError("is not an amount of memory such as 4G or 1500M")
    return int(float(parts[1]) * _UNITS[parts[2].upper()])


def parse_auto(text: str) -> int:
    """A whole number of at least 1; or ``auto``, which becomes 0.

    Raises
    ------
    ValueError
        Saying what is wrong with it, to follow the text itself.
    """
    if text == "auto":
        return 0
    if re.fullmatch(r"\d{1,6}", text) is None or int(text) < 1:
        raise ValueError("is neither auto nor a whole number of at least 1")
    return int(text)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
