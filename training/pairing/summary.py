"""What came of making a data set, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.pairs import Role


@dataclass(frozen=True, slots=True)
class FailedPair:
    """A row that gave nothing: its number in the manifest, the slide's id ("" if it has none), and one line why."""

    row: int
    slide: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row}{f' ({self.slide})' if self.slide else ''}: {self.message}"


@dataclass(frozen=True, slots=True)
class SlideTally:
    """What one pair of slides gave.

    slide, patient: ids
    role:           what it is for
    her2:           its level, where known
    kept, rejected: patches
    is_new:         whether it was cut in this run
    """

    slide: str
    patient: str
    role: Role
    her2: str | None
    kept: int
    rejected: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build_pairs` did.

    dataset, manifest: base names
    slides:    those that are in the data set, in the manifest's order
    failed:    the rows that are not
    counts:    per split: pairs, slides, patients, and pairs per HER2 level; as ``dataset.json`` has them
    rejected:  patches per reason, of all and of each level; the same
    warnings:  doubts, one sentence each
    unchanged: whether the data set was complete already
    seconds:   that it took
    """

    dataset: str
    manifest: str
    slides: tuple[SlideTally, ...]
    failed: tuple[FailedPair, ...]
    counts: Mapping[str, Any] = field(default_factory=dict)
    rejected: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unchanged: bool = False
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        """Patches in the data set."""
        return sum(slide.kept for slide in self.slides)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes as it is."""
        return dataclasses.asdict(self) | {"kept": self.kept}


@dataclass(frozen=True, slots=True)
class Preview:
    """What `preview_pairs` found: pairs that look well (with their patches, where they are cut), and the others."""

    slides: tuple[SlideTally, ...]
    failed: tuple[FailedPair, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes as it is."""
        return dataclasses.asdict(self)
