"""Small operations on pixels that the readers share."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..arrays import RGB, RGBImage


def fill_with(pixels: RGBImage, colour: RGB) -> None:
    """Set all of an image, or of a view of one, to one colour."""
    # One value for all channels is a memset; three are not.
    pixels[...] = colour[0] if colour[0] == colour[1] == colour[2] else colour


def filled(width: int, height: int, colour: RGB) -> RGBImage:
    """A new image of one colour, (height, width, 3)."""
    pixels = np.empty((height, width, 3), np.uint8)
    fill_with(pixels, colour)
    return pixels


def composited(image: Image.Image, fill: RGB) -> RGBImage:
    """An RGBA image (not premultiplied) laid over ``fill``: (height, width, 3) uint8.

    Pixels of full opacity are left exactly as they are, and those of none become exactly ``fill``.
    """
    alpha = image.getchannel("A")
    low, high = alpha.getextrema()
    if low == 255:
        return np.asarray(image.convert("RGB"))
    if high == 0:
        return filled(image.width, image.height, fill)
    base = Image.new("RGB", image.size, fill)
    base.paste(image.convert("RGB"), mask=alpha)
    return np.asarray(base)
