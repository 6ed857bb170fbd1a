"""Detect pairs whose H&E and IHC images are exchanged."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from wsi2ihc.arrays import RGBImage
from wsi2ihc.tissue import green_excess

from .images import pairs_to_open, read_pair
from .pairs import Pair

LOOKED_AT = 8
"""Number of pairs that are checked, evenly spread."""

_LARGEST_PX = 1024
"""Side of the part of an image that is measured."""

_AT_MOST, _AT_LEAST = 1.5, 1.6
"""Largest green absorption of IHC, and smallest of H&E, relative to red and blue; `wsi2ihc.tissue.staining` has the
measurements. The stains are exchanged if the supposed H&E is below the first and the supposed IHC above the second."""


def exchanged(pairs: Sequence[Pair]) -> str:
    """Describe, as a clause, why both stains seem exchanged; "" if they do not.

    Parameters
    ----------
    pairs
        Pairs of any role; those of role test are not opened.

    Raises
    ------
    DatasetError
        If an image cannot be read.
    """
    opened = pairs_to_open(pairs)
    looked_at = opened[:: -(-len(opened) // LOOKED_AT)]
    found = [tuple(_excess(image) for image in read_pair(pair)) for pair in looked_at]
    known = [(he, ihc) for he, ihc in found if he is not None and ihc is not None]
    if 2 * len(known) < len(looked_at):
        return ""
    he, ihc = (statistics.median(values) for values in zip(*known, strict=True))
    if he > _AT_MOST or ihc < _AT_LEAST:
        return ""
    return (
        f"the images taken for H&E look like IHC, and their partners like H&E (they absorb green {he:.2f} and "
        f"{ihc:.2f} times as much as red and blue; H&E does 1.6 times and more)"
    )


def _excess(image: RGBImage) -> float | None:
    part = np.ascontiguousarray(image[:_LARGEST_PX, :_LARGEST_PX])
    return green_excess(part, np.ones(part.shape[:2], np.bool_))
