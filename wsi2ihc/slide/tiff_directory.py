"""Parse directories of TIFF and BigTIFF files, without the values of their tags."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Read so many bytes from an offset, fewer at the end of the file."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type (TIFF 6.0, section 2; 16 to 18 are BigTIFF's)."""


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """How a file stores numbers.

    order:         byte order, as `struct` names it
    is_big:        whether it is a BigTIFF
    offset_bytes:  size of an offset, and of the field of an entry that holds the value or its offset
    """

    order: str
    is_big: bool

    @property
    def offset_bytes(self) -> int:
        return 8 if self.is_big else 4

    def offset(self, data: bytes) -> int | None:
        """Return the offset at the start of some bytes; None if they are too few."""
        size = self.offset_bytes
        return int(struct.unpack_from(self.order + "IQ"[self.is_big], data)[0]) if len(data) >= size else None


class TiffEntry(NamedTuple):
    """A tag: its number, the type and number of its values, and the field that holds them or their offset."""

    code: int
    kind: int
    items: int
    field: bytes

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self.items * _TYPE_BYTES.get(self.kind, 1)


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """A directory.

    stated:     how many entries it states
    entries:    those that were read: none if there are too many
    following:  offset of the next directory, 0 after the last; None if the file ends before
    """

    stated: int
    entries: tuple[TiffEntry, ...]
    following: int | None


def read_layout(read_at: ReadAt) -> tuple[TiffLayout, int] | None:
    """Return the layout of a file and the offset of its first directory; None if it is not a TIFF file."""
    head = read_at(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    (magic,) = struct.unpack_from(order + "H", head, 2)
    is_big = magic == 43
    if magic != 42 and not (is_big and head[4:8] == struct.pack(order + "HH", 8, 0)):
        return None
    layout = TiffLayout(order, is_big)
    first = layout.offset(head[8 if is_big else 4 :])
    return None if first is None else (layout, first)


def read_directory(layout: TiffLayout, read_at: ReadAt, start: int, most_entries: int) -> TiffDirectory:
    """Read the directory at an offset."""
    count_format = layout.order + "HQ"[layout.is_big]
    entry_format = layout.order + ("HHQ8s" if layout.is_big else "HHI4s")
    count_bytes, step = struct.calcsize(count_format), struct.calcsize(entry_format)
    head = read_at(start, count_bytes)
    count = int(struct.unpack(count_format, head)[0]) if len(head) == count_bytes else 0
    if count > most_entries:
        return TiffDirectory(count, (), None)
    data = read_at(start + count_bytes, count * step + layout.offset_bytes)
    whole = min(count, len(data) // step)
    entries = tuple(map(TiffEntry._make, struct.iter_unpack(entry_format, data[: whole * step])))
    return TiffDirectory(count, entries, layout.offset(data[count * step :]))
