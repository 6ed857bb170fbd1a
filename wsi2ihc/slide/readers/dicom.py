"""DICOM slides: folders of files, headers, and checks of frames."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import UnreadableSlideError
from ...geometry import Region, Size

Tag: TypeAlias = tuple[int, int]
Content: TypeAlias = bytes | mmap.mmap

TRANSFER_SYNTAX = (0x0002, 0x0010)
SOP_CLASS_UID = (0x0008, 0x0016)
SERIES_UID = (0x0020, 0x000E)
PIXELS = (0x7FE0, 0x0010)

_PREAMBLE_BYTES = 128
_ITEM_GROUP, _SEQUENCE_END = 0xFFFE, (0xFFFE, 0xE0DD)
_FRAMES_OF_SLIDE = (0x5200, 0x9230)  # sequence of what is stated of each frame, which may have 100 MB

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


MAX_FILES = 2000  # most files of a folder that are read; a slide has some dozens

_HEAD_BYTES = 2**18
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def dicom_slides(files: Iterable[Path]) -> list[Path]:
    """Return the largest file of each whole-slide series, sorted by path; other files are ignored."""
    series: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file in sorted(files):
        with contextlib.suppress(OSError):
            uid = series_uid(file)
            if uid is not None:
                series[file.parent, uid].append(file)
    return sorted(max(group, key=lambda file: (file.stat().st_size, file.name)) for group in series.values())


def dicom_files(folder: Path) -> list[Path]:
    """List the DICOM files of a folder, by `is_dicom`."""
    return list(itertools.islice(filter(is_dicom, folder.iterdir()), MAX_FILES))


def is_dicom(file: Path) -> bool:
    """Whether a file that is not hidden has the suffix ``.dcm``, or no suffix and the header of a whole-slide image.

    A number is not a suffix: exported files are often named by their UID, such as ``1.2.840.113619``.
    """
    suffix = file.suffix.lower()
    if file.name.startswith(".") or not (suffix in (".dcm", "") or suffix[1:].isdecimal()):
        return False
    try:
        return file.is_file() and (suffix == ".dcm" or series_uid(file) is not None)
    except OSError:  # opening it reports why
        return suffix == ".dcm"


def series_uid(file: Path) -> str | None:
    """Read the Series Instance UID of a whole-slide image; None for any other file."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    found = find_elements(head, {SERIES_UID, SOP_CLASS_UID})
    if text_of(head, found.get(SOP_CLASS_UID)) != _WHOLE_SLIDE:
        return None
    return text_of(head, found.get(SERIES_UID)) or None


_ENCAPSULATED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_FRAME_COUNT, _ORGANIZATION, _EXTENDED_OFFSETS = (0x0028, 0x0008), (0x0020, 0x9311), (0x7FE0, 0x0001)
_TILE_HEIGHT, _TILE_WIDTH, _WIDTH, _HEIGHT = (0x0028, 0x0010), (0x0028, 0x0011), (0x0048, 0x0006), (0x0048, 0x0007)
_SIDES = (_TILE_HEIGHT, _TILE_WIDTH, _WIDTH, _HEIGHT)
_WANTED = frozenset({TRANSFER_SYNTAX, SERIES_UID, PIXELS, _FRAME_COUNT, _ORGANIZATION, _EXTENDED_OFFSETS, *_SIDES})

_ITEM, _END_OF_FRAMES = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_ITEM_BYTES = 8  # tag and length before each frame
_HOLE_BYTES = 512  # run of zeros that JPEG 2000 encoders do not write; the smallest block that a file system loses

HOLE = "its JPEG 2000 frame holds a run of zeros, as an interrupted copy leaves it"


class Jpeg2000Frames:
    """The JPEG 2000 frames of a DICOM file, each of which is checked once. Thread-safe.

    ``size`` and ``tile`` are those of the level and of a frame, None if not stated; ``in_order`` is whether the frames
    are stated to be the tiles of the level, row by row; ``count`` is the stated number of frames. ``table`` is the
    position of the offset table, the item before the frames; ``offsets`` are those of the frames from its end, empty if
    not stated.
    """

    def __init__(
        self, file: Path, size: Size | None, tile: Size | None, in_order: bool, count: int, table: int,
        offsets: npt.NDArray[np.int64],
    ) -> None:  # fmt: skip
        self.size = size
        self._file, self._table, self._offsets = file, table, offsets
        self._tile, self._across, self._count = tile or Size(1, 1), 1, 0
        if size is not None and tile is not None and in_order:
            self._across = -(-size.width // tile.width)
            self._count = count if count == self._across * -(-size.height // tile.height) else 0
        self._lock = threading.Lock()
        self._starts: npt.NDArray[np.int64] | None = None
        self._intact = np.zeros(0, np.bool_)

    def hole(self, region: Region) -> Region | None:
        """Return a tile with a hole in a region of the level, both in px; the region if it is not known in which tile.

        Frames that were checked before are not read again. Raises `OSError` if the file cannot be read.
        """
        with self._lock:
            if self._starts is None:
                with _mapped(self._file) as content:
                    self._starts = self._find_frames(content)
                self._intact = np.zeros(len(self._starts) - 1, np.bool_)
        starts, tile = self._starts, self._tile
        is_tiled = len(self._intact) == self._count
        numbers = [0]
        if is_tiled:
            rows = range(region.y // tile.height, -(-region.bottom // tile.height))
            columns = range(region.x // tile.width, -(-region.right // tile.width))
            numbers = [row * self._across + column for row in rows for column in columns]
        unknown = [number for number in numbers if not self._intact[number]]
        if not unknown:
            return None
        with _mapped(self._file) as content:
            for number in unknown:
                # A run that begins or ends in a neighbor counts; padding may follow the last frame.
                first = max(int(starts[number]) - _HOLE_BYTES + 1, int(starts[0]))
                last = min(int(starts[number + 1]) + _HOLE_BYTES - 1, int(starts[-1]))
                if content.find(bytes(_HOLE_BYTES), first, last) < 0:
                    self._intact[number] = True
                elif is_tiled:
                    row, column = divmod(number, self._across)
                    return Region(column * tile.width, row * tile.height, tile.width, tile.height)
                else:
                    return region
        return None

    def _find_frames(self, content: mmap.mmap) -> npt.NDArray[np.int64]:
        """Return where each frame starts, and where the last one ends; all as one if that is not known."""
        first = self._table + _ITEM_BYTES + _length(content, self._table)
        if self._count and len(self._offsets) == self._count:
            starts = (first + self._offsets).tolist()
            return np.array([*starts, max(_items(content, starts[-1]), default=len(content))], np.int64)
        ends = list(_items(content, first)) if self._count else []
        if self._count and len(ends) == self._count:
            return np.array([first, *ends], np.int64)
        end = content.rfind(_END_OF_FRAMES)
        return np.array([first, end if end > first else len(content)], np.int64)


def check_frames(file: Path) -> tuple[Jpeg2000Frames, ...]:
    """Check the headers of a DICOM file, and of the files beside it that belong to its series. Other files pass.

    Returns the JPEG 2000 frames of these files, which are to be checked before they are read. Raises
    `UnreadableSlideError` if the offsets of a table do not increase, or compressed pixels are not found.
    """
    series, frames = _checked(file, None)
    if not series:
        return ()
    others = (_checked(other, series)[1] for other in sorted(file.parent.iterdir()) if other != file)
    return tuple(one for one in (frames, *others) if one is not None)


def _checked(file: Path, only: str | None) -> tuple[str, Jpeg2000Frames | None]:
    """Return the series of a file, "" if it is not DICOM or of another series; and its frames if JPEG 2000."""
    try:
        if not file.is_file():
            return "", None
        with _mapped(file) as content:
            found = find_elements(content, _WANTED)
            series = text_of(content, found.get(SERIES_UID))
            if only not in (None, series):
                return "", None
            syntax = text_of(content, found.get(TRANSFER_SYNTAX))
            if not syntax.startswith(_ENCAPSULATED):
                return series, None
            pixels = found.get(PIXELS)
            if pixels is None or content[pixels.start : pixels.start + 4] != _ITEM:
                raise UnreadableSlideError(
                    f"{file.name}: it is damaged: its header leads to no frames; copy it again from its source"
                )
            offsets = _offsets(file.name, content, pixels.start, found.get(_EXTENDED_OFFSETS))
            if syntax not in _JPEG_2000:
                return series, None
            sides = {tag: int.from_bytes(content[found[tag]][:4], "little") for tag in _SIDES if tag in found}
            size, tile = (
                Size(sides[width], sides[height]) if sides.get(width) and sides.get(height) else None
                for width, height in ((_WIDTH, _HEIGHT), (_TILE_WIDTH, _TILE_HEIGHT))
            )
            count = text_of(content, found.get(_FRAME_COUNT)).strip()[:12]
            frames = Jpeg2000Frames(
                file,
                size,
                tile,
                text_of(content, found.get(_ORGANIZATION)).strip() == "TILED_FULL",
                int(count) if count.isdecimal() else 0,
                pixels.start,
                offsets,
            )
            return series, frames
    except UnreadableSlideError:
        raise
    except (OSError, ValueError):  # OpenSlide reports what is wrong
        return "", None


def _offsets(name: str, content: mmap.mmap, table: int, extended: slice | None) -> npt.NDArray[np.int64]:
    """Check the tables of offsets, and return one that has some."""
    place = slice(table + _ITEM_BYTES, table + _ITEM_BYTES + _length(content, table))
    basic = np.frombuffer(_whole(content[place], 4), "<u4").astype(np.int64)
    wide = np.frombuffer(b"" if extended is None else _whole(content[extended], 8), "<i8")
    for offsets in (basic, wide):
        if len(offsets) and (offsets[0] != 0 or (np.diff(offsets) < _ITEM_BYTES).any()):
            raise UnreadableSlideError(
                f"{name}: it is damaged: the offsets of its frames do not increase; copy it again from its source"
            )
    return basic if len(basic) else wide


def _items(content: mmap.mmap, at: int) -> Iterator[int]:
    """Yield the end of each item, from the one that starts at ``at``."""
    while content[at : at + 4] == _ITEM:
        at = min(at + _ITEM_BYTES + _length(content, at), len(content))
        yield at


def _length(content: mmap.mmap, item: int) -> int:
    return int.from_bytes(content[item + 4 : item + _ITEM_BYTES], "little")


def _whole(value: bytes, unit: int) -> bytes:
    """Cut a value to whole units."""
    return value[: len(value) // unit * unit]


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
