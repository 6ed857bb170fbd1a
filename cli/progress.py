"""Progress on stderr: a progress bar, or the board of a batch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi2ihc.concurrency import Progress
from wsi2ihc.text import printable

from .console import print_err, screen

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from wsi2ihc.batch.scheduler import SlideState, SlideStates

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
        speed = self._speed(progress, now - self._stage_started)
        if self._terminal:
            _draw(progress, speed)
        else:
            print_err(_log_line(progress, speed))

    def close(self) -> None:
        """Remove the bar."""
        screen.clear()

    def _speed(self, progress: Progress, elapsed_s: float) -> str:
        """Return rate and remaining time; "" at first."""
        done = progress.done - self._stage_first  # a stage can be entered again, or start in the middle
        if done <= 0 or elapsed_s <= 0.5:
            return ""
        rate = done / elapsed_s
        speed = f"{rate / 1e6:.2f} Mpx/s" if progress.unit == "px" else f"{rate:.3g} {progress.unit}s/s"
        return f"{speed}, {duration((progress.total - progress.done) / rate)} left"


def _draw(progress: Progress, speed: str) -> None:
    from rich.console import Group

    if progress.total <= 1:
        screen.draw(_text(progress.stage))
        return
    bar = _bars([(progress.stage, progress.done / progress.total, speed)])
    screen.draw(Group(bar, _text(progress.note, "dim")) if progress.note else bar)


def _log_line(progress: Progress, speed: str) -> str:
    if progress.total <= 1:
        return progress.stage
    share = progress.done / progress.total
    filled = round(share * BAR_CHARACTERS)
    bar = f"{progress.stage} [{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}] {share:4.0%}"
    return " ".join(filter(None, (bar, speed, progress.note and f"({progress.note})")))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(text), style, overflow="fold", no_wrap=False)


def _bars(rows: Iterable[tuple[str, float, str]]) -> Table:
    """Return rows of a name, a bar with its percentage, and text; names and bars shrink to fit the terminal."""
    from rich.progress_bar import ProgressBar as Bar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for _ in range(4):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for column in table.columns[:2]:
        column.no_wrap = False  # rich shrinks these first
    for name, share, text in rows:
        shown = Text(printable(name), no_wrap=True)
        bar = Bar(1.0, share, width=BAR_CHARACTERS, complete_style="cyan", finished_style="green")
        table.add_row(shown, bar, f"{share:4.0%}", Text(printable(text)))
    return table


def duration(seconds: float) -> str:
    """Format seconds: 0.2 s, 42 s, 3 min 05 s, 2 h 10 min."""
    if 0.05 <= seconds < 0.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def file_size(size_bytes: int) -> str:
    """Format the size of a file: 85 kB, 3.2 MB."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB"


BATCH_REDRAW_S = 0.2
BATCH_LOG_EVERY_S = 60.0
SHOWN = 8
"""Number of running slides that are shown."""


@dataclass(slots=True)
class BatchDisplay:
    """Display of the progress of a batch on stderr."""

    quiet: bool = False
    _started: float = field(default_factory=time.monotonic)
    _drawn: float = 0.0
    _terminal: bool = field(default_factory=lambda: screen.is_terminal)

    def note(self, text: str) -> None:
        """Show a temporary line, on terminals only."""
        now = time.monotonic()
        if not self.quiet and self._terminal and now - self._drawn >= BATCH_REDRAW_S:
            screen.draw(_text(text))
            self._drawn = now

    def show(self, states: SlideStates, news: SlideState | None) -> None:
        """Show the progress of all slides; ``news``: a slide that has ended or is retried."""
        if self.quiet:
            return
        now = time.monotonic()
        if news is not None:
            print_err(_news_line(news))
        is_news = self._terminal and news is not None
        if not is_news and now - self._drawn < (BATCH_REDRAW_S if self._terminal else BATCH_LOG_EVERY_S):
            return
        self._drawn = now
        if self._terminal:
            self._draw(states, now)
        else:
            print_err(self._totals(states, now))

    def _draw(self, states: SlideStates, now: float) -> None:
        from rich.console import Group

        running = [state for state in states if state.status == "running"]
        bars = _bars((state.task.name, state.share, "") for state in running[:SHOWN])
        more = [_text(f"and {len(running) - SHOWN} more")] if len(running) > SHOWN else []
        screen.draw(Group(_text(self._totals(states, now)), bars, *more))

    def _totals(self, states: SlideStates, now: float) -> str:
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


def _news_line(state: SlideState) -> str:
    if state.status == "failed":
        return f"failed  {state.task.name}: {state.error} ({state.attempts} attempts)"
    if state.status == "waiting":
        return f"retry   {state.task.name}: {state.error}"
    took = f"done    {state.task.name} in {duration(float(state.facts.get('seconds') or 0))}"
    return "; ".join([took, *(state.facts.get("warnings") or [])])
