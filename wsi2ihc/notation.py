"""How options are written on the command line and in manifests, which numbers they take, and lists in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .errors import OptionError
from .geometry import Region

MOST_SEED = 2**63 - 1
MOST_WORKERS = 1024
"""Far more than anybody needs, and so a slip of the keyboard: what threads work on is held in memory."""

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


def flag(name: str) -> str:
    """Return the command-line option of a field."""
    return f"--{name.replace('_', '-')}"


def check_bounds(options: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers of an options object that are not between their bounds, both included; None is not checked.

    Raises
    ------
    OptionError
        If there is one.
    """
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise OptionError(f"{flag(name)} must be at least {least:,}, not {value}")
        if value is not None and not value <= most:
            raise OptionError(f"{flag(name)} must be at most {most:,}, not {value}")


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
