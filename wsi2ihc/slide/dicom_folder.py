"""Find the slides in a folder of DICOM files.

A DICOM slide is a series: several files that share a Series Instance UID. OpenSlide opens it from any of them. Only the
start of each file is read, up to the UID.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

MAX_FILES = 2000
"""Most files of a folder that are read; a slide has some dozens."""

_HEAD_BYTES = 2**18
_PREAMBLE = 128
_SERIES_UID = (0x0020, 0x000E)
_SOP_CLASS_UID = (0x0008, 0x0016)
_PIXELS_GROUP = 0x7FE0
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length has 4 bytes, after 2 that are reserved (PS3.5, 7.1.2)."""

_UNDEFINED = 0xFFFFFFFF
_ITEM_GROUP = 0xFFFE
_SEQUENCE_END = (0xFFFE, 0xE0DD)


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
    """List the files of a folder with the suffix ``.dcm`` or none, as DICOM files have."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in (".dcm", "") and file.is_file())
    return list(itertools.islice(files, MAX_FILES))


def series_uid(file: Path) -> str | None:
    """Read the Series Instance UID of a whole-slide image; None for any other file."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        return None
    found = _values(head, _PREAMBLE + 4)
    return found.get(_SERIES_UID) if found.get(_SOP_CLASS_UID) == _WHOLE_SLIDE else None


def _values(data: bytes, at: int) -> dict[tuple[int, int], str]:
    """Find the two UIDs in a file with explicit little-endian encoding, which all compressed files have."""
    found: dict[tuple[int, int], str] = {}
    depth = 0  # of sequences of undefined length
    while at + 8 <= len(data) and len(found) < 2:
        tag = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")
        if tag[0] >= _PIXELS_GROUP and tag[0] != _ITEM_GROUP:
            break
        if tag[0] == _ITEM_GROUP:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + (0 if length == _UNDEFINED else length)
            depth -= tag == _SEQUENCE_END
            continue
        kind = data[at + 4 : at + 6]
        if kind in _LONG_VRS:
            start, length = at + 12, int.from_bytes(data[at + 8 : at + 12], "little")
        else:
            start, length = at + 8, int.from_bytes(data[at + 6 : at + 8], "little")
        if length == _UNDEFINED:
            depth, at = depth + 1, start
            continue
        if depth <= 0 and tag in (_SERIES_UID, _SOP_CLASS_UID):
            found[tag] = data[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
    return found
