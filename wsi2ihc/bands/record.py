"""What a store of bands knows of the work it is for: everything that has to be settled once, and by one process.

``plan.json``, the tissue mask (``mask.npz``) and, where the slide's own statistics are used, those
(``statistics.safetensors``).
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..geometry import Size
from ..plan import Layout
from ..tissue import TissueMask
from ..translation.identity import Identity
from ..translation.job import Settled

PLAN, MASK, STATISTICS = "plan.json", "mask.npz", "statistics.safetensors"
FORMAT, VERSION = "wsi2ihc-bands", 1


@dataclass(frozen=True, slots=True)
class Record:
    """What a store is for.

    identity:  what the pixels follow from
    settled:   what one process found and decided for all
    band_px:   height of a band, working px
    damaged:   how many places were found unreadable while the tissue was looked for
    """

    identity: Identity
    settled: Settled
    band_px: int
    damaged: int


def write_record(folder: Path, record: Record) -> None:
    """Write a record into a folder that nobody else sees yet.

    Raises
    ------
    OSError
        If the disk is full, or the file system refuses.
    """
    settled, mask = record.settled, record.settled.mask
    with (folder / MASK).open("wb") as file:
        np.savez_compressed(file, pixels=mask.pixels)
    if settled.statistics is not None:
        (folder / STATISTICS).write_bytes(settled.statistics)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "identity": record.identity,
        "band_px": record.band_px,
        "damaged": record.damaged,
        "layout": dataclasses.asdict(settled.layout),
        "cell": [settled.cell.width, settled.cell.height],
        "fill": settled.fill,
        "statistics": settled.statistics is not None,
        "mask": {one.name: getattr(mask, one.name) for one in dataclasses.fields(mask) if one.name != "pixels"},
    }
    (folder / PLAN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_identity(folder: Path) -> Identity:
    """What the pixels of a store follow from.

    Raises
    ------
    OutputError
        If the store is damaged, or that of another version.
    """
    identity = _facts(folder).get("identity")
    if not isinstance(identity, dict):
        raise damaged_store(folder, "no identity")
    return identity


def read_record(folder: Path) -> Record:
    """Read what `write_record` wrote.

    Raises
    ------
    OutputError
        If it is damaged, or that of another version.
    """
    facts = _facts(folder)
    try:
        with (folder / MASK).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pixels = np.asarray(arrays["pixels"], np.bool_)
        settled = Settled(
            mask=_mask(pixels, facts["mask"]),
            statistics=(folder / STATISTICS).read_bytes() if facts["statistics"] else None,
            layout=Layout(**facts["layout"]),
            cell=Size(*facts["cell"]),
            fill=_triple(facts["fill"]),
        )
        return Record(facts["identity"], settled, int(facts["band_px"]), int(facts["damaged"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise damaged_store(folder, str(error)) from error


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT or facts["version"] != VERSION:
            raise ValueError(f"format {facts['format']!r:.40}, version {facts['version']!r:.20}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_store(folder, str(error)) from error
    plain: dict[str, Any] = facts
    return plain


def _mask(pixels: Any, facts: Mapping[str, Any]) -> TissueMask:
    (x, y), (across, down), (left, top) = facts["origin"], facts["pixel_size"], facts["bounds_origin"]
    return TissueMask(pixels, (x, y), (across, down), _triple(facts["glass"]), tuple(facts["warnings"]), (left, top))


def _triple(values: Any) -> tuple[int, int, int]:
    red, green, blue = values
    return int(red), int(green), int(blue)


def damaged_store(folder: Path, reason: str) -> OutputError:
    """The error of a store that cannot be understood."""
    return OutputError(
        f"{folder}: what an earlier run left is damaged ({reason:.80}); begin anew with --overwrite, or remove it"
    )
