"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` in this ``stage``; a total of 1 means that nothing can be said of how long it takes.

    unit: what is counted, "px" or "step"
    note: more to tell while it runs, such as losses
    """

    stage: str
    done: int = 0
    total: int = 1
    unit: str = "px"
    note: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback of somebody who does not want to know."""
