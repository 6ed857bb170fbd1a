"""Check the frames of DICOM slides before OpenSlide reads them.

libdicom takes the size of a frame from the distance to the next one. Where the offsets of a damaged table do not
increase, that size is negative, and the process crashes with a segmentation fault. And OpenJPEG silently decodes JPEG
2000 frames with holes, as an interrupted copy leaves them, into wrong pixels.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from ..errors import UnreadableSlideError

_PREAMBLE_BYTES = 128
_SERIES = b"\x20\x00\x0e\x00UI"
_SYNTAX = b"\x02\x00\x10\x00UI"
_ENCAPSULATED = (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
_FRAMES = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0"
"""Header of pixel data of undefined length, and tag of its first item, the offset table."""

_END_OF_FRAMES = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"

_EXTENDED = b"\xe0\x7f\x01\x00OV\x00\x00"
"""Header of the extended offset table, with offsets of 64 bits."""

_JPEG_2000 = (b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.91")
_HOLE_BYTES = 512
"""Run of zeros that JPEG 2000 encoders do not write; the smallest block that a file system loses."""

_ITEM_BYTES = 8
"""Tag and length before each frame."""

_LONGEST_HEADER_BYTES = 256 << 20
"""A slide of 500,000 frames that states the position of each has about 100 MB before its pixels."""


def check_frames(file: Path) -> None:
    """Check a DICOM file, and the files beside it that belong to its series. Other files pass.

    Raises
    ------
    UnreadableSlideError
        If the offsets of a table do not increase, or JPEG 2000 frames have holes.
    """
    series = _checked(file, None)
    if not series:
        return
    for other in sorted(file.parent.iterdir()):
        if other != file and other.is_file():
            _checked(other, series)


def _checked(file: Path, only: bytes | None) -> bytes:
    """Check a file and return its series; b"" if it is not DICOM, or not of the series ``only``."""
    try:
        with file.open("rb") as opened:
            start = opened.read(_PREAMBLE_BYTES + 4)
            if start[_PREAMBLE_BYTES:] != b"DICM":
                return b""
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                series = _text(content, _SERIES)
                if only is not None and series != only:
                    return b""
                syntax = _text(content, _SYNTAX)
                if syntax.startswith(_ENCAPSULATED):
                    _check_table(file.name, content)
                if syntax in _JPEG_2000:
                    _check_holes(file.name, content)
                return series
    except UnreadableSlideError:
        raise
    except (OSError, ValueError):  # OpenSlide reports what is wrong
        return b""


def _check_table(name: str, content: mmap.mmap) -> None:
    place = content.find(_FRAMES, 0, _LONGEST_HEADER_BYTES)
    if place < 0:
        return
    basic = np.frombuffer(_long_value(content, place + len(_FRAMES), 4), "<u4").astype(np.int64)
    extended = content.find(_EXTENDED, 0, place)
    wide = b"" if extended < 0 else _long_value(content, extended + len(_EXTENDED), 8)
    for offsets in (basic, np.frombuffer(wide, "<i8")):
        if len(offsets) and (offsets[0] != 0 or (np.diff(offsets) < _ITEM_BYTES).any()):
            raise UnreadableSlideError(
                f"{name}: it is damaged: the offsets of its frames do not increase; copy it again from its source"
            )


def _check_holes(name: str, content: mmap.mmap) -> None:
    """Search the frames for runs of zeros; this reads the whole file, at the speed of the disk."""
    place = content.find(_FRAMES, 0, _LONGEST_HEADER_BYTES)
    if place < 0:
        return
    start = place + len(_FRAMES)
    first = start + 4 + int.from_bytes(content[start : start + 4], "little")
    end = content.rfind(_END_OF_FRAMES)  # padding may follow
    if content.find(bytes(_HOLE_BYTES), first, end if end > first else len(content)) >= 0:
        raise UnreadableSlideError(
            f"{name}: it is damaged: its JPEG 2000 frames hold a run of zeros, as an interrupted copy leaves them; "
            "copy it again from its source"
        )


def _long_value(content: mmap.mmap, place: int, unit: int) -> bytes:
    """Value that follows its length of 32 bits, cut to whole units."""
    size = int.from_bytes(content[place : place + 4], "little")
    value = content[place + 4 : place + 4 + size]
    return value[: len(value) // unit * unit]


def _text(content: mmap.mmap, element: bytes) -> bytes:
    """Value of the first element with this tag and type; b"" if the first megabyte has none."""
    place = content.find(element, 0, 1 << 20)
    if place < 0:
        return b""
    start = place + len(element) + 2
    return content[start : start + int.from_bytes(content[start - 2 : start], "little")].rstrip(b"\0 ")
