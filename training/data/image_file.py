"""Image files of patches: their headers, checked before anything is decoded, and their pixels.

All images of patches are opened here. The first bytes of a file, not its name, select the decoder from a short list:
Pillow alone would try about forty formats.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError
from wsi2ihc.files import open_regular
from wsi2ihc.geometry import Size

from .pairs import LARGEST_SIDE_PX
from .tiff_header import read_tiff_header

LARGEST_PX = LARGEST_SIDE_PX**2
"""Most pixels of an image of one stain."""

_MOST_EXTRA_BYTES = 64 << 20
"""Most bytes of a file beyond its pixels: profiles, text."""

_MOST_SCANS = 64
"""Most scans of a progressive JPEG file. Files have about ten, and each takes as much time as the first."""

_SIGNATURES: tuple[tuple[bytes, str, Callable[..., Image.Image]], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImageFile),
    (b"\xff\xd8\xff", "JPEG", jpeg_factory),
    (b"II*\0", "TIFF", TiffImageFile),
    (b"MM\0*", "TIFF", TiffImageFile),
    (b"II+\0", "TIFF", TiffImageFile),
    (b"BM", "BMP", BmpImageFile),
)

_PNG_DEPTH_AT = 24
"""Offset of the bits per channel in a PNG file: in its first chunk, the header (PNG specification, 11.2.1)."""

_MODES = {
    "1": "is black and white",
    "L": "is gray",
    "LA": "is gray with alpha",
    "P": "has a palette",
    "PA": "has a palette",
    "RGBA": "has an alpha channel",
    "RGBa": "has an alpha channel",
    "RGBX": "has a fourth channel",
    "CMYK": "is CMYK",
}


def read_size(path: Path, *, images: int = 1) -> Size:
    """Read the size of an image of 8-bit RGB from its header.

    Parameters
    ----------
    path
        The file.
    images
        Number of images side by side in it, which multiplies the largest size allowed.

    Raises
    ------
    DatasetError
        If the file is not a single image of 8-bit RGB, cannot be read, or is larger than a patch may be.
    """
    try:
        with _regular(path) as file:
            return Size(*_open(file, path, images)[1].size)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error!s:.80})") from error


def read_image(path: Path, *, images: int = 1) -> RGBImage:
    """Decode one image as it is stored.

    PNG is decoded by libpng, in three quarters of the time of Pillow; other formats by Pillow, since the JPEG decoders
    that are a fifth faster accept truncated files. Orientations in EXIF are ignored, and those of TIFF files refused:
    scanners do not write any, and if a tool left one in only one file of a pair, applying it would misalign the pair.

    Parameters
    ----------
    path, images
        As for `read_size`.

    Raises
    ------
    DatasetError
        If the file is damaged or truncated, or as for `read_size`.
    """
    try:
        with _regular(path) as file:
            kind, image = _open(file, path, images)
            with image:
                if kind != "PNG":
                    _check_scans(file, kind)
                    return np.asarray(image, np.uint8)
            file.seek(0)
            return np.asarray(imagecodecs.png_decode(file.read()), np.uint8)
    except DatasetError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged data
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(f"{path} cannot be decoded ({reason:.80}); replace it, or remove the pair") from error


def _regular(path: Path) -> BinaryIO:
    """Open a regular file."""
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO):  # ENXIO: a socket
            raise DatasetError(f"{path} is not a regular file; replace it, or remove the pair") from error
        raise


def _open(file: BinaryIO, path: Path, images: int) -> tuple[str, Image.Image]:
    """Identify a file and parse its header: its format, and the image, not yet decoded."""
    size_bytes = os.fstat(file.fileno()).st_size
    head = file.read(_PNG_DEPTH_AT + 1)
    kind, make = next(((kind, make) for begin, kind, make in _SIGNATURES if head.startswith(begin)), ("", None))
    problem = ""
    try:
        if make is None:
            raise ValueError("its first bytes are not those of a format that is read here")
        if kind == "PNG":
            _check_size(path, int.from_bytes(head[16:20]), int.from_bytes(head[20:24]), size_bytes, images)
        elif kind == "TIFF":
            problem = _problem_of_tiff(file, path, size_bytes, images)
        file.seek(0)
        image = make(file) if not problem else None
    except DatasetError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for damaged headers
        if isinstance(error, OSError) and error.errno:  # the disk's
            raise
        raise DatasetError(
            f"{path} is not an image, or is damaged; replace it by a PNG, JPEG, TIFF or BMP file, or remove the pair"
        ) from error
    if image is not None:
        _check_size(path, *image.size, size_bytes, images)
        problem = _problem_of(image, head)
    if image is None or problem:
        raise DatasetError(f"{path} {problem}")
    return kind, image


def _check_size(path: Path, width: int, height: int, size_bytes: int, images: int, decoded_px: int = 0) -> None:
    most_px = LARGEST_PX * images
    if max(width * height, decoded_px) > most_px:
        beside = f" ({images} side by side)" if images > 1 else ""
        raise DatasetError(
            f"{path} is too large for a patch: {width}×{height} px, and {LARGEST_SIDE_PX}×{LARGEST_SIDE_PX} is the "
            f"most{beside}; cut it into patches"
        )
    if size_bytes > 4 * width * height + _MOST_EXTRA_BYTES:
        raise DatasetError(
            f"{path} has {size_bytes:,} bytes, too many for {width}×{height} px; save it without metadata"
        )


def _problem_of_tiff(file: BinaryIO, path: Path, size_bytes: int, images: int) -> str:
    """Why a TIFF file cannot be decoded; "" if it can."""
    found = read_tiff_header(file)
    _check_size(path, found.width, found.height, size_bytes, images, found.decoded_px)
    if found.has_more:
        return "holds several images; keep one image in a file"
    if found.bits > 8:  # Pillow opens 16 bits per channel as mode RGB and drops the lower halves
        return f"has {found.bits} bits per channel; convert it to 8-bit RGB"
    if not found.is_upright:  # Pillow would rotate it, but not its partner
        return "states an orientation; save it upright"
    if not found.is_known:
        return "is compressed in a way that is not read here; save it with Deflate or LZW, or as PNG"
    return ""


def _problem_of(image: Image.Image, head: bytes) -> str:
    """Why an opened image cannot be used; "" if it can."""
    if getattr(image, "is_animated", False):
        return "holds several images; keep one image in a file"
    kind = ""
    if image.format == "PNG" and head[_PNG_DEPTH_AT] > 8:  # Pillow drops the lower halves, as of TIFF
        kind = f"has {head[_PNG_DEPTH_AT]} bits per channel"
    elif image.mode != "RGB":
        kind = _MODES.get(image.mode, f"is of the kind {image.mode}")
    elif "transparency" in image.info:
        kind = "has an alpha channel"
    return f"{kind}; convert it to 8-bit RGB" if kind else ""


def _check_scans(file: BinaryIO, kind: str) -> None:
    """Refuse a JPEG file with so many scans that a few kB take hours."""
    if kind != "JPEG":
        return
    at = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(at)
    if scans > _MOST_SCANS:
        raise ValueError(f"it has {scans} scans")
