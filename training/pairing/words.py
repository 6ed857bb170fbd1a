"""Numbers with their nouns, and reasons of the system."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """As in "1 patient", "2 patients", "1,000 patches"; a plural that does not end in s is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def pairs_of_slides(number: int) -> str:
    """As in "1 pair of slides"."""
    return counted(number, "pair of slides", "pairs of slides")


def patches(number: int) -> str:
    """As in "1 patch"."""
    return counted(number, "patch", "patches")


def reason(error: Exception) -> str:
    """Why something could not be done, without the number that the system has for it."""
    return f"{getattr(error, 'strerror', None) or error!s:.80}"
