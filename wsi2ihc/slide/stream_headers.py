"""Headers of compressed tiles, read before anything is decoded: sizes, and signs of damage.

A decoder may allocate gigabytes for a damaged header, and JPEG 2000 data have no checksum. Interrupted copies leave
runs of zeros, which encoders do not write; the longest run in an intact stream follows from its tables (JPEG) or from
the number of its packets (JPEG 2000).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..geometry import Size

_ZERO_RUN = 32
"""Run of zero bytes that compressed data do not contain, except as described below."""

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _DHT = 0xDA, 0xC4
_SOT, _SOD, _COD = 0x90, 0x93, 0x52
_MAX_DECOMPOSITIONS = 32
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """The frame header of a JPEG stream (ITU-T T.81, B.2.2): offset, size of the image, number of components."""

    start: int
    size: Size
    components: int


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Find the frame header in the first bytes of a JPEG stream; None if there is none before the scan."""
    for marker, start, _ in _segments(data):
        if marker in _FRAMES and start + 10 <= len(data):
            height, width = (int.from_bytes(data[start + at : start + at + 2], "big") for at in (5, 7))
            return JpegFrame(start, Size(width, height), data[start + 9])
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Iterate over the marker segments before the scan: marker, start, end."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SOS:
            return
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at, end
        at = end


def jpeg_tables(data: bytes | None) -> bytes:
    """Extract the segments of a stream of tables (TIFF tag 347), to be inserted before those of a tile."""
    data = data or b""
    return data[2:-2] if data.startswith(_SOI) and data.endswith(_EOI) else data[2:]


def has_jpeg_hole(data: bytes, frame: JpegFrame, tables: bytes) -> bool:
    """Whether a JPEG stream holds a run of zeros that cannot be image data; ``tables`` come before its own segments.

    In Huffman codes, a run of zero bits repeats the shortest code. Data may contain that only if this code means "no
    difference" (DC) and "end of block" (AC), as in a tile of one color.
    """
    found = data.find(bytes(_ZERO_RUN), frame.start)
    if found < 0 or found > data.find(_EOI, frame.start) > 0:  # anything may follow the end
        return False
    return any(symbol != 0 for symbol in _first_symbols(_SOI + tables + data[2:]))


def _first_symbols(data: bytes) -> Iterator[int]:
    """Iterate over the symbols of the shortest code of each Huffman table (T.81, B.2.4.2)."""
    for marker, start, end in _segments(data):
        at = start + 4
        while marker == _DHT and at + 17 < end:
            yield data[at + 17]
            at += 17 + sum(data[at + 1 : at + 17])


@dataclass(frozen=True, slots=True)
class Codestream:
    """The main header of a JPEG 2000 codestream (ITU-T T.800, A.5.1 and A.6.1).

    size:        of the image in px
    components:  number of components
    plain:       all components have 8 bits, unsigned, and the image's size
    packets:     number of packets; an empty packet is a single zero byte
    """

    size: Size
    components: int
    plain: bool
    packets: int


def codestream(data: bytes) -> Codestream | None:
    """Parse the main header in the first bytes of a bare JPEG 2000 codestream; None if it has none."""
    if len(data) < 42 or data[:4] != b"\xff\x4f\xff\x51":
        return None
    fields = (int.from_bytes(data[at : at + 4], "big") for at in range(8, 32, 4))
    right, bottom, left, top, tile_width, tile_height = fields
    size = Size(right - left, bottom - top)
    components = int.from_bytes(data[40:42], "big")
    if min(size.width, size.height, tile_width, tile_height) < 1 or (left, top) != (0, 0):
        return None
    tiles = -(-right // tile_width) * -(-bottom // tile_height)
    plain = components <= 4 and data[42 : 42 + 3 * components] == b"\x07\x01\x01" * components
    inner = Size(min(tile_width, size.width), min(tile_height, size.height))
    packets = _packets(data, inner)
    return Codestream(size, components, plain, tiles * components * packets) if packets else None


def _packets(data: bytes, tile: Size) -> int:
    """Count the packets of one component of one tile (T.800, A.6.1 and B.6); 0 if the header does not state it."""
    at = 2
    while at + 14 <= len(data) and data[at] == 0xFF and data[at + 1] not in (_SOT, _SOD):
        if data[at + 1] == _COD:
            layers, levels = int.from_bytes(data[at + 6 : at + 8], "big"), data[at + 9]
            own_precincts = data[at + 4] & 1
            exponents = data[at + 14 : at + 15 + levels] if own_precincts else b"\xff" * (levels + 1)
            if levels > _MAX_DECOMPOSITIONS or len(exponents) <= levels:
                return 0
            return layers * sum(
                _precincts(tile.width, levels - resolution, pair & 15)
                * _precincts(tile.height, levels - resolution, pair >> 4)
                for resolution, pair in enumerate(exponents)
            )
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _precincts(side: int, reduced: int, exponent: int) -> int:
    """Count the precincts along one side of a tile after ``reduced`` halvings."""
    return math.ceil(math.ceil(side / (1 << reduced)) / (1 << exponent))


def has_zero_run(data: bytes, allowed: int = 0) -> bool:
    """Whether compressed data have a run of zeros longer than encoders write; up to ``allowed`` more are intact."""
    return bytes(_ZERO_RUN + allowed) in data
