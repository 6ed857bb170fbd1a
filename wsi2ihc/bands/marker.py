"""A band is done if its marker says so, and if its shards are just those of which the marker tells.

That a shard is there says nothing: a killed writer leaves some of its shards behind. Names and sizes are compared
wherever a band is looked at, and the SHA-256 once, before the output is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json
from ..pyramid import published
from ..translation.seams import Phases, SeamSums
from ..translation.shades import ShadeSums


@dataclass(frozen=True, slots=True)
class Marker:
    """What is known of a finished band.

    shards:       bytes and SHA-256 of each of its files, by their path in the image
    seams:        sums for the seam figures; None where there can be none
    generator_s:  seconds that the translators worked
    run_s:        seconds that the band took
    damaged:      places of the slide that were unreadable, as far as its process knew: (level, x, y)
    """

    shards: Mapping[str, tuple[int, str]]
    seams: SeamSums | None
    generator_s: float
    run_s: float
    damaged: tuple[tuple[int, int, int], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each of its files, by their path in the image."""
        return {name: size for name, (size, _) in self.shards.items()}

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes as it is. Sums are whole numbers, and stay exact."""
        seams = None
        if self.seams is not None:
            along = [_lists(self.seams.along_x), _lists(self.seams.along_y)]
            seams = {"along": along, "borders": self.seams.borders, "shades": self.seams.shades.to_json()}
        return {
            "shards": dict(self.shards),
            "seams": seams,
            "generator_s": self.generator_s,
            "run_s": self.run_s,
            "damaged": self.damaged,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Marker:
        """The inverse of `to_json`.

        Raises
        ------
        LookupError, TypeError, ValueError, ArithmeticError
            If these are no facts of a marker.
        """
        seams = facts["seams"]
        if seams is not None:
            along_x, along_y = (Phases(*(np.array(row, np.float64) for row in rows)) for rows in seams["along"])
            seams = SeamSums(along_x, along_y, int(seams["borders"]), ShadeSums.from_json(seams["shades"]))
        damaged = tuple((int(level), int(x), int(y)) for level, x, y in facts["damaged"])
        shards = {str(name): (int(size), str(digest)) for name, (size, digest) in dict(facts["shards"]).items()}
        return cls(shards, seams, float(facts["generator_s"]), float(facts["run_s"]), damaged)


def write_marker(path: Path, marker: Marker) -> None:
    """Write a marker in one piece, durably.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with published(path, overwrite=True) as partial:
        partial.write_text(json.dumps(marker.to_json(), separators=(",", ":")) + "\n", encoding="ascii")


def read_marker(path: Path) -> Marker | None:
    """The marker of a band; None if there is none, or it is damaged."""
    try:
        return Marker.from_json(read_json(path))
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _lists(phases: Phases) -> list[list[int]]:
    return [values.astype(np.int64).tolist() for values in (phases.result, phases.source, phases.count)]
