"""Files that go with a report: a CSV for each table and an encoded image for each picture, under distinct names."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .document import Picture, Report, Table
from .tables import csv_text

JPEG_QUALITY = 90
JPEG_MOST_PX = 65_535
"""A JPEG has no more rows or columns; a larger photograph becomes a PNG."""

LONGEST_STEM = 80
"""Characters of a file's stem: file systems end at 255 bytes."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a report.

    path:        inside the report's folder, with forward slashes and of plain characters only
    media_type:  as in a data URI
    content:     of the file
    """

    path: str
    media_type: str
    content: bytes


def attachments_of(report: Report) -> tuple[tuple[Attachment, ...], ...]:
    """For each section the files of its contents, in the same order.

    Raises
    ------
    ValueError
        If a row of a table has not one cell for each column.
    """
    taken: set[str] = set()
    return tuple(tuple(_attachment(content, taken) for content in section.contents) for section in report.sections)


def encoded_text(text: str) -> bytes:
    """UTF-8; what a file's name holds that is no text (bytes in another encoding) is written as an escape."""
    return text.encode("utf-8", "backslashreplace")


def _attachment(content: Table | Picture, taken: set[str]) -> Attachment:
    if isinstance(content, Table):
        return Attachment(_free_path("tables", content.name, "csv", taken), "text/csv", encoded_text(csv_text(content)))
    is_photograph = content.kind == "photograph" and max(content.pixels.shape) <= JPEG_MOST_PX
    ending, media_type = ("jpg", "image/jpeg") if is_photograph else ("png", "image/png")
    image, buffer = Image.fromarray(np.ascontiguousarray(content.pixels)), io.BytesIO()
    if is_photograph:
        # without subsampling: the edges of brown on blue are what one looks at
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, format="PNG")
    return Attachment(_free_path("pictures", content.name, ending, taken), media_type, buffer.getvalue())


def _free_path(folder: str, name: str, ending: str, taken: set[str]) -> str:
    """A path of plain characters that no other file has, whatever the case of its letters."""
    stem = re.sub(r"[^A-Za-z0-9_+.-]+", "-", name)[:LONGEST_STEM].strip("-.") or "unnamed"
    path, times = f"{folder}/{stem}.{ending}", 1
    while path.lower() in taken:
        times += 1
        path = f"{folder}/{stem}-{times}.{ending}"
    taken.add(path.lower())
    return path
