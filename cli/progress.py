"""Progress on stderr: one line that redraws itself on a terminal, now and then a line in a log file."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from wsi2ihc.cli.output import screen, tell
from wsi2ihc.progress import Progress

BAR_CHARACTERS = 24
REDRAW_S = 0.1
LOG_EVERY_S = 30.0


@dataclass(slots=True)
class ProgressBar:
    """Draws `Progress` events: stage, share, rate, time left, and what else there is to tell."""

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
    """Seconds as a person says them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
