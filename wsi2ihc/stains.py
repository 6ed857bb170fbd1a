"""Which light the stains take away, and how much of either is in a colour of two of them.

Optical densities of a pixel are a sum of the stains' directions (Ruifrok and Johnston, Anal Quant Cytol Histol 23:291,
2001). The built-in generator has directions of its own, which were estimated on H&E slides; and synthetic slides are
painted with theirs, so that nothing is measured with what it was made of.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Direction: TypeAlias = tuple[float, float, float]
"""Densities of red, green and blue; of any length."""

HAEMATOXYLIN: Direction = (0.650, 0.704, 0.286)
EOSIN: Direction = (0.072, 0.990, 0.105)
DAB: Direction = (0.268, 0.570, 0.776)


def unmixing(first: Direction, second: Direction) -> npt.NDArray[np.float64]:
    """What the three densities of a pixel weigh in its amounts of two stains: (3, 2), in the order given.

    Amounts are densities along directions of length 1. A third stain, at right angles to both, takes up the rest.
    """
    stains = np.array([first, second])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    third = np.cross(*stains)
    weights: npt.NDArray[np.float64] = np.linalg.inv(np.vstack([stains, third / np.linalg.norm(third)]))[:, :2]
    return weights
