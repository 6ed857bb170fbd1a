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

from .dicom_header import SERIES_UID, SOP_CLASS_UID, find_elements, text_of

MAX_FILES = 2000
"""Most files of a folder that are read; a slide has some dozens."""

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
    """List the files of a folder with the suffix ``.dcm`` or none, as DICOM files have."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in (".dcm", "") and file.is_file())
    return list(itertools.islice(files, MAX_FILES))


def series_uid(file: Path) -> str | None:
    """Read the Series Instance UID of a whole-slide image; None for any other file."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    found = find_elements(head, {SERIES_UID, SOP_CLASS_UID})
    if text_of(head, found.get(SOP_CLASS_UID)) != _WHOLE_SLIDE:
        return None
    return text_of(head, found.get(SERIES_UID)) or None
