"""A look at a finished file before it gets its name: is everything there, and can it be read?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tifffile import TiffFile, TiffPage

from ..errors import OutputError
from ..geometry import Size
from .chain import chain_problem
from .levels import tile_grid


def validate(file: Path, levels: Sequence[Size], *, openslide_compatible: bool = False) -> None:
    """Reopen a pyramid and check that it is complete.

    The levels have the given sizes; every tile has bytes, and they lie inside the file; the last tile of each level
    can be decoded. With ``openslide_compatible``, OpenSlide sees the same levels.

    Raises
    ------
    OutputError
        If anything of this is not so.
    """
    try:
        with TiffFile(file) as tiff:
            problem = _first_problem(tiff, levels)
        if not problem and openslide_compatible:
            problem = chain_problem(file, levels)
    # whatever goes wrong in a TIFF reader or a codec says the same thing here: the file cannot be read
    except Exception as error:
        raise OutputError(f"{file.name} cannot be read back after writing ({error}): run again") from error
    if problem:
        raise OutputError(f"{file.name} did not read back as it was written ({problem}): run again")


def _first_problem(tiff: TiffFile, levels: Sequence[Size]) -> str:
    pages = [tiff.pages.first, *(tiff.pages.first.pages or ())]
    if len(pages) != len(levels):
        return f"{len(pages)} levels instead of {len(levels)}"
    for number, (page, size) in enumerate(zip(pages, levels, strict=True)):
        assert isinstance(page, TiffPage)
        if page.shape != (size.height, size.width, 3):
            return f"level {number} has shape {page.shape}"
        rows, columns = tile_grid(size, page.tilewidth)
        starts, lengths = np.asarray(page.dataoffsets), np.asarray(page.databytecounts)
        if not starts.size == lengths.size == rows * columns:
            return f"level {number} has {starts.size} tiles instead of {rows * columns}"
        if lengths.min() < 1 or (starts + lengths).max() > tiff.filehandle.size:
            return f"level {number} has tiles without bytes"
        last = rows * columns - 1
        tiff.filehandle.seek(int(starts[last]))
        data = tiff.filehandle.read(int(lengths[last]))
        pixels, _, _ = page.decode(data, last)  # looking up page.decode may move the file position, so not earlier
        if pixels is None:
            return f"the last tile of level {number} is empty"
    return ""
