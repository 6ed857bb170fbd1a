"""Progress on stderr: a progress bar, or the board of a batch."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi2ihc.concurrency import Progress

from .console import screen, tell

if TYPE_CHECKING:
    from wsi2ihc.batch.scheduler import Board, SlideState

BAR_CHARACTERS = 24
REDRAW_S = 0.1
LOG_EVERY_S = 30.0


@dataclass(slots=True)
class ProgressBar:
    """Progress bar of `Progress` events: stage, fraction, rate, remaining time and note."""

    quiet: bool = False
    _stage: str = ""
    _stage_started: float = 0.0
    _stage_first: int = 0
    _drawn: float = 0.0
    _terminal: bool = field(default_factory=lambda: screen.is_terminal)

    def __call__(self, progress: Progress) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        changed = progress.stage != self._stage
        if changed:
            self._stage, self._stage_started, self._stage_first = progress.stage, now, progress.done
        complete = progress.done >= progress.total
        pause = REDRAW_S if self._terminal else LOG_EVERY_S
        if not changed and not complete and now - self._drawn < pause:
            return
        self._drawn = now
        text = self._text(progress, now - self._stage_started)
        if self._terminal:
            screen.draw([text])
        else:
            tell(text)

    def close(self) -> None:
        """Clear the line."""
        screen.clear()

    def _text(self, progress: Progress, elapsed_s: float) -> str:
        if progress.total <= 1:
            return progress.stage
        share = progress.done / progress.total
        filled = round(share * BAR_CHARACTERS)
        text = f"{progress.stage} [{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}] {share:4.0%}"
        done = progress.done - self._stage_first  # a stage can be entered again, or begin in the middle
        if done > 0 and elapsed_s > 0.5:
            rate = done / elapsed_s
            speed = f"{rate / 1e6:.2f} Mpx/s" if progress.unit == "px" else f"{rate:.3g} {progress.unit}s/s"
            text += f" {speed}, {duration((progress.total - progress.done) / rate)} left"
        return f"{text} ({progress.note})" if progress.note else text


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 05 s, 2 h 10 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


BOARD_REDRAW_S = 0.2
BOARD_LOG_EVERY_S = 60.0
SHOWN = 8
"""Number of running slides that are shown."""


@dataclass(slots=True)
class LiveBoard:
    """Board of a batch on stderr."""

    quiet: bool = False
    _started: float = field(default_factory=time.monotonic)
    _drawn: float = 0.0
    _terminal: bool = field(default_factory=lambda: screen.is_terminal)

    def note(self, text: str) -> None:
        """Show a temporary line, on terminals only."""
        now = time.monotonic()
        if not self.quiet and self._terminal and now - self._drawn >= BOARD_REDRAW_S:
            self._draw([text], now)

    def say(self, line: str) -> None:
        """Print a permanent line."""
        tell(line)

    def show(self, states: Board, news: SlideState | None) -> None:
        """Show the progress of all slides; ``news``: a slide that has ended or is retried."""
        if self.quiet:
            return
        now = time.monotonic()
        if news is not None:
            self.say(_news_line(news))
        if self._terminal:
            if news is not None or now - self._drawn >= BOARD_REDRAW_S:
                self._draw([self._totals(states, now), *_running(states)], now)
        elif now - self._drawn >= BOARD_LOG_EVERY_S:
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


def _news_line(state: SlideState) -> str:
    if state.status == "failed":
        return f"failed  {state.task.name}: {state.error} ({state.attempts} attempts)"
    if state.status == "waiting":
        return f"retry   {state.task.name}: {state.error}"
    took = f"done    {state.task.name} in {duration(float(state.facts.get('seconds') or 0))}"
    return "; ".join([took, *(state.facts.get("warnings") or [])])


def _running(states: Board) -> list[str]:
    running = [state for state in states if state.status == "running"]
    lines = [f"  {state.share:4.0%}  {state.task.name}" for state in running[:SHOWN]]
    return [*lines, f"  and {len(running) - SHOWN} more"] if len(running) > SHOWN else lines
