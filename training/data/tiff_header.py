"""The first directory of a TIFF file, read within bounds before a decoder sees the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from wsi2ihc.slide.tiff_directory import ReadAt, TiffDirectory, TiffLayout, read_directory, read_layout

MOST_ENTRIES = 500
"""Most entries of a directory; those of patches have about twenty."""

MOST_METADATA_BYTES = 64 << 20
"""Most bytes of all values of a directory. Entries may share bytes, so the size of the file is not a bound."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 259, 274, 322, 323
_TAGS = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT})

_FARTHEST_OFFSET = 1 << 43
"""File systems refuse to seek much farther."""

_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

_COMPRESSIONS = frozenset({1, 5, 7, 8, 32773, 32946})
"""None, LZW, JPEG, Deflate, PackBits, and the older code of Deflate."""


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """Facts that decide whether a file is decoded.

    width, height:  of the first image, px
    decoded_px:     pixels that are decoded at once: a tile, or the image
    bits:           most bits per channel
    is_upright:     whether rows run from top to bottom, and columns from left to right
    is_known:       whether its compression is supported
    has_more:       whether further images follow
    """

    width: int
    height: int
    decoded_px: int
    bits: int
    is_upright: bool
    is_known: bool
    has_more: bool


def read_tiff_header(file: BinaryIO) -> TiffHeader:
    """Read the first directory.

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
    directory = read_directory(layout, read_at, first, MOST_ENTRIES)
    if not 0 < directory.stated <= MOST_ENTRIES:
        raise ValueError(f"its directory has {directory.stated} entries")
    if directory.following is None:
        raise ValueError("it is truncated")
    metadata_bytes = sum(entry.size for entry in directory.entries)
    if metadata_bytes > MOST_METADATA_BYTES:
        raise ValueError(f"it has {metadata_bytes:,} bytes of metadata")
    values = _values(layout, directory, read_at)
    try:
        width, height = values[_WIDTH], values[_HEIGHT]
    except KeyError as error:
        raise ValueError("it does not state its size") from error
    tile = values.get(_TILE_WIDTH, width), values.get(_TILE_HEIGHT, height)
    decoded_px = max(width * height, tile[0] * tile[1])
    is_known = values.get(_COMPRESSION, 1) in _COMPRESSIONS
    is_upright = values.get(_ORIENTATION, 1) in (0, 1)
    return TiffHeader(width, height, decoded_px, values.get(_BITS, 1), is_upright, is_known, bool(directory.following))


def _values(layout: TiffLayout, directory: TiffDirectory, read_at: ReadAt) -> dict[int, int]:
    """Return the largest value of each tag in `_TAGS`."""
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
