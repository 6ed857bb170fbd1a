"""The process that translates slide after slide: ``python -m wsi2ihc.batch.child``, told what to do through its stdin.

It lives long: torch is imported and the device is set up once. Two slides are in its hands at most: while one is
translated, the next is opened and its tissue found; and while the last rows of one are written and the file is checked,
the device has begun with the next. It ends when its stdin does, so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, TextIO

from ..bands import discard_store, translate
from ..errors import ModelError, OutputBusyError
from ..generator.model import Generator
from ..generator.registry import load_generator
from ..locks import locked
from ..progress import Progress
from ..translation.pipeline import prepare, run
from ..translation.report import TranslateReport
from ..translation.stage_names import CHECKING, TRANSLATING, WAITING, WRITING
from .events import Began, Done, Event, Failed, Ready, Translating, Turned, kind_of, to_line
from .marker import read_done, write_marker
from .places import locks_folder
from .privacy import base_name, told
from .staging import CACHE_VARIABLE, staged
from .task import SlideTask
from .thumbnail import write_thumbnail

Say = Callable[[Event], None]

IN_HAND = 2
"""Slides that a child works on at once: one on the device, one before or behind it."""

THREADS_VARIABLE = "WSI2IHC_CHILD_THREADS"
"""How many threads a child may read and encode with, where its tasks do not say."""

_WITHOUT_DEVICE = (WAITING, WRITING, CHECKING)
"""Stages in which the next slide can have the device. Others keep it: who resumes prepares in its turn."""

_PAUSE_S = 0.5
"""Between two messages of progress of a slide."""

_BUSY_S = 2.0
"""Between two looks at a slide that another batch is translating."""

_log = logging.getLogger(__name__)


def main() -> None:
    """Translate what comes through stdin, a task a line, until it ends."""
    faulthandler.enable()
    say = _private_stdout()
    tasks: SimpleQueue[SlideTask] = SimpleQueue()
    device, models = threading.Semaphore(1), Models()
    for _ in range(IN_HAND):
        threading.Thread(target=_work, args=(tasks, device, models, say), daemon=True).start()
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


def _work(tasks: SimpleQueue[SlideTask], device: threading.Semaphore, models: Models, say: Say) -> None:
    while True:
        task = tasks.get()
        say(Began(task.number))
        try:
            done = translate_task(task, device, models, say)
        except BaseException as error:
            kind = kind_of(error)
            known = (task.slide, task.output, task.model, task.options.tissue, os.environ.get(CACHE_VARIABLE, ""))
            say(Failed(task.number, kind, told(error, *known)))
            if kind == "crash":
                os._exit(1)
        else:
            say(done)


def translate_task(task: SlideTask, device: threading.Semaphore, models: Models, say: Say) -> Done:
    """Translate one slide, unless it is done by now; what to tell of it.

    Parameters
    ----------
    task
        What to do.
    device
        Held while windows are translated; it is free for the next slide while the file is being finished, or others
        are waited for.
    models
        Loaded before.
    say
        Told of progress, and of waiting.

    Raises
    ------
    Wsi2IhcError
        As `wsi2ihc.translate` does.
    """
    with _alone(task, say), ExitStack() as stack:
        if (known := read_done(task)) is not None:
            return Done(task.number, known, is_new=False)
        doubts: list[str] = []
        slide = stack.enter_context(staged(task, doubts.append))
        workers = task.options.workers or int(os.environ.get(THREADS_VARIABLE, "0"))
        options, generator = replace(task.options, workers=workers), models.load(task)
        job = None if options.resume else prepare(slide, generator, options)
        turn = stack.enter_context(_Turn(device, lambda is_waiting: say(Turned(task.number, is_waiting))))
        watch = _watched(task.number, turn, say)
        if job is None:
            report = translate(slide, generator, task.output, options, progress=watch)
        else:
            report = run(job, task.output, progress=watch)
            discard_store(task.output)  # of a run that was to be resumed, and needs not be any more
        facts = _facts(report, doubts)
        try:
            write_thumbnail(task.output)
        except Exception as error:  # a small picture is not worth a translation
            _log.warning("no thumbnail of %s: %s", task.name, told(error, task.output))
        write_marker(task, facts, report.output_sha256)
        return Done(task.number, facts)


class Models:
    """Generators that are loaded: one of each, whichever thread needs it first."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Generator] = {}
        self._lock = threading.Lock()

    def load(self, task: SlideTask) -> Generator:
        """The generator of a task.

        Raises
        ------
        ModelError
            If it is no more the one that was there when the batch began.
        """
        with self._lock:
            key = task.model, task.version
            if key not in self._known:
                generator = load_generator(task.model)
                if generator.version != task.version:
                    raise ModelError(
                        f"the model {base_name(task.model)} has changed since the batch began; start the batch again"
                    )
                self._known = {key: generator}  # batches of many models are given by model, so one is enough
            return self._known[key]


class _Turn:
    """One's turn on the device; given back early, when the last window is translated, and taken again if need be.

    ``tell`` is told when one begins to wait for it (True), and when one has it (False).
    """

    def __init__(self, device: threading.Semaphore, tell: Callable[[bool], None]) -> None:
        self._device, self._tell, self._held = device, tell, False

    def __enter__(self) -> _Turn:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def take(self) -> None:
        """Wait until the device is free, unless one has it."""
        if not self._held:
            self._tell(True)
            self._device.acquire()
            self._held = True
            self._tell(False)

    def give_back(self) -> None:
        """Let the next slide begin."""
        if self._held:
            self._held = False
            self._device.release()


def _watched(number: int, turn: _Turn, say: Say) -> Callable[[Progress], None]:
    """Tell how far a slide is; give the turn back where the slide does not need it, and take it again where it does."""
    told_at = 0.0

    def watch(progress: Progress) -> None:
        nonlocal told_at
        if progress.stage in _WITHOUT_DEVICE:
            turn.give_back()
        if progress.stage != TRANSLATING:
            return
        if progress.done >= progress.total > 0:
            turn.give_back()
        else:
            turn.take()
        now = time.monotonic()
        if now - told_at >= _PAUSE_S:
            told_at = now
            say(Translating(number, progress.done, progress.total))

    return watch


@contextlib.contextmanager
def _alone(task: SlideTask, say: Say) -> Iterator[None]:
    """Keep other batches off this output; wait while one of them is at it."""
    with ExitStack() as stack:
        is_waiting = False
        while True:
            try:
                busy = f"another batch is translating {task.name}"
                stack.enter_context(locked(locks_folder(task.output.parent), busy, task.name))
                break
            except OutputBusyError:
                if not is_waiting:
                    is_waiting = True
                    say(Turned(task.number, is_waiting=True))
                time.sleep(_BUSY_S)
        if is_waiting:
            say(Turned(task.number, is_waiting=False))
        yield


def _facts(report: TranslateReport, doubts: Sequence[str]) -> dict[str, Any]:
    """What the table of results has of a slide; no paths. ``doubts``: warnings beside those of the report."""
    return {
        "seconds": round(sum(report.seconds[part] for part in ("tissue", "model", "run")), 2),
        "mpx": round(report.plan["kept_px"] / 1e6, 2),
        "mpx_per_s": round(report.mpx_per_s, 2),
        "tissue_share": round(report.tissue_share, 4),
        "seam_z": None if report.seams is None or report.seams.z is None else round(report.seams.z, 2),
        "device": report.device,
        "precision": report.precision,
        "warnings": [*doubts, *report.warnings],
    }


if __name__ == "__main__":
    main()
