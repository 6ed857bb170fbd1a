"""Small IHC-like images, blue and brown blobs on white, and imperfect virtual ones."""

from __future__ import annotations

import cv2
import numpy as np

from wsi2ihc.geometry import RGBImage

DAB = np.array([0.268, 0.570, 0.776]) / np.linalg.norm([0.268, 0.570, 0.776])
HEMATOXYLIN = np.array([0.650, 0.704, 0.286]) / np.linalg.norm([0.650, 0.704, 0.286])


def stained_image(seed: int, size: int = 96, strength: float = 0.8) -> RGBImage:
    """Smooth random amounts of hematoxylin and DAB, as light through them."""
    rng = np.random.default_rng(seed)
    brown, blue = (np.clip(cv2.GaussianBlur(rng.normal(0, 12, (size, size)), (0, 0), 6), 0, None) for _ in range(2))
    density = strength * brown[..., np.newaxis] * DAB + 0.3 * blue[..., np.newaxis] * HEMATOXYLIN
    return np.asarray(np.clip(np.rint(255 * 10**-density), 0, 255), np.uint8)


def virtual_of(image: RGBImage, seed: int) -> RGBImage:
    """The image, blurred and with noise."""
    rng = np.random.default_rng(seed)
    blurred = cv2.GaussianBlur(image, (0, 0), 2).astype(np.float64)
    return np.asarray(np.clip(np.rint(blurred + rng.normal(0, 6, image.shape)), 0, 255), np.uint8)
