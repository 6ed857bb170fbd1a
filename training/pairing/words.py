"""Numbers with their nouns, and reasons of the system."""

from __future__ import annotations

from wsi2ihc.text import pluralize


def pairs_of_slides(number: int) -> str:
    """As in "1 pair of slides"."""
    return pluralize(number, "pair of slides", "pairs of slides")


def patches(number: int) -> str:
    """As in "1 patch"."""
    return pluralize(number, "patch", "patches")


def reason(error: Exception) -> str:
    """Why something could not be done, without the number that the system has for it."""
    return f"{getattr(error, 'strerror', None) or error!s:.80}"
