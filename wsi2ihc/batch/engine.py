"""What runs slides for a batch, wherever that is."""

from __future__ import annotations

from typing import Protocol

from .events import Event
from .task import SlideTask


class Engine(Protocol):
    """Something that takes slides, a bounded number at a time, and tells what becomes of them.

    Of every slide that it takes, it tells `Done`, `Failed` or `Returned`, once.
    """

    def has_room(self, *, alone: bool) -> bool:
        """Whether it takes another slide now; ``alone``: one that must not share a child with any other."""
        ...

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """Begin with a slide; only where there is room."""
        ...

    def next_event(self, timeout_s: float) -> Event | None:
        """The next thing to tell; None if there is nothing for so long."""
        ...

    def close(self) -> None:
        """End everything at once."""
        ...
