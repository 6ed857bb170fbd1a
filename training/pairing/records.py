"""What was cut of one slide, as it is kept on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi2ihc.files import json_bytes, read_json

from ..files import write_whole

RECORD_NAME = "record.json"


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """One patch, kept or rejected.

    x_px, y_px: top left corner on the H&E slide's working grid
    x_um, y_um: the same on the slide
    figures:    what was measured, by name; None where nothing could be
    rejected:   why it is left out; "" if it is kept
    sha256_he, sha256_ihc:
                of the files, in hexadecimal; the same for images side by side, "" for a patch that is left out
    bytes_he, bytes_ihc:
                their sizes; 0 for a patch that is left out
    """

    x_px: int
    y_px: int
    x_um: float
    y_um: float
    figures: Mapping[str, float | None]
    rejected: str = ""
    sha256_he: str = ""
    sha256_ihc: str = ""
    bytes_he: int = 0
    bytes_ihc: int = 0


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """All patches of a slide whose cutting has come to its end.

    slide:       its id
    fingerprint: of what it was cut from, see `fingerprints.fingerprint_of`
    mpp:         µm per px of its patches, along x
    patches:     in raster order
    facts:       what else is to be kept of it, for JSON
    row:         of what the manifest said, see `fingerprints.row_print_of`
    files:       sizes of the files beside the record that belong to it: registration and transform
    """

    slide: str
    fingerprint: str
    mpp: float
    patches: tuple[PatchRecord, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[PatchRecord, ...]:
        """The patches that are not left out, in order."""
        return tuple(patch for patch in self.patches if not patch.rejected)


def write_record(folder: Path, record: SlideRecord) -> None:
    """Write the record into the slide's folder, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    head = {
        "slide": record.slide,
        "fingerprint": record.fingerprint,
        "mpp": record.mpp,
        "facts": dict(record.facts),
        "row": record.row,
        "files": dict(record.files),
    }
    # One line per patch: there are thousands, and people look at these files.
    patches = ",\n".join(json.dumps(dataclasses.asdict(patch), allow_nan=False) for patch in record.patches)
    text = json_bytes(head, indent=1).removesuffix(b"\n}\n")
    write_whole(folder / RECORD_NAME, text + f',\n "patches": [\n{patches}\n]\n}}\n'.encode())


def read_record(folder: Path) -> SlideRecord | None:
    """The record in a slide's folder; None if there is none, or it is none: the slide is then cut anew."""
    try:
        facts = read_json(folder / RECORD_NAME)
        patches = tuple(PatchRecord(**patch) for patch in facts.pop("patches"))
        return SlideRecord(**facts, patches=patches)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
