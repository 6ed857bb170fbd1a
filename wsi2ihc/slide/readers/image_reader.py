"""Read plain images (PNG, JPEG, BMP, WebP) and arrays as slides of one level."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ...errors import UnreadableSlideError
from ...geometry import RGB, WHITE, Region, RGBImage, Size
from ...text import pluralize
from ..metadata import GivenResolution, Mpp, resolve_mpp
from ..protocol import Level, SlideInfo, composited, transparent
from ..tile_codecs import has_jpeg_hole, has_zero_run, jpeg_frame
from .base import UNCOMPRESSED, SlideReader, changed_at, checked_levels, checked_profile, hash_of_file, remarks

LARGEST_PX = 400_000_000
"""Decoded, 1.2 GB are held as long as the slide is open, 3 bytes a px. While it is opened there are 7 a px, 2.8 GB; 10
for progressive JPEG without subsampling, 16 for WebP, which has 268 Mpx at most. Pillow alone would stop at 179 Mpx."""

_BYTES_TO_OPEN = {"JPEG": 10, "WebP": 16}  # bytes a px while it is opened, at most, where they are not 7
_STRIP_PX = 1 << 20  # px that are converted at once
_PIECE_BYTES = 2**22  # bytes of a PNG chunk that are read at once

_PNG_SIGNATURE_BYTES = 8
_WEBP_PIXELS = (b"VP8 ", b"VP8L")
_ORIENTATION = 0x0112

_SIGNATURES: tuple[tuple[str, int, bytes, Callable[..., ImageFile.ImageFile]], ...] = (
    ("PNG", 0, b"\x89PNG\r\n\x1a\n", PngImageFile),
    ("JPEG", 0, b"\xff\xd8\xff", JpegImageFile),
    ("BMP", 0, b"BM", BmpImageFile),
    ("WebP", 8, b"WEBP", WebPImageFile),
)
"""Name, where in the file, which bytes, and Pillow's class. Used directly: `Image.open` refuses large images by a limit
that belongs to the whole process."""

_SAMPLES = {"L": (1, 8), "1": (1, 1), "LA": (2, 8), "I;16": (1, 16), "I": (1, 32), "F": (1, 32), "CMYK": (4, 8)}


class _DecodedSlide(SlideReader):
    """A slide of one level whose pixels, (rows, columns, 3) uint8 RGB, are in memory."""

    _pixels: RGBImage | None

    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:  # noqa: ARG002
        pixels = self._pixels
        if pixels is None:
            raise ValueError(f"{self._name} is closed")
        out[...] = pixels[region.y : region.bottom, region.x : region.right]

    def _release(self) -> None:
        self._pixels = None


class MemorySlide(_DecodedSlide):
    """A slide of pixels, which are not copied."""

    def __init__(self, pixels: RGBImage, name: str, mpp: Mpp) -> None:
        super().__init__(name, name)
        self._pixels = pixels
        size = Size(pixels.shape[1], pixels.shape[0])
        self._info = SlideInfo(
            name=name,
            reader="memory",
            vendor="",
            levels=(Level(size, 1.0),),
            mpp=mpp,
            mpp_source="stated",
            bounds=size.frame,
            quickhash="",
        )


class ImageReader(_DecodedSlide):
    """A plain image opened with Pillow.

    Palettes are resolved, and transparent pixels composited on white. Pixels are returned as stored; `slide_view`
    applies an EXIF orientation. The dots per inch of such files are those of screens and printers, so the resolution is
    the stated one or none. Raises `UnreadableSlideError` if the image is damaged, too large, or not 8-bit RGB.
    """

    def __init__(self, path: Path, given: GivenResolution | None) -> None:
        super().__init__(path, path.name)
        kind, make = _kind(path) or ("", None)
        if make is None:
            raise UnreadableSlideError(f"{path.name}: this is not a PNG, JPEG, BMP or WebP image")
        try:
            with path.open("rb") as file, make(file) as image:
                self._check(image, path)
                self.orientation = _orientation(image)
                has_alpha = image.mode in ("RGBA", "RGBa") or "transparency" in image.info
                self._pixels = _decoded(image, path, kind, has_alpha)
                profile = image.info.get("icc_profile")
                frames = int(getattr(image, "n_frames", 1))
        except Image.DecompressionBombError as error:  # raised by the plugin for WebP itself
            raise UnreadableSlideError(
                f"{path.name}: the {kind} image has more pixels than Pillow decodes; convert it to a "
                "tiled, pyramidal TIFF"
            ) from error
        # What Pillow raises on damaged headers, chunks and streams.
        except (
            OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
            zlib.error, RuntimeError,
        ) as error:  # fmt: skip
            if isinstance(error, UnreadableSlideError):
                raise
            raise UnreadableSlideError(
                f"{path.name}: the {kind} is damaged ({self._reason(error)[:80]}); copy it again from its source"
            ) from error
        self._info = self._describe(
            path, kind, profile if isinstance(profile, bytes) else None, given, frames, has_alpha
        )

    def _check(self, image: Image.Image, path: Path) -> None:
        if image.width * image.height > LARGEST_PX:
            raise UnreadableSlideError(
                f"{self._name}: {image.width}×{image.height} px are too many for an image without tiles "
                f"({LARGEST_PX:,} px is the most); convert it to a tiled, pyramidal TIFF"
            )
        samples, bits = _SAMPLES.get(image.mode, (3, 8))
        if image.mode.startswith("I;16"):
            samples, bits = 1, 16
        if image.format == "PNG":
            with path.open("rb") as file:  # Pillow reduces 16 bits to 8, and says nothing
                bits = max(bits, file.read(25)[24])
        if bits > 8 or image.mode not in ("RGB", "RGBA", "P", "PA", "RGBa", "RGBX"):
            raise UnreadableSlideError(
                f"{self._name}: its pixels have {pluralize(samples, 'sample')} of {pluralize(bits, 'bit')}, not 8-bit "
                "RGB, so it is not a brightfield slide; export the image as 8-bit RGB"
            )

    def _describe(
        self, path: Path, kind: str, profile: bytes | None, given: GivenResolution | None, frames: int, has_alpha: bool
    ) -> SlideInfo:
        assert self._pixels is not None
        height, width = self._pixels.shape[:2]
        levels = checked_levels(self._name, [(width, height)], [1.0])
        resolution = resolve_mpp(given, None, None)
        usable, profile_remarks = checked_profile(profile)
        own = list(remarks(levels, None, None))
        if has_alpha:
            own.append("It has an alpha channel; transparent places are taken for background.")
        if frames > 1:
            own.append(f"It holds {frames} images; the first is used.")
        if kind == "BMP":
            own.append(UNCOMPRESSED)
        return SlideInfo(
            name=self._name,
            reader="pillow",
            vendor="plain image",
            levels=levels,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_option=resolution.option,
            bounds=Region(0, 0, width, height),
            icc_profile=usable,
            quickhash=hash_of_file(path),
            changed_at=changed_at(path),
            problems=(*resolution.problems, *profile_remarks, *own),
        )


def is_plain_image(path: Path) -> bool:
    """Whether a file begins as a PNG, JPEG, BMP or WebP does."""
    return _kind(path) is not None


def memory_to_open(path: Path) -> int:
    """Return the bytes needed to open a plain image, by its header; 0 if it is another kind, damaged or too large."""
    try:
        kind, make = (_kind(path) if path.is_file() else None) or ("", None)
        if make is None:
            return 0
        with path.open("rb") as file, make(file) as image:
            area_px: int = image.width * image.height
    except Exception:  # Pillow has many words for a damaged header; opening the file reports it
        return 0
    return 0 if area_px > LARGEST_PX else area_px * _BYTES_TO_OPEN.get(kind, 7)


def _kind(path: Path) -> tuple[str, Callable[..., ImageFile.ImageFile]] | None:
    with path.open("rb") as file:
        head = file.read(16)
    for name, start, signature, make in _SIGNATURES:
        if head[start : start + len(signature)] == signature:
            return name, make
    return None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if missing or invalid."""
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decoded(image: Image.Image, path: Path, kind: str, has_alpha: bool) -> RGBImage:
    """Decode the pixels, after checking them for damage as far as the format allows."""
    if kind == "PNG":
        _check_png(path)
    elif kind == "WebP":
        _check_webp(path, image.width * image.height)
    elif kind == "JPEG":
        data = path.read_bytes()
        frame = jpeg_frame(data)
        if frame is not None and has_jpeg_hole(data, frame, b""):
            raise ValueError("it holds a run of zeros")
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)  # unlike Pillow's decoder, it reports damage
        return pixels
    return _rgb(image, has_alpha, path.name)


def _rgb(image: Image.Image, has_alpha: bool, name: str) -> RGBImage:
    """Convert the pixels by strips, so that only Pillow's copy, of 4 bytes a px, exists besides."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PX // width)
    visible = not has_alpha
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image.crop((0, top, width, bottom))
        if has_alpha:
            layer = strip.convert("RGBA")
            visible = visible or layer.getchannel("A").getbbox() is not None
            pixels[top:bottom] = composited(layer, WHITE)
        else:
            pixels[top:bottom] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    if not visible:
        raise UnreadableSlideError(transparent(name))
    return pixels


def _check_png(path: Path) -> None:
    """Verify the checksum of each chunk; Pillow skips those of pixels."""
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE_BYTES)
        while head := file.read(8):
            kind = head[4:]
            checksum = zlib.crc32(kind)
            for piece in _pieces(file, int.from_bytes(head[:4], "big")):
                checksum = zlib.crc32(piece, checksum)
            stated = file.read(4)
            if len(stated) < 4:
                raise ValueError("it ends within a chunk")
            if int.from_bytes(stated, "big") != checksum:
                raise ValueError(f"the checksum of a chunk {kind.decode('ascii', 'replace')!r} is wrong")
            if kind == b"IEND":
                return
    raise ValueError("its end is missing")


def _pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count > 0 and (piece := file.read(min(count, _PIECE_BYTES))):
        count -= len(piece)
        yield piece


def _check_webp(path: Path, area_px: int) -> None:
    """Raise ValueError for a run of zeros in the chunks of pixels."""
    data = path.read_bytes()
    at = 12
    while at + 8 <= len(data):
        kind, count = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in _WEBP_PIXELS and has_zero_run(data[at + 8 : at + 8 + count], area_px // 1024):
            raise ValueError("it holds a run of zeros")
        at += 8 + count + count % 2
