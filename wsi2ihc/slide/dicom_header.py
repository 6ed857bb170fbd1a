"""Find elements in the header of a DICOM file.

Files with explicit little-endian encoding are parsed, which is the encoding of all compressed files.
"""

from __future__ import annotations

import mmap
from collections.abc import Set
from typing import TypeAlias

Tag: TypeAlias = tuple[int, int]
Content: TypeAlias = bytes | mmap.mmap

TRANSFER_SYNTAX = (0x0002, 0x0010)
SOP_CLASS_UID = (0x0008, 0x0016)
SERIES_UID = (0x0020, 0x000E)
PIXELS = (0x7FE0, 0x0010)

ITEM = (0xFFFE, 0xE000)

_PREAMBLE_BYTES = 128
_ITEM_GROUP, _SEQUENCE_END = 0xFFFE, (0xFFFE, 0xE0DD)
_FRAMES_OF_SLIDE = (0x5200, 0x9230)
"""Sequence of what is stated of each frame, which may have 100 MB."""

_STARTS_OF_PIXELS = (b"\xe0\x7f\x01\x00OV\x00\x00", b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0")
"""What follows that sequence: the extended offset table, or the frames and the tag of their first item."""

_LONGEST_HEADER_BYTES = 256 << 20

_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length has 4 bytes, after 2 that are reserved (PS3.5, 7.1.2)."""

_UNDEFINED = 0xFFFFFFFF


def find_elements(content: Content, wanted: Set[Tag]) -> dict[Tag, slice]:
    """Find where the values of elements are in a file or the start of one; those inside sequences are left out.

    The search ends with the last one, or at the pixels, whose slice has no end if their length is not stated.
    """
    found: dict[Tag, slice] = {}
    if content[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] != b"DICM":
        return found
    at = _PREAMBLE_BYTES + 4
    depth = 0  # of sequences of undefined length
    implicit_from = 0  # depth from which elements have no value representation (PS3.5, 6.2.2); 0 for none
    while at + 8 <= len(content) and len(found) < len(wanted):
        tag = _number(content, at, 2), _number(content, at + 2, 2)
        kind = content[at + 4 : at + 6]
        if tag[0] == _ITEM_GROUP or implicit_from:
            start, length = at + 8, _number(content, at + 4, 4)
        elif kind in _LONG_VRS:
            start, length = at + 12, _number(content, at + 8, 4)
        else:
            start, length = at + 8, _number(content, at + 6, 2)
        if tag[0] == _ITEM_GROUP:
            at = start + (0 if length == _UNDEFINED else length)
            if tag == _SEQUENCE_END:
                depth -= 1
                implicit_from = implicit_from if depth >= implicit_from else 0
            continue
        if depth <= 0 and tag in wanted:
            found[tag] = slice(start, None if length == _UNDEFINED else start + length)
        if depth <= 0 and tag == PIXELS:  # libdicom does not insist on ascending tags
            break
        if length != _UNDEFINED:
            at = start + length
        elif depth <= 0 and tag == _FRAMES_OF_SLIDE:
            ends = [content.find(mark, start, start + _LONGEST_HEADER_BYTES) for mark in _STARTS_OF_PIXELS]
            at = min((end for end in ends if end >= 0), default=len(content))
        else:
            depth, at = max(depth, 0) + 1, start
            if kind == b"UN" and not implicit_from:
                implicit_from = depth
    return found


def text_of(content: Content, place: slice | None) -> str:
    """Return a value without its padding; "" where there is none."""
    return "" if place is None else content[place].rstrip(b"\0 ").decode("ascii", "replace")


def _number(content: Content, start: int, count: int) -> int:
    return int.from_bytes(content[start : start + count], "little")
