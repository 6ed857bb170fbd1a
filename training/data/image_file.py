"""Image files of patches: header checks and pixels.

Files are identified by their first bytes. Size, bit depth and the number of images are checked in the header before any
decoder allocates memory.
"""

from __future__ import annotations

import errno
import os
import struct
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

from wsi2ihc.errors import DatasetError
from wsi2ihc.files import open_regular
from wsi2ihc.geometry import RGBImage, Size
from wsi2ihc.slide.tiff_metadata import ReadAt, TiffDirectory, TiffLayout, read_directory, read_layout

from .dataset import LARGEST_SIDE_PX

MAX_ENTRIES = 500
"""Entries of a TIFF directory; those of patches have about twenty."""

MAX_METADATA_BYTES = 64 << 20
"""Bytes of all values of a TIFF directory. Entries may share bytes, so the size of the file is not a bound."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 259, 274, 322, 323
_TAGS = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT})

_FARTHEST_OFFSET = 1 << 43
"""File systems refuse to seek much farther."""

_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

_COMPRESSIONS = frozenset({1, 5, 7, 8, 32773, 32946})
"""None, LZW, JPEG, Deflate, PackBits, and the older code of Deflate."""

LARGEST_PX = LARGEST_SIDE_PX**2
"""Maximum number of pixels of an image of one stain."""

_MAX_EXTRA_BYTES = 64 << 20
"""Maximum size of a file beyond its pixels: profiles, text."""

_MAX_SCANS = 64
"""Scans of a progressive JPEG file. Files have about ten, and each takes as much time as the first."""

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


def _read_tiff_tags(file: BinaryIO) -> tuple[dict[int, int], bool]:
    """Read the first directory: the largest value of each tag in `_TAGS`, and whether further images follow.

    Raises
    ------
    ValueError
        If the file is not a TIFF file, is damaged, or has more metadata than a patch.
    """

    def read_at(offset: int, count: int) -> bytes:
        file.seek(min(offset, _FARTHEST_OFFSET))
        return file.read(count)

    found = read_layout(read_at)
    if found is None:
        raise ValueError("it is not a TIFF file")
    layout, first = found
    directory = read_directory(layout, read_at, first, MAX_ENTRIES)
    if not 0 < directory.stated <= MAX_ENTRIES:
        raise ValueError(f"its directory has {directory.stated} entries")
    if directory.following is None:
        raise ValueError("it is truncated")
    metadata_bytes = sum(entry.size for entry in directory.entries)
    if metadata_bytes > MAX_METADATA_BYTES:
        raise ValueError(f"it has {metadata_bytes:,} bytes of metadata")
    return _values(layout, directory, read_at), bool(directory.following)


def _values(layout: TiffLayout, directory: TiffDirectory, read_at: ReadAt) -> dict[int, int]:
    values: dict[int, int] = {}
    for entry in directory.entries:
        if entry.code not in _TAGS:
            continue
        if entry.kind not in _INTEGERS or not 0 < entry.items <= 16 or entry.code in values:
            raise ValueError(f"its tag {entry.code} is damaged")
        content = entry.field
        if entry.size > len(content):
            content = read_at(layout.offset(content) or 0, entry.size)
        try:
            found = struct.unpack(f"{layout.order}{entry.items}{_INTEGERS[entry.kind]}", content[: entry.size])
        except struct.error as error:
            raise ValueError("it is truncated") from error
        values[entry.code] = max(found)
    return values


def read_size(path: Path, *, images: int = 1) -> Size:
    """Read the size of an image of 8-bit RGB from its header.

    With several ``images`` side by side in the file, it may be as many times as large.

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
    that are a fifth faster accept truncated files. EXIF orientations are ignored, and TIFF orientations are an error:
    scanners do not write any, and if a tool left one in only one file of a pair, applying it would misalign the pair.

    Raises
    ------
    DatasetError
        If the file is damaged or truncated, or as for `read_size`.
    """
    try:
        with _regular(path) as file:
            kind, image = _open(file, path, images)
            with image:
                if kind == "JPEG":
                    _check_scans(file)
                if kind != "PNG":
                    return np.asarray(image, np.uint8)
            file.seek(0)
            return np.asarray(imagecodecs.png_decode(file.read()), np.uint8)
    except DatasetError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged data
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(f"{path} cannot be decoded ({reason:.80}); replace it, or remove the pair") from error


def _regular(path: Path) -> BinaryIO:
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
            raise ValueError("its format is not supported")
        if kind == "PNG":
            _check_size(path, int.from_bytes(head[16:20]), int.from_bytes(head[20:24]), size_bytes, images)
        elif kind == "TIFF":
            problem = _problem_of_tiff(file, path, size_bytes, images)
        file.seek(0)
        image = make(file) if not problem else None
    except DatasetError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for damaged headers
        if isinstance(error, OSError) and error.errno:  # of the disk
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


def _check_size(path: Path, width: int, height: int, size_bytes: int, images: int, tile_px: int = 0) -> None:
    max_px = LARGEST_PX * images
    if max(width * height, tile_px) > max_px:
        beside = f" ({images} side by side)" if images > 1 else ""
        raise DatasetError(
            f"{path} is too large for a patch: {width}×{height} px, and {LARGEST_SIDE_PX}×{LARGEST_SIDE_PX} is the "
            f"most{beside}; cut it into patches"
        )
    if size_bytes > 4 * width * height + _MAX_EXTRA_BYTES:
        raise DatasetError(
            f"{path} has {size_bytes:,} bytes, too many for {width}×{height} px; save it without metadata"
        )


def _problem_of_tiff(file: BinaryIO, path: Path, size_bytes: int, images: int) -> str:
    """Return why a TIFF file cannot be decoded; "" if it can."""
    values, has_more = _read_tiff_tags(file)
    width, height = values[_WIDTH], values[_HEIGHT]
    tile_px = values.get(_TILE_WIDTH, width) * values.get(_TILE_HEIGHT, height)
    _check_size(path, width, height, size_bytes, images, tile_px)
    if has_more:
        return "holds several images; keep one image in a file"
    if (bits := values.get(_BITS, 1)) > 8:  # Pillow opens 16 bits per channel as mode RGB and drops the lower halves
        return f"has {bits} bits per channel; convert it to 8-bit RGB"
    if values.get(_ORIENTATION, 1) not in (0, 1):  # Pillow would rotate it, but not its partner
        return "has an orientation tag; save it upright"
    if values.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        return "has an unsupported compression; save it with Deflate or LZW, or as PNG"
    return ""


def _problem_of(image: Image.Image, head: bytes) -> str:
    """Return why an opened image cannot be used; "" if it can."""
    if getattr(image, "is_animated", False):
        return "holds several images; keep one image in a file"
    kind = ""
    if image.format == "PNG" and head[_PNG_DEPTH_AT] > 8:  # Pillow drops the lower halves, as of TIFF
        kind = f"has {head[_PNG_DEPTH_AT]} bits per channel"
    elif image.mode != "RGB":
        kind = _MODES.get(image.mode, f"has the mode {image.mode}")
    elif "transparency" in image.info:
        kind = "has an alpha channel"
    return f"{kind}; convert it to 8-bit RGB" if kind else ""


def _check_scans(file: BinaryIO) -> None:
    """Check that a JPEG file does not have so many scans that a few kB take hours to decode."""
    at = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(at)
    if scans > _MAX_SCANS:
        raise ValueError(f"it has {scans} scans")
