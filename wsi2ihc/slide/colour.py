"""Colour profiles: from a scanner's colours to sRGB.

The policy of the program is one of two. *keep*: pixels stay as they are, and the profile goes along into the output,
less the texts in it (see `profile_texts`).
*srgb*: pixels are converted with the profile's default rendering intent, as OpenSlide's documentation says, and the
output carries an sRGB profile.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from ..arrays import RGBImage
from .profile_texts import without_texts


def is_usable_profile(profile: bytes) -> bool:
    """Whether RGB pixels can be converted with this profile."""
    try:
        _build(profile)
    except ValueError:
        return False
    return True


def to_srgb_transform(icc_profile: bytes) -> Callable[[RGBImage], RGBImage]:
    """A function that converts (rows, columns, 3) uint8 pixels from a profile's colours to sRGB.

    It works pixel by pixel, so that the result does not depend on how an image is cut, and may be called from several
    threads.

    Raises
    ------
    ValueError
        If the profile is damaged, or not one for RGB.
    """
    _build(icc_profile)
    local = threading.local()

    def convert(pixels: RGBImage) -> RGBImage:
        if pixels.size == 0:
            return pixels.copy()
        # One transform per thread: Little CMS keeps the last pixel in it.
        transform = getattr(local, "transform", None)
        if transform is None:
            transform = local.transform = _build(icc_profile)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        transform.apply_in_place(image)
        return np.array(image)

    return convert


@functools.cache
def srgb_profile() -> bytes:
    """An sRGB profile for the output; the same bytes every time."""
    # Little CMS writes the time of creation, which would make every output file differ.
    return without_texts(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "sRGB")


def _build(profile: bytes) -> ImageCms.ImageCmsTransform:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            raise ValueError(f"the colour profile is for {source.profile.xcolor_space.strip()}, not RGB")
        return ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            "RGB",
            "RGB",
            intent=ImageCms.Intent(ImageCms.getDefaultIntent(source)),
        )
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"the colour profile cannot be used: {error}") from error
