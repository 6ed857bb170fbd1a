"""Making the lower levels visible to OpenSlide, which reads a TIFF's chain of images but no SubIFDs.

A BigTIFF's images form a chain: each ends in the offset of the next, 0 in the last. tifffile chains the SubIFDs among
themselves; all that is missing is the link from the first image to the first of them. With these 8 bytes OpenSlide
(issue 344 there) finds every level, and readers of SubIFDs still see what they saw. The OME specification forbids it.
"""

from __future__ import annotations

import struct
from pathlib import Path

SUBIFDS_TAG = 330
HEADER = struct.Struct("<2sHHHQ")  # byte order, version (43), bytes of an offset (8), 0, offset of the first image
ENTRY = struct.Struct("<HHQQ")  # tag, type, count, value or offset of the values
OFFSET = struct.Struct("<Q")


def chain_levels(file: Path) -> None:
    """Point the first image's "next" at its first SubIFD, in place. Does nothing where there is no SubIFD.

    Raises
    ------
    ValueError
        If the file is no little-endian BigTIFF, or has more than one image in its chain already.
    """
    with file.open("r+b") as tiff:
        order, bigtiff, _, _, first_image = HEADER.unpack(tiff.read(HEADER.size))
        if (order, bigtiff) != (b"II", 43):
            raise ValueError(f"{file.name} is no little-endian BigTIFF")
        tiff.seek(first_image)
        (entry_count,) = OFFSET.unpack(tiff.read(OFFSET.size))
        entries = [ENTRY.unpack(tiff.read(ENTRY.size)) for _ in range(entry_count)]
        next_field = tiff.tell()
        if tiff.read(OFFSET.size) != bytes(OFFSET.size):
            raise ValueError(f"{file.name} has more than one image in its chain")
        subifds = [(count, value) for tag, _, count, value in entries if tag == SUBIFDS_TAG]
        if not subifds:
            return
        count, first_subifd = subifds[0]
        if count > 1:  # the value of a single offset is stored in the entry itself
            tiff.seek(first_subifd)
            (first_subifd,) = OFFSET.unpack(tiff.read(OFFSET.size))
        tiff.seek(next_field)
        tiff.write(OFFSET.pack(first_subifd))
