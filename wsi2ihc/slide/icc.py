"""ICC profiles: convert scanner colors to sRGB, and remove private text."""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from ..geometry import RGBImage

_HEADER_BYTES = 128
_MAX_BYTES = 2**24
_MAX_TAGS = 256

_COLOR_TAGS = frozenset(
    b"rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC wtpt bkpt chad cicp A2B0 A2B1 A2B2 B2A0 B2A1 B2A2 D2B0 D2B1 D2B2 D2B3 "
    b"B2D0 B2D1 B2D2 B2D3".split()
)
"""Tags that define transforms (ICC.1:2022, 9.2). All others, including private ones, are removed."""

_KEPT_OF_HEADER = (
    slice(8, 12),  # version
    slice(12, 24),  # class, color space, connection space
    slice(36, 40),  # signature
    slice(64, 68),  # rendering intent
    slice(68, 80),  # illuminant
)
"""Fields of the header (ICC.1:2022, 7.2). The others name programs, platforms and devices, or are a hash."""

_DATE = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
_COPYRIGHT = "No copyright notice is kept"


def without_texts(profile: bytes, description: str = "Colors of the slide") -> bytes:
    """Return a profile with the same colors and neutral texts.

    Raises `ValueError` if its header or its table of tags is damaged.
    """
    try:
        tags = _color_tags(profile)
    except struct.error as error:
        raise ValueError(f"the color profile is cut off ({error})") from None
    multilingual = profile[8] >= 4
    tags[b"desc"] = _multilingual(description) if multilingual else _described(description)
    tags[b"cprt"] = _multilingual(_COPYRIGHT) if multilingual else b"text\0\0\0\0" + _COPYRIGHT.encode() + b"\0"
    header = bytearray(_HEADER_BYTES)
    for part in _KEPT_OF_HEADER:
        header[part] = profile[part]
    header[24:36] = _DATE
    return _assembled(header, tags)


def _color_tags(profile: bytes) -> dict[bytes, bytes]:
    if len(profile) > _MAX_BYTES:
        raise ValueError("the color profile is too large")
    count = struct.unpack_from(">I", profile, _HEADER_BYTES)[0]
    if count > _MAX_TAGS:
        raise ValueError("the color profile has too many tags")
    tags: dict[bytes, bytes] = {}
    for number in range(count):
        name, start, size = struct.unpack_from(">4sII", profile, _HEADER_BYTES + 4 + 12 * number)
        if name in _COLOR_TAGS:
            if start + size > len(profile):
                raise ValueError("the color profile is cut off")
            tags[name] = _exact(profile[start : start + size])
    return tags


def _exact(element: bytes) -> bytes:
    """Cut an element to its numbers."""
    kind = element[:4]
    if kind == b"XYZ ":
        return element[:20]
    if kind == b"curv":
        return element[: 12 + 2 * struct.unpack_from(">I", element, 8)[0]]
    if kind == b"para":
        parameters = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}.get(struct.unpack_from(">H", element, 8)[0], 7)
        return element[: 12 + 4 * parameters]
    if kind == b"sf32":
        return element[:44]
    return element


def _multilingual(text: str) -> bytes:
    """Encode a text as in profiles of version 4 (ICC.1:2022, 10.15)."""
    encoded = text.encode("utf-16-be")
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _described(text: str) -> bytes:
    """Encode a description as in profiles of version 2 (ICC.1:2001-04, 6.5.17)."""
    encoded = text.encode("ascii") + b"\0"
    return struct.pack(">4sII", b"desc", 0, len(encoded)) + encoded + bytes(4 + 4 + 2 + 1 + 67)


def _assembled(header: bytearray, tags: dict[bytes, bytes]) -> bytes:
    """Assemble a profile from tags; equal elements are stored once."""
    start = _HEADER_BYTES + 4 + 12 * len(tags)
    table, body = bytearray(struct.pack(">I", len(tags))), bytearray()
    places: dict[bytes, int] = {}
    for name in sorted(tags):
        element = tags[name]
        if element not in places:
            body += bytes(-(start + len(body)) % 4)
            places[element] = start + len(body)
            body += element
        table += struct.pack(">4sII", name, places[element], len(element))
    body += bytes(-len(body) % 4)
    header[0:4] = struct.pack(">I", start + len(body))
    return bytes(header + table + body)


def is_usable_profile(profile: bytes) -> bool:
    """Whether RGB pixels can be converted with this profile."""
    try:
        _build(profile)
    except ValueError:
        return False
    return True


def to_srgb_transform(icc_profile: bytes) -> Callable[[RGBImage], RGBImage]:
    """Return a function that converts (rows, columns, 3) uint8 pixels from a profile's colors to sRGB.

    It works pixel by pixel, so that the result does not depend on how an image is cut, and may be called from several
    threads. Raises `ValueError` if the profile is damaged, or not one for RGB.
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
    """Return an sRGB profile for the output; the same bytes every time."""
    # Little CMS writes the time of creation, which would make every output file differ.
    return without_texts(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), "sRGB")


def _build(profile: bytes) -> ImageCms.ImageCmsTransform:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            raise ValueError(f"the color profile is for {source.profile.xcolor_space.strip()}, not RGB")
        return ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            "RGB",
            "RGB",
            intent=ImageCms.Intent(ImageCms.getDefaultIntent(source)),
        )
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"the color profile cannot be used: {error}") from error
