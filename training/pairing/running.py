"""The jobs of all slides, and how far they are."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from wsi2ihc.errors import OutputError
from wsi2ihc.progress import Progress, ProgressCallback
from wsi2ihc.runtime import cores

from .children import Ended, Work, run_in_children
from .jobs import Doing, Noted, SlideJob
from .words import patches

MOST_AT_ONCE = 8
"""Pairs that are worked on at once where nobody says: each takes up to some 700 MB. Slides that are plain
images come on top, with 3 bytes for each of their px, and 7 while they are opened."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: why it failed ("" if it did not), and doubts, one sentence each."""

    failure: str = ""
    notes: tuple[str, ...] = ()


def run_jobs(
    work: Work, jobs: Sequence[SlideJob], workers: int, progress: ProgressCallback, stage: str
) -> dict[str, Outcome]:
    """Do all jobs, at most ``workers`` at once (0: as many as there are cores, up to `MOST_AT_ONCE`).

    Progress is told as that of a ``stage`` (what is done, for people).

    Returns
    -------
    dict
        Of each slide.

    Raises
    ------
    OutputError
        If the data set cannot be written. The other jobs are then stopped.
    """
    ended: dict[str, Outcome] = {}
    notes: dict[str, list[str]] = defaultdict(list)
    board = _Board([job.pair.slide for job in jobs], progress, stage)
    at_once = min(workers or min(cores(), MOST_AT_ONCE), max(1, len(jobs)))
    messages = run_in_children(work, jobs, board.slides, at_once)
    with contextlib.closing(messages):
        for number, message in messages:
            slide = board.slides[number]
            if isinstance(message, Doing):
                board.does(slide, message)
            elif isinstance(message, Noted):
                notes[slide].append(message.text)
            elif isinstance(message, Ended):
                if message.fatal:
                    raise OutputError(message.failure)
                if message.failure:
                    _log.info("%s failed: %s", slide, message.failure)
                ended[slide] = Outcome(message.failure, tuple(notes[slide]))
                board.ends(slide, bool(message.failure))
    return ended


class _Board:
    """Who does what at the moment, as one line."""

    def __init__(self, slides: Sequence[str], progress: ProgressCallback, stage: str) -> None:
        self.slides = slides
        self._progress, self._stage = progress, stage
        self._doing: dict[str, Doing] = {}
        self._kept: dict[str, int] = {}
        self._done = self._failed = 0

    def does(self, slide: str, doing: Doing) -> None:
        self._doing[slide] = doing
        self._kept[slide] = doing.kept
        self._show()

    def ends(self, slide: str, has_failed: bool) -> None:
        self._doing.pop(slide, None)
        self._done += 1
        if has_failed:
            self._failed += 1
            self._kept.pop(slide, None)
        self._show()

    def _show(self) -> None:
        kept = f"{patches(sum(self._kept.values()))} kept" if self._kept else ""
        if len(self.slides) == 1:  # then nothing can be told from pairs that are done
            for slide, doing in self._doing.items():
                what, share = f"{slide}: {doing.what.split(',')[0]}", round(100 * doing.share)
                self._progress(Progress(what, share, 100, unit="step", note=kept if doing.kept else ""))
            return
        running = [f"{slide} {doing.what} {doing.share:.0%}" for slide, doing in self._doing.items()]
        failed = f"{self._failed} failed" if self._failed else ""
        note = "; ".join(filter(None, (kept, failed, ", ".join(running[:4]), "…" if len(running) > 4 else "")))
        self._progress(Progress(self._stage, self._done, len(self.slides), unit="pair", note=note))
