"""The process that translates slide after slide: ``python -m wsi2ihc.batch.child``, told what to do through its stdin.

It lives long: torch is imported and the device is set up once. Two slides are in its hands at most: while one is
translated, the next is opened and its tissue found; and while the last rows of one are written and the file is checked,
the device has begun with the next. It ends when its stdin does, so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from ..errors import OutputError
from ..generator.model import Generator
from ..generator.registry import load_generator
from ..locks import locked
from ..progress import Progress
from ..slide import Slide, open_slide
from ..translation.pipeline import prepare, run
from ..translation.report import TranslateReport
from .events import Began, Done, Event, Failed, Ready, Translating, kind_of, to_line, told
from .marker import read_done, write_marker
from .task import DONE_FOLDER, SlideTask
from .thumbnail import write_thumbnail

Say = Callable[[Event], None]

IN_HAND = 2
"""Slides that a child works on at once: one on the device, one before or behind it."""

_PAUSE_S = 0.5
"""Between two messages of progress of a slide."""

_BUSY_S = 2.0
"""Between two looks at a slide that another batch is translating."""


def main() -> None:
    """Translate what comes through stdin, a task a line, until it ends."""
    faulthandler.enable()
    say = _private_stdout()
    tasks: SimpleQueue[SlideTask] = SimpleQueue()
    device = threading.Semaphore(1)
    for _ in range(IN_HAND):
        threading.Thread(target=_work, args=(tasks, device, say), daemon=True).start()
    say(Ready(os.environ.get("CUDA_VISIBLE_DEVICES") or "all devices"))
    for line in sys.stdin:
        tasks.put(SlideTask.from_json(json.loads(line)))
    os._exit(0)  # the parent is gone or wants no more; what is under way is worth nothing to anybody


def _private_stdout() -> Say:
    """Keep stdout for events: what libraries print goes to stderr."""
    stream: TextIO = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(event: Event) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            stream.write(to_line(event) + "\n")

    return say


def _work(tasks: SimpleQueue[SlideTask], device: threading.Semaphore, say: Say) -> None:
    while True:
        task = tasks.get()
        say(Began(task.number))
        try:
            facts = translate_task(task, device, say)
        except BaseException as error:
            kind = kind_of(error)
            say(Failed(task.number, kind, told(error)))
            if kind == "crash":
                os._exit(1)
        else:
            say(Done(task.number, facts))


def translate_task(task: SlideTask, device: threading.Semaphore, say: Say) -> dict[str, Any]:
    """Translate one slide, unless it is done by now; the facts of its marker.

    Parameters
    ----------
    task
        What to do.
    device
        Held while windows are translated; it is free for the next slide while the file is being finished.
    say
        Told of progress.

    Raises
    ------
    Wsi2IhcError
        As `wsi2ihc.translate` does.
    """
    with _alone(task), ExitStack() as stack:
        if (known := read_done(task)) is not None:
            return known
        slide = stack.enter_context(_staged(task))
        job = prepare(slide, _generator(task.model), replace(task.options, overwrite=True))
        turn = stack.enter_context(_Turn(device))
        report = run(job, task.output, progress=_watched(task.number, turn, say))
        facts = _facts(report)
        write_thumbnail(task.output)
        write_marker(task, facts)
        return facts


class _Turn:
    """One's turn on the device; given back early, when the last window is translated."""

    def __init__(self, device: threading.Semaphore) -> None:
        self._device, self._held = device, False

    def __enter__(self) -> _Turn:
        self._device.acquire()
        self._held = True
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Let the next slide begin."""
        if self._held:
            self._held = False
            self._device.release()


def _watched(number: int, turn: _Turn, say: Say) -> Callable[[Progress], None]:
    told_at = 0.0

    def watch(progress: Progress) -> None:
        nonlocal told_at
        if progress.stage != "translating":
            turn.give_back()
            return
        now = time.monotonic()
        if now - told_at >= _PAUSE_S:
            told_at = now
            say(Translating(number, progress.done, progress.total))
        if progress.done >= progress.total > 0:
            turn.give_back()

    return watch


@contextlib.contextmanager
def _alone(task: SlideTask) -> Iterator[None]:
    """Keep other batches off this output; wait while one of them is at it."""
    folder = task.output.parent / DONE_FOLDER / "locks" / task.name
    busy = f"another batch is translating {task.name}"
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder, busy))
                break
            except OutputError as error:
                if str(error) != busy:
                    raise
                time.sleep(_BUSY_S)
        yield


@contextlib.contextmanager
def _staged(task: SlideTask) -> Iterator[Slide]:
    """The open slide; read from a copy on a local disk where a cache is named. The copy is removed afterwards."""
    cache = os.environ.get(CACHE_VARIABLE)
    if not cache or "://" in task.slide:
        with open_slide(task.slide, mpp=task.mpp) as slide:
            yield slide
        return
    folder = Path(cache) / f"wsi2ihc-{os.getpid()}-{task.number}"
    source = Path(task.slide)
    try:
        folder.mkdir(parents=True)
        shutil.copy2(source, folder / source.name)
        if (companion := source.with_suffix("")).is_dir():  # MIRAX keeps its pixels in a folder of the same name
            shutil.copytree(companion, folder / companion.name)
        with open_slide(folder / source.name, mpp=task.mpp) as slide:
            yield slide
    finally:
        shutil.rmtree(folder, ignore_errors=True)


CACHE_VARIABLE = "WSI2IHC_BATCH_CACHE"


@lru_cache(maxsize=4)
def _generator(model: str) -> Generator:
    return load_generator(model)


def _facts(report: TranslateReport) -> dict[str, Any]:
    """What the table of results has of a slide; no paths."""
    return {
        "seconds": round(sum(report.seconds[part] for part in ("tissue", "model", "run")), 2),
        "mpx": round(report.plan["kept_px"] / 1e6, 2),
        "mpx_per_s": round(report.mpx_per_s, 2),
        "tissue_share": round(report.tissue_share, 4),
        "seam_z": None if report.seams is None or report.seams.z is None else round(report.seams.z, 2),
        "device": report.device,
        "precision": report.precision,
        "warnings": list(report.warnings),
    }


if __name__ == "__main__":
    main()
