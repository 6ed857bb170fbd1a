"""Paired datasets: pairs and their metadata."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Role = Literal["train", "validation", "test"]
ROLES: tuple[Role, ...] = get_args(Role)

Order = Literal["AB", "BA"]
"""Position of the H&E in a side-by-side image: "AB" left, "BA" right."""

Augmentation = Literal["none", "hflip", "dihedral"]
"""Augmentation of crops: none, horizontal flips (as in the study), or all eight flips and right-angle rotations."""

ROLE_NAMES: Mapping[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Names of the roles in folders and tables (there in any case)."""


LARGEST_SIDE_PX = 8192
"""Largest side of a square patch; others may have as many pixels. Decoding one takes some 0.8 GB."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An H&E patch and the IHC patch of the same tissue; None if unknown."""

    name: str  # stem of the H&E file
    # the files; the same one if they lie side by side
    he: Path
    ihc: Path
    half: Literal["", "left", "right"] = ""  # position of the H&E in a side-by-side image; "" for two files
    role: Role | None = None  # split of the pair
    group: str | None = None  # what must not be split between roles (a patient, a slide, a region)
    # from the file name or a table; ``her2`` is the level of the slide, as in "2+"
    patient: str | None = None
    slide: str | None = None
    her2: str | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class PairedData:
    """A paired dataset; its pixels have not been read."""

    folder: Path
    layout: str  # one line for display, as in "side by side in train/, test/ (H&E left)"
    # in the order of the table; otherwise train, validation, test (by their folders), each sorted by file name
    pairs: tuple[Pair, ...]
    mpp: float | None = None  # µm per px, from the table or dataset.json; None if not stated
    # from dataset.json
    stain: str | None = None
    license: str | None = None
    # "patient", "slide", "group" (columns of the table), "regular expression …", the name of a CSV file (with the
    # fields that it filled in, in parentheses), "patch" (split by patch on request), "" (no groups)
    grouped_by: str = ""
    name: str | None = None
    icc: str | None = None  # how colors were read from the slides, from dataset.json: "keep" or "srgb"
    is_lettered: bool = False  # whether folders are named A and B, so that the order determines the stains

    def of(self, role: Role) -> tuple[Pair, ...]:
        """Return the pairs of one role, in order."""
        return tuple(pair for pair in self.pairs if pair.role == role)

    def counts(self) -> dict[str, Any]:
        """Return the number of pairs, groups, and pairs per HER2 level (if known) of every role that has pairs, for
        JSON.
        """
        counts: dict[str, Any] = {}
        for role in ROLES:
            if not (pairs := self.of(role)):
                continue
            counts[role] = {"pairs": len(pairs), "groups": len({pair.group for pair in pairs} - {None})}
            if levels := Counter(pair.her2 for pair in pairs if pair.her2 is not None):
                counts[role]["her2"] = dict(sorted(levels.items()))
        return counts

    def fingerprint(self) -> str:
        """Return the SHA-256 of names, file names, roles and groups, in order; it does not depend on the location.

        Other fields must not be included, or runs could not be resumed once more metadata becomes known.

        The order is included, since batches and crops are drawn by index: a run cannot resume exactly if rows of the
        table were moved. Pixels are not: reading all of them would take minutes.
        """
        rows = [
            json.dumps([pair.name, pair.he.name, pair.ihc.name, pair.half, pair.role, pair.group])
            for pair in self.pairs
        ]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()
