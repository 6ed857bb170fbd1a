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
