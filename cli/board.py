"""How far a batch is: a few lines that redraw themselves on a terminal, one line for every slide in a log file."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from wsi2ihc.batch.runner import Board, SlideState
from wsi2ihc.cli.output import screen, tell
from wsi2ihc.cli.progress import duration

REDRAW_S = 0.2
LOG_EVERY_S = 60.0
SHOWN = 8
"""Running slides that are shown."""


@dataclass(slots=True)
class LiveBoard:
    """Draws the board of a batch on stderr."""

    quiet: bool = False
    _started: float = field(default_factory=time.monotonic)
    _drawn: float = 0.0
    _terminal: bool = field(default_factory=lambda: screen.is_terminal)

    def note(self, text: str) -> None:
        """A line for now, on terminals only."""
        now = time.monotonic()
        if not self.quiet and self._terminal and now - self._drawn >= REDRAW_S:
            self._draw([text], now)

    def say(self, line: str) -> None:
        """A line that stays."""
        tell(line)

    def show(self, states: Board, news: SlideState | None) -> None:
        """Show how far all slides are; ``news``: one that has just ended, or will be tried again."""
        if self.quiet:
            return
        now = time.monotonic()
        if news is not None:
            self.say(_told(news))
        if self._terminal:
            if news is not None or now - self._drawn >= REDRAW_S:
                self._draw([self._totals(states, now), *_running(states)], now)
        elif now - self._drawn >= LOG_EVERY_S:
            self._drawn = now
            tell(self._totals(states, now))

    def close(self) -> None:
        """Clear what was drawn."""
        screen.clear()

    def _totals(self, states: Board, now: float) -> str:
        counts = Counter(state.status for state in states)
        parts = [f"{counts[status]} {status}" for status in ("done", "done before", "failed", "running", "waiting")
                 if counts[status]]  # fmt: skip
        mpx = sum(float(state.facts.get("mpx") or 0) for state in states if state.status == "done")
        elapsed_s = now - self._started
        finished = counts["done"] + counts["failed"]
        if finished:
            left_s = elapsed_s / finished * (counts["running"] + counts["waiting"])
            parts += [f"{mpx / elapsed_s:.3g} Mpx/s", f"{duration(left_s)} left"]
        return ", ".join(parts)

    def _draw(self, lines: list[str], now: float) -> None:
        screen.draw(lines)
        self._drawn = now


def _told(state: SlideState) -> str:
    if state.status == "failed":
        return f"failed  {state.task.name}: {state.error} ({state.attempts} attempts)"
    if state.status == "waiting":
        return f"again   {state.task.name}: {state.error}"
    took = f"done    {state.task.name} in {duration(float(state.facts.get('seconds') or 0))}"
    return "; ".join([took, *(state.facts.get("warnings") or [])])


def _running(states: Board) -> list[str]:
    running = [state for state in states if state.status == "running"]
    lines = [f"  {state.share:4.0%}  {state.task.name}" for state in running[:SHOWN]]
    return [*lines, f"  and {len(running) - SHOWN} more"] if len(running) > SHOWN else lines
