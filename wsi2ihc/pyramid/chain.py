"""Making the lower levels visible to OpenSlide, which reads a TIFF's chain of images but no SubIFDs.

A BigTIFF's images form a chain: each ends in the offset of the next, 0 in the last. The SubIFDs of an image are listed
in a tag, and whether they form a chain of their own differs between versions of tifffile. Here the first image is
linked to its first SubIFD, and each SubIFD to the next. With these links OpenSlide (issue 344 there) finds every level,
and readers of SubIFDs still see what they saw. The OME specification forbids it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from ..geometry import Size

SUBIFDS_TAG = 330
HEADER = struct.Struct("<2sHHHQ")  # byte order, version (43), bytes of an offset (8), 0, offset of the first image
ENTRY = struct.Struct("<HHQQ")  # tag, type, count, value or offset of the values
OFFSET = struct.Struct("<Q")


def chain_levels(file: Path) -> None:
    """Link the first image to its first SubIFD and each SubIFD to the next, in place.

    Raises
    ------
    ValueError
        If the file is not a little-endian BigTIFF, or has more than one image in its chain already.
    """
    with file.open("r+b") as tiff:
        order, bigtiff, _, _, first_image = HEADER.unpack(tiff.read(HEADER.size))
        if (order, bigtiff) != (b"II", 43):
            raise ValueError(f"{file.name} is not a little-endian BigTIFF")
        entries, link = _directory(tiff, first_image)
        tiff.seek(link)
        if tiff.read(OFFSET.size) != bytes(OFFSET.size):
            raise ValueError(f"{file.name} has more than one image in its chain")
        offsets = [first_image, *_subifds(tiff, entries)]
        for image, following in pairwise((*offsets, 0)):
            _, link = _directory(tiff, image)
            tiff.seek(link)
            tiff.write(OFFSET.pack(following))


def chain_problem(file: Path, levels: Sequence[Size]) -> str:
    """What keeps OpenSlide from seeing all of the levels of a file; "" if it does."""
    import openslide

    with openslide.OpenSlide(file) as slide:
        seen = [Size(*size) for size in slide.level_dimensions]
        if seen != list(levels):
            return f"OpenSlide sees {len(seen)} levels instead of {len(levels)}"
        for number in range(len(levels)):
            slide.read_region((0, 0), number, (1, 1))
    return ""


def _directory(tiff: BinaryIO, offset: int) -> tuple[list[tuple[int, int, int]], int]:
    """(tag, count, value) of each entry of an image, and where the offset of the next image is stored."""
    tiff.seek(offset)
    (count,) = OFFSET.unpack(tiff.read(OFFSET.size))
    entries = [ENTRY.unpack(tiff.read(ENTRY.size)) for _ in range(count)]
    return [(tag, number, value) for tag, _, number, value in entries], tiff.tell()


def _subifds(tiff: BinaryIO, entries: Sequence[tuple[int, int, int]]) -> list[int]:
    """Offsets of the SubIFDs that an image's entries list."""
    for tag, count, value in entries:
        if tag == SUBIFDS_TAG:
            if count == 1:  # a single offset is stored in the entry itself
                return [value]
            tiff.seek(value)
            return [OFFSET.unpack(tiff.read(OFFSET.size))[0] for _ in range(count)]
    return []
