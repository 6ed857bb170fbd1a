"""Decode single TIFF tiles and strips within known bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from ..geometry import RGBImage, Size
from ..text import pluralize
from .tiff_metadata import TileTable

_ZERO_RUN = 32  # run of zero bytes that compressed data do not contain, except as described below

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
    """The main header of a JPEG 2000 codestream (ITU-T T.800, A.5.1 and A.6.1)."""

    size: Size  # of the image in px
    components: int  # number of components
    plain: bool  # all components have 8 bits, unsigned, and the image's size
    packets: int  # number of packets; an empty packet is a single zero byte


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


Pixels = npt.NDArray[np.uint8]  # (rows, columns, samples) uint8

Decode = Callable[[bytes, Pixels], None]
"""Decode a tile's bytes into an array of its size; ValueError or a codec's error where they are damaged."""

JPEG, _JPEG_2000_YCBCR = 7, 33003
_JPEG_2000 = (_JPEG_2000_YCBCR, 33005, 34712)  # Aperio's two kinds, and the registered one
_RGB, _YCBCR = 2, 6

MAX_SEGMENT_BYTES = 2**28  # largest tile or strip, decoded: any window that touches it needs all of it

_MAX_IMAGE_PX = 4096 * 4096
"""Largest tile of those compressions whose decoders need several times the memory of what they make."""

_NO_PREDICTOR, _HORIZONTAL = 1, 2

COMPRESSIONS = {
    1: "none", 5: "LZW", JPEG: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate",
    _JPEG_2000_YCBCR: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34925: "LZMA", 34926: "Zstandard",
    34927: "WebP", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
"""TIFF tag 259 → name, for all that is decoded here."""

_BYTE_CODECS: dict[str, Callable[..., Any]] = {
    "LZW": imagecodecs.lzw_decode,
    "deflate": imagecodecs.zlib_decode,
    "PackBits": imagecodecs.packbits_decode,
    "LZMA": imagecodecs.lzma_decode,
    "Zstandard": imagecodecs.zstd_decode,
}
_REFUSES_MORE = ("deflate", "PackBits", "Zstandard")
"""Codecs that fail where a stream is longer than the memory that they are given."""

_IMAGE_CODECS: dict[str, Callable[..., Pixels]] = {
    "WebP": imagecodecs.webp_decode,
    "JPEG XL": imagecodecs.jpegxl_decode,
}
_CHECKED = ("deflate", "LZMA")
"""These notice nearly all damage by themselves, and may hold zeros where they store data as they are."""


def check_count(table: TileTable, count: int) -> None:
    """Raise ValueError for a tile of many times its decoded size: it is damage, and no reason to allocate."""
    if count > 4 * table.tile.area_px * table.samples + 65536:
        raise ValueError(f"it claims {count} bytes")


def unreadable_kind(table: TileTable) -> str | None:
    """Return why the tiles of a page cannot be decoded here, and what to do; None if they can."""
    if table.tile.area_px * table.samples > MAX_SEGMENT_BYTES:
        return (
            f"it is stored in pieces of {table.tile} px, each of which would have to be decoded as a whole; "
            "convert it to a tiled, pyramidal TIFF"
        )
    if table.compression not in COMPRESSIONS:
        return (
            f"its tiles are compressed with {_compression_name(table.compression)}, which is not read; "
            "convert it to a tiled, pyramidal TIFF with JPEG or deflate compression"
        )
    if tile_decoder(table.planes[0] if table.planes else table) is None:
        return (
            f"its {COMPRESSIONS[table.compression]} tiles of {table.tile} px, {pluralize(table.samples, 'sample')}, "
            "are of a kind that is not read here; copy it to a local disk, or convert it to a tiled, pyramidal TIFF"
        )
    return None


def _compression_name(number: int) -> str:
    from tifffile import COMPRESSION

    try:
        return f"{COMPRESSION(number).name} (TIFF compression {number})"
    except ValueError:
        return f"TIFF compression {number}"


def tile_decoder(table: TileTable) -> Decode | None:
    """Return the decoder of the tiles or strips of a page; None for kinds that are not decoded here."""
    kind = COMPRESSIONS.get(table.compression)
    if kind is None or not table.plain or table.tile.area_px * table.samples > MAX_SEGMENT_BYTES:
        return None
    if kind in ("JPEG", "JPEG 2000"):
        if table.samples != 3 or table.photometric not in (_RGB, _YCBCR):
            return None
        if kind == "JPEG":
            return _jpeg_decoder(table)
        return _jpeg_2000_decoder(table) if table.tile.area_px <= _MAX_IMAGE_PX else None
    if table.photometric != _RGB:
        return None
    if kind in _IMAGE_CODECS:
        return _image_decoder(table, kind) if table.tile.area_px <= _MAX_IMAGE_PX else None
    return _bytes_decoder(table, kind) if table.predictor in (_NO_PREDICTOR, _HORIZONTAL) else None


def _jpeg_decoder(table: TileTable) -> Decode:
    tables = jpeg_tables(table.jpeg_tables)
    # How the samples are to be read is said in an Adobe segment, of which the last one counts. Aperio stores RGB
    # without saying so in the stream, so that "RGB" in the tag decides; otherwise what the stream says does.
    before, within = (b"", _adobe(0)) if table.photometric == _RGB else (_adobe(1), b"")

    def decode(data: bytes, out: Pixels) -> None:
        frame = jpeg_frame(data)
        if frame is None or not data.startswith(b"\xff\xd8"):
            raise ValueError("it holds no JPEG stream")
        if (frame.size.width, frame.size.height, frame.components) != (out.shape[1], out.shape[0], 3):
            raise ValueError(f"its JPEG stream has {frame.size} px of {frame.components} components")
        if has_jpeg_hole(data, frame, tables):
            raise ValueError("its JPEG stream holds a run of zeros")
        whole = b"".join((b"\xff\xd8", before, tables, data[2 : frame.start], within, data[frame.start :]))
        # Of what libjpeg calls a warning, such as data that end too early, it makes an error.
        simplejpeg.decode_jpeg(whole, "RGB", buffer=out)

    return decode


def _adobe(transform: int) -> bytes:
    """Make the APP14 segment that states a stream's components: 0 for RGB, 1 for YCbCr (T.872, 6.5.3)."""
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def _jpeg_2000_decoder(table: TileTable) -> Decode:
    ycbcr = table.compression == _JPEG_2000_YCBCR

    def decode(data: bytes, out: Pixels) -> None:
        header = codestream(data)
        if header is None:
            raise ValueError("it holds no JPEG 2000 codestream")
        if (header.size.width, header.size.height) != (out.shape[1], out.shape[0]):
            raise ValueError(f"its JPEG 2000 stream has {header.size} px")
        if header.components != 3 or not header.plain:
            raise ValueError("its JPEG 2000 stream is not 8-bit RGB")
        stream = data.rstrip(b"\0")  # padding
        if header.packets > len(data) or not stream.endswith(b"\xff\xd9"):
            raise ValueError("its JPEG 2000 stream is incomplete")
        if has_zero_run(stream, header.packets):
            raise ValueError("its JPEG 2000 stream holds a run of zeros")
        # One thread: several tiles are decoded at a time.
        imagecodecs.jpeg2k_decode(data, numthreads=1, out=out)
        if ycbcr:
            _ycbcr_to_rgb(out)

    return decode


_CHROMA = np.arange(-128, 128)
_RED_OF_CR, _BLUE_OF_CB = (np.round(factor * _CHROMA).astype(np.int16) for factor in (1.402, 1.772))
_GREEN_OF_CB_CR = np.floor(-0.34414 * _CHROMA[:, None] - 0.71414 * _CHROMA + 0.5).astype(np.int16)


def _ycbcr_to_rgb(pixels: RGBImage) -> None:
    """Convert in place, as JFIF defines it, rounded as OpenSlide does it."""
    luma, cb, cr = pixels[..., 0].astype(np.int16), pixels[..., 1], pixels[..., 2]
    differences = (_RED_OF_CR[cr], _GREEN_OF_CB_CR[cb, cr], _BLUE_OF_CB[cb])
    pixels[...] = np.stack([np.clip(luma + difference, 0, 255) for difference in differences], axis=-1)


def _image_decoder(table: TileTable, kind: str) -> Decode:
    codec = _IMAGE_CODECS[kind]
    allowed = table.tile.area_px // 1024  # of one color: 28 zeros in 512 × 512 px of WebP

    def decode(data: bytes, out: Pixels) -> None:
        if kind == "WebP" and has_zero_run(data[: 8 + int.from_bytes(data[4:8], "little")], allowed):
            raise ValueError("its WebP stream holds a run of zeros")
        codec(data, out=out)  # it refuses another size before it decodes

    return decode


def _bytes_decoder(table: TileTable, kind: str) -> Decode:
    codec = _BYTE_CODECS.get(kind)
    tile_bytes = table.tile.area_px * table.samples
    predicted = table.predictor == _HORIZONTAL and codec is not None

    def decode(data: bytes, out: Pixels) -> None:
        if codec is not None:
            if kind not in _CHECKED and has_zero_run(data.rstrip(b"\0")):  # zeros at the end may be padding
                raise ValueError(f"its {kind} stream holds a run of zeros")
            # Straight into place where that fits, since a strip may be large.
            in_place = kind in _REFUSES_MORE and out.size == tile_bytes and out.flags.c_contiguous
            # One byte more than there may be: the other codecs stop at the bound, and say nothing.
            data = codec(data, out=out.reshape(-1).data if in_place else tile_bytes + 1)
            if len(data) > tile_bytes:
                raise ValueError(f"its {kind} stream is longer than the tile")
        if len(data) < out.size:
            raise ValueError(f"it ends after {len(data):,} of {out.size:,} bytes")
        pixels = np.frombuffer(data, np.uint8, out.size).reshape(out.shape)
        if predicted:
            imagecodecs.delta_decode(pixels, axis=1, out=out)
        elif not np.shares_memory(pixels, out):
            out[...] = pixels

    return decode
