"""Text to print: numbers with nouns, and text of files, models, tables and names, made safe."""

from __future__ import annotations

import unicodedata

_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""Characters that Python counts as printable but that are invisible."""


def printable(text: str) -> str:
    r"""Escape characters that could change more of the terminal than the place where the text is printed.

    Control characters, line breaks, marks that change the direction of text, characters without width and surrogates
    are escaped as in Python (``\x1b``, ``\n``, ``\u202e``). Bytes of a name that are not UTF-8 appear as ``\xff``. All
    other text, in any script, is unchanged.
    """
    if text.isprintable() and not any(one in text for one in _INVISIBLE):
        return text
    return "".join(one if _is_visible(one) else _escaped(one) for one in text)


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun: "1 patient", "2 patients", "1,000 patches".

    Parameters
    ----------
    plural
        Of the noun, if it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def columns(text: str) -> int:
    """Count the columns of a printable text on a terminal: two for wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(one) for one in text)


def cut(text: str, most: int) -> str:
    """Cut a printable text to at most ``most`` columns, with an ellipsis at the end if it was longer."""
    if columns(text) <= most:
        return text
    taken, kept = 0, []
    for one in text:
        taken += _columns_of(one)
        if taken > most - 1:
            break
        kept.append(one)
    return "".join(kept) + ("…" if most > 0 else "")


def _is_visible(one: str) -> bool:
    # Python does not count spaces such as the no-break space as printable
    return (one.isprintable() and one not in _INVISIBLE) or unicodedata.category(one) == "Zs"


def _escaped(one: str) -> str:
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # surrogate of a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return one.encode("unicode_escape").decode("ascii")


def _columns_of(one: str) -> int:
    if unicodedata.category(one) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(one) in ("W", "F") else 1
