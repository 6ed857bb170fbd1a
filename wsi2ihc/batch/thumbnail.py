"""A small picture of every finished slide, for the page of results."""

from __future__ import annotations

from pathlib import Path

import imagecodecs

from ..pyramid import published
from ..pyramid import read_overview as read_result
from .places import thumbnail_path

THUMBNAIL_PX = 240


def write_thumbnail(output: Path) -> None:
    """Draw the thumbnail of a finished output.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    pixels = read_result(output, THUMBNAIL_PX)
    path = thumbnail_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, overwrite=True) as partial:
        partial.write_bytes(imagecodecs.jpeg_encode(pixels, level=85))
