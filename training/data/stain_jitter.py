"""Stain augmentation."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import RGBImage
from wsi2ihc.stains import EOSIN, HEMATOXYLIN, stain_matrix

HUE_RANGE = 0.5
"""Range of the components of a stain's direction, as a fraction of the strength. At 0.3 the direction rotates by up
to 15°; directions estimated on three slides of other organs and laboratories differed by 10° to 13°.
"""

STRONGEST = 1.0
"""Larger values are not realistic."""

DRAWS = 8
"""Random numbers per crop: the amount of each of two stains, and three components of each direction."""


def augment_stains(he: RGBImage, strength: float, draws: npt.NDArray[np.float64]) -> RGBImage:
    """Change the stains of an H&E image.

    Optical densities are separated into hematoxylin, eosin and a residual, and recombined with different amounts and
    directions of the two stains. White and the residual do not change.

    Parameters
    ----------
    he
        (H, W, 3) uint8.
    strength
        Up to `STRONGEST`: amounts change by factors between exp(-strength) and exp(strength); 0 changes nothing.
    draws
        `DRAWS` numbers between 0 and 1, of which 0.5 changes nothing.
    """
    if not strength:
        return he
    offsets = strength * (2 * draws - 1)
    stains = stain_matrix(HEMATOXYLIN, EOSIN)
    changed = stains.copy()
    changed[:2] += HUE_RANGE * offsets[2:].reshape(2, 3)
    changed[:2] *= (np.exp(offsets[:2]) / np.linalg.norm(changed[:2], axis=1))[:, None]
    densities = _densities()[he] @ (np.linalg.inv(stains) @ changed).astype(np.float32)
    return np.asarray(np.clip(np.rint(255 * np.exp(-densities)), 0, 255), np.uint8)


@functools.cache
def _densities() -> npt.NDArray[np.float32]:
    """Return the optical density (natural logarithm) of each gray level; black counts as level 1."""
    return -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
