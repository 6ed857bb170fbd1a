"""Bounds for the tags of a TIFF, checked before a library reads them and allocates the sizes that they state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import UnreadableSlideError
from .tiff_directory import ReadAt, TiffEntry, TiffLayout, read_directory, read_layout

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
_MAX_ENTRIES, _MAX_ALL_ENTRIES = 4096, 2**19
"""Of a directory, and of all that are read; a directory has some twenty."""

_SUBIFDS = 330


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
    found = read_layout(read_at)
    if found is None:
        return
    total = 0
    for entry in _entries(name, *found, read_at):
        total += entry.size
        largest = _MAX_TABLE_BYTES if entry.code in _TABLES else _MAX_TAG_BYTES
        if entry.size > largest or total > _MAX_ALL_BYTES:
            raise UnreadableSlideError(
                f"{name}: its TIFF tag {entry.code} claims {entry.size:,} bytes, more than any slide has there, so the "
                "file is damaged; copy it again from its source"
            )


def _entries(name: str, layout: TiffLayout, first: int, read_at: ReadAt) -> Iterator[TiffEntry]:
    """Iterate over the entries of all directories that can be reached."""
    waiting: list[int | None] = [first]
    seen: set[int] = set()
    read = 0
    while waiting:
        start = waiting.pop()
        if start is None or start in seen or not 8 <= start <= _MAX_OFFSET:
            continue
        seen.add(start)
        if len(seen) > _MAX_DIRECTORIES or read > _MAX_ALL_ENTRIES:
            what = "tags" if read > _MAX_ALL_ENTRIES else "directories"
            raise UnreadableSlideError(
                f"{name}: it has more TIFF {what} than any slide, so it is damaged; copy it again from its source"
            )
        directory = read_directory(layout, read_at, start, _MAX_ENTRIES)
        read += len(directory.entries)
        for entry in directory.entries:
            yield entry
            if entry.code == _SUBIFDS:
                waiting += _offsets(layout, entry, read_at)
        waiting.append(directory.following)


def _offsets(layout: TiffLayout, entry: TiffEntry, read_at: ReadAt) -> list[int | None]:
    """Return the offsets that an entry holds, as far as they lie in the file."""
    size, at = layout.offset_bytes, layout.offset(entry.field)
    stored = entry.field
    if entry.items != 1:
        wanted = min(entry.items, _MAX_DIRECTORIES + 1) * size
        stored = read_at(at, wanted) if at is not None and at <= _MAX_OFFSET else b""
    return [layout.offset(stored[start : start + size]) for start in range(0, len(stored) - size + 1, size)]
