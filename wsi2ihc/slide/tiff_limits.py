"""Bounds for the tags of a TIFF, checked before a library reads them and allocates the sizes that they state."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnreadableSlideError

_TABLES = (273, 279, 288, 289, 324, 325)
"""Tags with the offsets and sizes of strips and tiles."""

_MAX_TABLE_BYTES = 2**27
"""Largest of these tags, of 16 million tiles; the largest slides have 3 million."""

_MAX_TAG_BYTES = 2**25
"""Largest other tag. Color profiles have up to 2 MB, descriptions of thousands of images 10 MB."""

_MAX_ALL_BYTES = 2**28
"""Most bytes of all tags of a file."""

_MAX_OFFSET = 2**43
_MAX_DIRECTORIES = 4096
_MAX_ENTRIES = 4096

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SUBIFDS = 330

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a TIFF or BigTIFF stores numbers: byte order, size of an entry, formats of counts and offsets."""

    order: str
    entry_bytes: int
    entry_count: str
    count: str
    offset: str


def check_tags_of(path: Path) -> None:
    """Apply `check_tags` to a file; one that is not a TIFF passes."""
    with path.open("rb") as file:

        def read_at(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(count)

        check_tags(path.name, read_at)


def check_tags(name: str, read_at: ReadAt) -> None:
    """Refuse a TIFF whose tags state larger sizes than any slide has.

    Other damage passes, and is left to the libraries.

    Raises
    ------
    UnreadableSlideError
        If a tag is too large, or there are too many directories.
    """
    layout = _layout(read_at(0, 16))
    if layout is None:
        return
    total = 0
    for code, size in _tags(name, layout, read_at):
        total += size
        if size > (_MAX_TABLE_BYTES if code in _TABLES else _MAX_TAG_BYTES) or total > _MAX_ALL_BYTES:
            raise UnreadableSlideError(
                f"{name}: its TIFF tag {code} claims {size:,} bytes, more than any slide has there, so the file is "
                "damaged; copy it again from its source"
            )


def _layout(head: bytes) -> _Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    return {42: _Layout(order, 12, "H", "I", "I"), 43: _Layout(order, 20, "Q", "Q", "Q")}.get(
        struct.unpack_from(order + "H", head, 2)[0]
    )


def _tags(name: str, layout: _Layout, read_at: ReadAt) -> Iterator[tuple[int, int]]:
    """Iterate over the number and size of each tag, in all directories that can be reached."""
    offset_bytes = struct.calcsize(layout.offset)
    waiting = [_number(layout, read_at(4 if offset_bytes == 4 else 8, offset_bytes))]
    seen: set[int] = set()
    while waiting:
        start = waiting.pop()
        if start in seen or start < 8:
            continue
        seen.add(start)
        if len(seen) > _MAX_DIRECTORIES:
            raise UnreadableSlideError(
                f"{name}: it has more than {_MAX_DIRECTORIES:,} TIFF directories, so it is damaged or not a slide; "
                "copy it again from its source"
            )
        size = struct.calcsize(layout.entry_count)
        head = read_at(start, size)
        count = struct.unpack(layout.order + layout.entry_count, head)[0] if len(head) == size else 0
        if count > _MAX_ENTRIES:
            continue
        entries = read_at(start + size, count * layout.entry_bytes + offset_bytes)
        for at in range(0, min(count * layout.entry_bytes, len(entries) - layout.entry_bytes + 1), layout.entry_bytes):
            code, kind, items = struct.unpack_from(f"{layout.order}HH{layout.count}", entries, at)
            yield code, items * _TYPE_BYTES.get(kind, 1)
            if code == _SUBIFDS:
                field = entries[at + layout.entry_bytes - offset_bytes : at + layout.entry_bytes]
                wanted = min(items, _MAX_DIRECTORIES + 1) * offset_bytes
                stored = field if items == 1 else read_at(_number(layout, field), wanted)
                waiting += _numbers(layout, stored, offset_bytes)
        waiting.append(_number(layout, entries[count * layout.entry_bytes :]))


def _numbers(layout: _Layout, data: bytes, size: int) -> list[int]:
    return [_number(layout, data[at : at + size]) for at in range(0, len(data) - size + 1, size)]


def _number(layout: _Layout, data: bytes) -> int:
    """Parse an offset; 0 at the end of the file, or if it is implausibly large."""
    if len(data) != struct.calcsize(layout.offset):
        return 0
    offset = int(struct.unpack(layout.order + layout.offset, data)[0])
    return offset if offset <= _MAX_OFFSET else 0
