"""What is known of a paired data set: its pairs, and what they are for.

The options name some of these types, so nothing is imported here that takes time.
"""

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
"""Where the H&E lies in a side-by-side image: "AB" to the left, "BA" to the right."""

Augmentation = Literal["none", "hflip", "dihedral"]
"""Of crops: none; mirrored left to right or not (the study's); or one of all eight flips and right-angled turns."""

ROLE_NAMES: Mapping[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""What the roles are called in folders and tables (there in any case)."""


LARGEST_SIDE_PX = 8192
"""Of a square patch; others may have as many px. Decoding one takes some 0.8 GB."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One H&E patch and the IHC patch of the same tissue.

    name:     stem of the H&E file
    he, ihc:  the files; the same one where both lie side by side
    half:     where the H&E lies in a side-by-side image; "" for two files
    role:     what it is for; None where the data do not say
    group:    what must not be parted between roles (a patient, a slide, a region); None where unknown
    patient, slide, her2, number:
              as the file name or a table has them; ``her2`` is the level of the slide, as in "2+"
    """

    name: str
    he: Path
    ihc: Path
    half: Literal["", "left", "right"] = ""
    role: Role | None = None
    group: str | None = None
    patient: str | None = None
    slide: str | None = None
    her2: str | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class PairedData:
    """A paired data set; no pixel of it has been read.

    folder:      where it was found
    layout:      one line for people, as in "side by side in train/, test/ (H&E left)"
    pairs:       in the table's order; else train, validation, test (by their folders), each by file name
    mpp:         µm per px, as the table or dataset.json states it; None where nothing does
    stain, licence, name:
                 as dataset.json states them
    is_lettered: whether A and B in names of folders say which stain is which
    icc:         how colors were read from the slides, as dataset.json states it: "keep" or "srgb"
    grouped_by:  "patient", "slide", "group" (columns of the table), "regular expression …", the name of a CSV file
                 (and in brackets which of patient and slide it filled in), "patch" (no groups: asked for), "" (no
                 groups)
    """

    folder: Path
    layout: str
    pairs: tuple[Pair, ...]
    mpp: float | None = None
    stain: str | None = None
    licence: str | None = None
    grouped_by: str = ""
    name: str | None = None
    icc: str | None = None
    is_lettered: bool = False

    def of(self, role: Role) -> tuple[Pair, ...]:
        """The pairs of one role, in order."""
        return tuple(pair for pair in self.pairs if pair.role == role)

    def counts(self) -> dict[str, Any]:
        """Pairs, groups, and pairs per HER2 level (where known) of every role that has pairs, for JSON."""
        counts: dict[str, Any] = {}
        for role in ROLES:
            if not (pairs := self.of(role)):
                continue
            counts[role] = {"pairs": len(pairs), "groups": len({pair.group for pair in pairs} - {None})}
            if levels := Counter(pair.her2 for pair in pairs if pair.her2 is not None):
                counts[role]["her2"] = dict(sorted(levels.items()))
        return counts

    def fingerprint(self) -> str:
        """SHA-256 over names, file names, roles and groups, in order: the same wherever the data set is moved to.

        Nothing that becomes known of a pair beside these may enter, or runs that were begun before could not go on.

        The order enters, since batches and crops are drawn by a pair's place in it: a run does not resume exactly on
        a table of which the rows were moved. Pixels do not enter: reading them all would take minutes.
        """
        facts = [
            json.dumps([pair.name, pair.he.name, pair.ihc.name, pair.half, pair.role, pair.group])
            for pair in self.pairs
        ]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()
