"""Small operations on pixels that the readers share."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import RGB, RGBImage

_MIXED_SHARE = 0.1
"""Share of half-transparent pixels up to which a fourth sample is believed to be alpha: edges are, areas are not."""


def alpha_in(samples: npt.NDArray[np.uint8]) -> Literal["", "straight", "premultiplied"]:
    """Whether the fourth of four samples, (n, 4), behaves as alpha, and whether the colors are multiplied by it.

    Alpha is 255 or 0 nearly everywhere, and where it is 0 there are no colors. Infrared, focus or filler is not so.
    """
    colors, fourth = samples[:, :3], samples[:, 3]
    clear = fourth == 0
    if not clear.any() or not (fourth == 255).any():
        return ""
    mixed = (fourth > 0) & (fourth < 255)
    if mixed.mean() > _MIXED_SHARE or np.ptp(colors[clear], axis=0).any():
        return ""
    return "premultiplied" if (colors.max(axis=1) <= fourth).all() else "straight"


def transparent(name: str) -> str:
    """The message for an image that cannot be seen at all."""
    return f"{name}: its alpha channel makes all of it transparent; export it as RGB without alpha"


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
