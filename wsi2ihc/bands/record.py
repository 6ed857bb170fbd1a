"""What a store of bands knows of the work it is for: everything that has to be settled once, and by one process.

``plan.json``, the tissue mask (``mask.npz``) and, where the slide's own statistics are used, those
(``statistics.safetensors``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..files import read_json, read_regular
from ..geometry import Size
from ..plan import Layout
from ..tissue import Annotation, TissueMask
from ..translation.identity import Identity
from ..translation.job import Settled

LARGEST_FILE_BYTES = 1 << 30
"""A mask has a pixel per some µm of the slide, and the statistics are a few numbers per channel."""

PLAN, MASK, STATISTICS = "plan.json", "mask.npz", "statistics.safetensors"
FORMAT, VERSION = "wsi2ihc-bands", 4
_CHECKSUM = "sha256"
"""Of the other facts, the mask and the statistics: a fill or a cell that changed on disk would change pixels."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a store is for.

    identity:  what the pixels follow from
    settled:   what one process found and decided for all
    band_px:   height of a band, working px
    size:      of the output's level 0, px
    damaged:   places of the slide that were unreadable when the tissue was looked for: (level, x, y)
    """

    identity: Identity
    settled: Settled
    band_px: int
    size: Size
    damaged: tuple[tuple[int, int, int], ...]


def write_record(folder: Path, record: Record) -> None:
    """Write a record into a folder that nobody else sees yet.

    Raises
    ------
    OSError
        If the disk is full, or the file system refuses.
    """
    settled, mask = record.settled, record.settled.mask
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pixels=mask.pixels)
    (folder / MASK).write_bytes(buffer.getvalue())
    if settled.statistics is not None:
        (folder / STATISTICS).write_bytes(settled.statistics)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "identity": record.identity,
        "band_px": record.band_px,
        "size": [record.size.width, record.size.height],
        "damaged": record.damaged,
        "layout": dataclasses.asdict(settled.layout),
        "cell": [settled.cell.width, settled.cell.height],
        "fill": settled.fill,
        "statistics": settled.statistics is not None,
        "mask": {one.name: getattr(mask, one.name) for one in dataclasses.fields(mask) if one.name != "pixels"},
    }
    facts[_CHECKSUM] = _checksum(facts, buffer.getvalue(), settled.statistics)
    (folder / PLAN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record:
    """Read what `write_record` wrote.

    Raises
    ------
    OutputError
        If it is damaged, or that of another version.
    PermissionError
        If it is another user's, who keeps it to himself.
    """
    try:
        facts = read_json(folder / PLAN)
        if facts["format"] != FORMAT or facts["version"] != VERSION:
            raise ValueError(f"format {facts['format']!r:.40}, version {facts['version']!r:.20}")
        mask = read_regular(folder / MASK, LARGEST_FILE_BYTES)
        statistics = read_regular(folder / STATISTICS, LARGEST_FILE_BYTES) if facts["statistics"] else None
        if facts.pop(_CHECKSUM) != _checksum(facts, mask, statistics):
            raise ValueError("the checksum differs")
        with np.load(io.BytesIO(mask), allow_pickle=False) as arrays:
            pixels = np.asarray(arrays["pixels"], np.bool_)
        settled = Settled(
            mask=_mask(pixels, facts["mask"]),
            statistics=statistics,
            layout=Layout(**facts["layout"]),
            cell=Size(*facts["cell"]),
            fill=_triple(facts["fill"]),
        )
        identity = {str(group): dict(values) for group, values in facts["identity"].items()}
        damaged = tuple(_triple(place) for place in facts["damaged"])
        return Record(identity, settled, int(facts["band_px"]), Size(*facts["size"]), damaged)
    except (PermissionError, MemoryError):
        raise
    # numpy, zipfile and zlib say it in many ways: an end of file, a checksum, a method that is none
    except Exception as error:
        raise damaged_store(folder, str(error)) from error


def _checksum(facts: Mapping[str, Any], mask: bytes, statistics: bytes | None) -> str:
    """SHA-256 of a record, in hex; the facts may be as they were read, or as they are to be written."""
    digest = hashlib.sha256(json.dumps(json.loads(json.dumps(facts)), sort_keys=True).encode())
    for part in (mask, statistics or b""):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _mask(pixels: Any, facts: Mapping[str, Any]) -> TissueMask:
    (x, y), (across, down), (left, top) = facts["origin"], facts["pixel_size"], facts["bounds_origin"]
    annotations = tuple(Annotation(*one) for one in facts["annotations"])
    return TissueMask(
        pixels, (x, y), (across, down), _triple(facts["glass"]), tuple(facts["warnings"]), (left, top), annotations
    )


def _triple(values: Any) -> tuple[int, int, int]:
    red, green, blue = values
    return int(red), int(green), int(blue)


def damaged_store(folder: Path, reason: str) -> OutputError:
    """The error of a store that cannot be understood."""
    return OutputError(
        f"{folder}: what an earlier run left is damaged ({reason:.80}); begin anew with --overwrite, or remove it"
    )
