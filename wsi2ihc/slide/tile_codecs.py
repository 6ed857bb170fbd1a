"""Decoding single tiles: JPEG, and the JPEG 2000 of Aperio's RGB kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import imagecodecs
import numpy as np

from ..arrays import RGBImage
from ..geometry import Size
from .tiff_facts import TileTable

Decode = Callable[[bytes, RGBImage], None]
"""Decode one tile's bytes into an array of the tile's size; ValueError or a codec's error where damaged."""

_JPEG = 7
_JPEG_2000 = (33005, 34712)  # Aperio's RGB kind, and the registered one; Aperio's YCbCr kind (33003) is rare
_RGB, _YCBCR = 2, 6

_MAX_TILE_PX = 4096 * 4096

_MARKERS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN_THEN_END = [b"\xff\xda", b"\xff\xd9"]
_END = b"\xff\xd9"


def check_count(table: TileTable, count: int) -> None:
    """Raise ValueError for a tile of many times its decoded size: it is damage, and no reason to allocate."""
    if count > 4 * table.tile.area_px * table.samples + 65536:
        raise ValueError(f"it claims {count} bytes")


def tile_decoder(table: TileTable) -> Decode | None:
    """How to decode the tiles of a page; None for kinds that are left to the slide's library."""
    if not table.tiled or table.samples != 3 or table.tile.area_px > _MAX_TILE_PX or not hasattr(os, "pread"):
        return None
    if table.compression == _JPEG and table.photometric in (_RGB, _YCBCR):
        return _jpeg_decoder(table)
    if table.compression in _JPEG_2000 and table.photometric in (_RGB, _YCBCR):
        return _jpeg_2000_decoder(table)
    return None


def _jpeg_decoder(table: TileTable) -> Decode:
    tables = table.jpeg_tables
    colour = "RGB" if table.photometric == _RGB else "YCBCR"  # Aperio stores RGB without saying so in the stream
    jpeg8_decode = imagecodecs.jpeg8_decode

    def decode(data: bytes, out: RGBImage) -> None:
        # The codec paints the missing rest of a truncated stream grey and says nothing, so look for the stream's end.
        # In a whole stream the last markers are start of scan and end of image (ITU-T T.81, annex B).
        if _MARKERS.findall(data)[-2:] != _SCAN_THEN_END:
            raise ValueError("its JPEG stream is incomplete")
        # With ``out`` the codec refuses a stream of another size before it allocates anything for it.
        jpeg8_decode(data, tables=tables, colorspace=colour, outcolorspace="RGB", out=out)

    return decode


def _jpeg_2000_decoder(table: TileTable) -> Decode:
    shape = (table.tile.height, table.tile.width, 3)

    def decode(data: bytes, out: RGBImage) -> None:
        if _codestream_size(data) != (shape[1], shape[0]):
            raise ValueError("its JPEG 2000 stream has another size than the tile")
        if not data.rstrip(b"\0").endswith(_END):
            raise ValueError("its JPEG 2000 stream is incomplete")
        pixels = imagecodecs.jpeg2k_decode(data)
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise ValueError("its JPEG 2000 stream is not 8-bit RGB")
        out[...] = pixels

    return decode


def claimed_size(table: TileTable, head: bytes) -> Size | None:
    """The size that a JPEG or JPEG 2000 stream claims to have, from its first bytes; None where they do not say."""
    if table.compression == _JPEG:
        width, height = _frame_size(head)
    elif table.compression in _JPEG_2000:
        width, height = _codestream_size(head)
    else:
        return None
    return Size(width, height) if width > 0 and height > 0 else None


def _frame_size(data: bytes) -> tuple[int, int]:
    """Width and height from a JPEG stream's frame header (ITU-T T.81, B.2.2), or zeros."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _codestream_size(data: bytes) -> tuple[int, int]:
    """Width and height from a bare codestream's SIZ segment, which comes first (ITU-T T.800, A.5.1), or zeros."""
    if len(data) < 24 or data[:4] != b"\xff\x4f\xff\x51":
        return 0, 0
    right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
    return right - left, bottom - top
