"""From what the readers find to the facts that the rest of the program uses, with remarks for people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import RGB, WHITE
from ..errors import UnreadableSlideError
from ..geometry import Region, Size
from .colour import is_usable_profile, srgb_profile
from .image_choice import Choice
from .profile_texts import without_texts
from .protocol import Level
from .resolution import Mpp
from .tiff_facts import TiffFacts, TileTable

MAX_SIDE_PX = 4_000_000
"""A slide is 75 mm long: 750,000 px at 0.1 µm/px. A header that claims more than five times that is damaged."""

MAX_AREA_PX = 5 * 10**11
"""A whole slide of 75 × 25 mm at 0.1 µm/px has 1.9 · 10¹¹ px."""

LARGE_PX = 10_000 * 10_000
"""From this size on, a slide without lower levels deserves a remark: an overview has to read all of it."""

UNCOMPRESSED = "Its pixels are not compressed, so that damage to them cannot be noticed."

_HASHED_BYTES = 2**20


def checked_levels(name: str, sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> tuple[Level, ...]:
    """The levels of a slide, largest first.

    Raises
    ------
    UnreadableSlideError
        If the header claims sizes that no slide has.
    """
    for width, height in sizes:
        if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX and width * height <= MAX_AREA_PX):
            raise UnreadableSlideError(
                f"{name}: the header claims a level of {width}×{height} px, which no scanner makes; "
                "the file is damaged: copy it again from its source"
            )
    full = Size(*sizes[0])
    return tuple(
        Level(Size(*size), true_downsample(full, Size(*size), downsample))
        for size, downsample in zip(sizes, downsamples, strict=True)
    )


def true_downsample(full: Size, level: Size, reported: float) -> float:
    """How many level-0 px one px of a level spans.

    Readers divide the sizes, so a level made by dropping the odd last column of a factor 4 is reported as 4.00017,
    which is 17 px off at the far end of 100,000. Where both sizes are those of a whole factor, rounded either way,
    that factor is meant.
    """
    whole = round(reported)
    sides = ((full.width, level.width), (full.height, level.height))
    if whole >= 1 and all(small in (large // whole, -(-large // whole)) for large, small in sides):
        return float(whole)
    return reported


def checked_bounds(values: Sequence[Any], size: Size) -> Region:
    """The scanned area from the properties (x, y, width, height), texts or None; the whole slide where they fail."""
    whole = Region(0, 0, size.width, size.height)
    try:
        x, y, width, height = (int(value) for value in values)
    except (TypeError, ValueError):
        return whole
    if width < 1 or height < 1:
        return whole
    bounds = Region(x, y, width, height).intersection(whole)
    return whole if bounds.is_empty else bounds


def remarks_on_bounds(bounds: Region, size: Size) -> tuple[str, ...]:
    """Where an output begins that does not cover the whole slide: an overlay has to be moved by as much."""
    if (bounds.width, bounds.height) == (size.width, size.height):
        return ()
    return (
        f"Only {bounds.width}×{bounds.height} px at ({bounds.x}, {bounds.y}) of it are scanned; outputs cover this "
        "area, as they do in QuPath.",
    )


def colour_from_hex(text: str | None) -> RGB:
    """A background colour such as "FFFFFF"; white where there is none."""
    try:
        red, green, blue = bytes.fromhex((text or "").lstrip("#"))
    except ValueError:
        return WHITE
    return red, green, blue


def checked_profile(profile: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
    """The colour profile if it can be used, without what it says beside colours, and a remark if it cannot."""
    if profile is None or profile == srgb_profile():
        return profile, ()
    try:
        plain = without_texts(profile)
    except ValueError:
        plain = b""
    if is_usable_profile(plain):
        return plain, ()
    return None, ("Its colour profile is damaged, or not one for RGB; it is ignored.",)


def remarks(levels: Sequence[Level], magnification: float | None, facts: TiffFacts | None) -> tuple[str, ...]:
    """What is doubtful about a slide beside its resolution and profile, one sentence each."""
    notes = []
    size = levels[0].size
    if magnification is None:
        notes.append("It does not say the objective's magnification.")
    if len(levels) == 1 and size.area_px > LARGE_PX:
        notes.append("It has no lower levels, so that finding the tissue has to read all of it.")
    if facts is not None and facts.has_alpha:
        notes.append("It has an alpha channel; transparent places are taken for background.")
    if facts is not None:
        notes.extend(filter(None, (facts.kind.note, *facts.problems)))
    table = None if facts is None else table_of_size(facts.tables, size)
    if table is not None and table.missing:
        notes.append(f"Missing tiles: {table.missing:,} of {table.byte_counts.size:,}; they are taken for background.")
    if table is not None and table.suspect is not None:
        damaged = np.count_nonzero(table.suspect)
        notes.append(
            f"Damaged tiles: {damaged:,} of {table.suspect.size:,} cannot lie where the file says, or lie beyond its "
            "end; copy it again from its source."
        )
    if table is not None and table.compression == 1:
        notes.append(UNCOMPRESSED)
    return tuple(notes)


def table_of_size(tables: Sequence[TileTable], size: Size) -> TileTable | None:
    """The one table of a level's size; None where there is none, or more than one.

    A tiled page goes before one of strips, which is a thumbnail.
    """
    matching = [table for table in tables if table.size == size]
    matching = [table for table in matching if table.tiled] or matching
    return matching[0] if len(matching) == 1 else None


def own_hash(read_at: Callable[[int, int], bytes], size_bytes: int) -> str:
    """Identity of a file whose reader has none: SHA-256 of its size, its first and its last MiB.

    Parameters
    ----------
    read_at
        Gives so many bytes (second argument) from an offset (first argument).
    size_bytes
        Size of the file.
    """
    digest = hashlib.sha256(str(size_bytes).encode())
    digest.update(read_at(0, min(_HASHED_BYTES, size_bytes)))
    digest.update(read_at(max(0, size_bytes - _HASHED_BYTES), min(_HASHED_BYTES, size_bytes)))
    return f"sha256:{digest.hexdigest()}"


def hash_of_file(path: Path) -> str:
    """`own_hash` of a local file."""

    def read_at(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    with path.open("rb") as file:
        return own_hash(read_at, path.stat().st_size)


def identity(quickhash: str, facts: TiffFacts | None) -> str:
    """A hash that also tells which image of the file a caller has chosen."""
    return quickhash if facts is None else identity_of_choice(quickhash, facts.choice)


def identity_of_choice(quickhash: str, choice: Choice) -> str:
    """A hash of a file, and which of its images is meant."""
    parts = (("series", choice.series), ("page", choice.page))
    return quickhash + "".join(f"-{name}{number}" for name, number in parts if number is not None)


def changed_at(path: str | Path) -> int | None:
    """When a local file was last changed, whole s since 1970, as all copies that keep times have it; None of a URL."""
    return int(Path(path).stat().st_mtime) if "://" not in str(path) else None


def both(x: float | None, y: float | None) -> Mpp | None:
    """A pair, or None unless both are known."""
    return None if x is None or y is None else (x, y)
