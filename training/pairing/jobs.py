"""What children are asked to do of a pair of slides, and what they tell of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .manifest import SlidePair
from .options import PairsOptions


@dataclass(frozen=True, slots=True)
class SlideJob:
    """What a child gets.

    pair:        the row
    fingerprint: of it, taken before anything is opened
    dataset:     the folder
    options:     of the run
    """

    pair: SlidePair
    fingerprint: str
    dataset: Path
    options: PairsOptions


@dataclass(frozen=True, slots=True)
class Doing:
    """What a child does, how far it is (0 to 1), and how many patches it has kept."""

    what: str
    share: float = 0.0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """A doubt about the pair, one sentence."""

    text: str
