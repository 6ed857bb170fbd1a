"""Find damage in plain images that Pillow ignores: checksums of PNG, and runs of zeros in JPEG and WebP."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .stream_headers import has_jpeg_hole, has_zero_run, jpeg_frame

_PIECE_BYTES = 2**22
_PNG_SIGNATURE_BYTES = 8
_WEBP_PIXELS = (b"VP8 ", b"VP8L")


def check_png(path: Path) -> None:
    """Verify the checksum of each chunk; Pillow skips those of pixels.

    Raises
    ------
    ValueError
        If one is wrong, or the file ends within a chunk.
    """
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


def check_jpeg(data: bytes) -> None:
    """Raise ValueError for a run of zeros in the scan."""
    frame = jpeg_frame(data)
    if frame is not None and has_jpeg_hole(data, frame, b""):
        raise ValueError("it holds a run of zeros")


def check_webp(path: Path, area_px: int) -> None:
    """Raise ValueError for a run of zeros in the chunks of pixels."""
    data = path.read_bytes()
    at = 12
    while at + 8 <= len(data):
        kind, count = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in _WEBP_PIXELS and has_zero_run(data[at + 8 : at + 8 + count], area_px // 1024):
            raise ValueError("it holds a run of zeros")
        at += 8 + count + count % 2
