"""The first directory of a TIFF file, read within bounds before a decoder sees the file."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

MOST_ENTRIES = 500
"""Most entries of a directory; those of patches have about twenty."""

MOST_METADATA_BYTES = 64 << 20
"""Most bytes of all values of a directory. Entries may share bytes, so the size of the file is not a bound."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 259, 274, 322, 323
_TAGS = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT})

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type (TIFF 6.0, section 2; 16 to 18 are BigTIFF's)."""

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
    order, is_big = _begin(file)
    count = _number(file, order, "Q" if is_big else "H")
    if not 0 < count <= MOST_ENTRIES:
        raise ValueError(f"its directory has {count} entries")
    entries = file.read(count * (20 if is_big else 12))
    following = _number(file, order, "Q" if is_big else "I")
    values, metadata_bytes = _values(file, entries, order, is_big)
    if metadata_bytes > MOST_METADATA_BYTES:
        raise ValueError(f"it has {metadata_bytes:,} bytes of metadata")
    try:
        width, height = values[_WIDTH], values[_HEIGHT]
    except KeyError as error:
        raise ValueError("it does not state its size") from error
    tile = values.get(_TILE_WIDTH, width), values.get(_TILE_HEIGHT, height)
    decoded_px = max(width * height, tile[0] * tile[1])
    is_known = values.get(_COMPRESSION, 1) in _COMPRESSIONS
    is_upright = values.get(_ORIENTATION, 1) in (0, 1)
    return TiffHeader(width, height, decoded_px, values.get(_BITS, 1), is_upright, is_known, bool(following))


def _begin(file: BinaryIO) -> tuple[str, bool]:
    """Seek to the first directory; return the byte order, and whether this is BigTIFF."""
    file.seek(0)
    head = file.read(4)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    magic = struct.unpack(f"{order}H", head[2:])[0] if order and len(head) == 4 else 0
    if magic not in (42, 43):
        raise ValueError("it is not a TIFF file")
    if magic == 43 and file.read(4) != struct.pack(f"{order}HH", 8, 0):
        raise ValueError("its BigTIFF header is damaged")
    file.seek(_number(file, order, "Q" if magic == 43 else "I"))
    return order, magic == 43


def _number(file: BinaryIO, order: str, kind: str) -> int:
    content = file.read(struct.calcsize(order + kind))
    try:
        return int(struct.unpack(order + kind, content)[0])
    except struct.error as error:
        raise ValueError("it is truncated") from error


def _values(file: BinaryIO, entries: bytes, order: str, is_big: bool) -> tuple[Mapping[int, int], int]:
    """The largest value of each tag in `_TAGS`, and the total bytes of all values."""
    layout, inline = (f"{order}HHQ", 8) if is_big else (f"{order}HHI", 4)
    step = struct.calcsize(layout) + inline
    values: dict[int, int] = {}
    total = 0
    for at in range(0, len(entries) - step + 1, step):
        tag, kind, count = struct.unpack_from(layout, entries, at)
        size = _SIZES.get(kind, 1) * count
        total += size
        if tag not in _TAGS:
            continue
        if kind not in _INTEGERS or not 0 < count <= 16 or tag in values:
            raise ValueError(f"its tag {tag} is damaged")
        content = entries[at + step - inline : at + step]
        if size > inline:
            file.seek(struct.unpack(f"{order}{'Q' if is_big else 'I'}", content)[0])
            content = file.read(size)
        try:
            values[tag] = max(struct.unpack(f"{order}{count}{_INTEGERS[kind]}", content[:size]))
        except struct.error as error:
            raise ValueError("it is truncated") from error
    return values, total
