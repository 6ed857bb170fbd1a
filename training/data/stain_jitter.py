"""Other laboratories' H&E from one's own: crops in other strengths of the stains, and in other hues of them.

After Tellez et al. (IEEE TMI 37:2126, 2018), who change the amounts of the stains in optical density; here the stains'
directions are changed too, which is what slides of two laboratories differ in as well. Only the H&E is recoloured: what
the IHC looks like does not depend on who stained the H&E.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.stains import EOSIN, HAEMATOXYLIN

HUE_SHARE = 0.5
"""How far components of a stain's direction move, as a share of the strength. At 0.3 this turns it by up to 15°;
directions estimated on three slides of other organs and laboratories lay 10° to 13° apart."""

STRONGEST = 1.0
"""More is no stain that anybody has seen."""

DRAWS = 8
"""Random numbers that a crop needs: the amount of each of two stains, and three components of each direction."""


def recoloured(he: RGBImage, strength: float, draws: npt.NDArray[np.float64]) -> RGBImage:
    """Stain an H&E image anew.

    Optical densities are taken apart into haematoxylin, eosin and a rest, and put together with other amounts of the
    two, of other directions. White stays white, and the rest as it is.

    Parameters
    ----------
    he:
        (H, W, 3) uint8
    strength:
        up to `STRONGEST`: amounts change by factors between exp(-strength) and exp(strength); 0 changes nothing
    draws:
        `DRAWS` numbers between 0 and 1, of which 0.5 changes nothing
    """
    if not strength:
        return he
    moves = strength * (2 * draws - 1)
    stains = _stains()
    changed = stains.copy()
    changed[:2] += HUE_SHARE * moves[2:].reshape(2, 3)
    changed[:2] *= (np.exp(moves[:2]) / np.linalg.norm(changed[:2], axis=1))[:, None]
    densities = _densities()[he] @ (np.linalg.inv(stains) @ changed).astype(np.float32)
    answer: RGBImage = np.clip(np.rint(255 * np.exp(-densities)), 0, 255).astype(np.uint8)
    return answer


@functools.cache
def _stains() -> npt.NDArray[np.float64]:
    """Directions of haematoxylin, of eosin, and of what is neither, of length 1: (3, 3)."""
    stains = np.array([HAEMATOXYLIN, EOSIN])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    rest = np.cross(*stains)
    return np.vstack([stains, rest / np.linalg.norm(rest)])


@functools.cache
def _densities() -> npt.NDArray[np.float32]:
    """Optical density, natural logarithm, of each grey level; black is as dense as level 1."""
    return -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
