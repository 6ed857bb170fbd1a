"""Worker process that translates slides."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import imagecodecs

from ..atomic_files import make_folder, remove_stale_files, write_atomically
from ..concurrency import Progress, Send
from ..errors import ModelError, OutputError
from ..locks import exclusive_lock, in_use, unused
from ..models.registry import Model, load_model
from ..pyramid import read_overview as read_result
from ..slide import Slide, open_slide
from ..text import base_name, one_line_error
from ..translation.checkpoint_folder import discard_checkpoint
from ..translation.job import prepare
from ..translation.options import CHECKING, TRANSLATING, WAITING, WRITING
from ..translation.report import TranslateReport
from ..translation.translate import translate, translate_job
from .task import (
    Done,
    Failed,
    Ready,
    SlideTask,
    Started,
    Translating,
    Waiting,
    kind_of,
    locks_folder,
    read_done,
    thumbnail_path,
    write_marker,
)

CACHE_VARIABLE = "WSI2IHC_CHILD_CACHE"
"""Environment variable with the cache folder; cluster workers, whose disks differ, set it themselves."""

_IN_SEVERAL_FILES = frozenset({".dcm", ".vms", ".vmu"})
"""Formats of several files beside each other; they are not copied to the cache."""

_WITH_FOLDER = ".mrxs"
"""MIRAX stores its pixels in a folder of the same name."""

_IN_USE = "in-use"
"""File beside a copy that is locked while its process runs."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def staged(task: SlideTask, warn: Callable[[str], None]) -> Iterator[Slide]:
    """Open the slide of a task, from a copy in the cache if there is one; call ``warn`` if the copy fails."""
    with contextlib.ExitStack() as stack:
        try:
            path: str | Path = stack.enter_context(_copied(task.slide))
        except OSError as error:
            why = error.strerror or " ".join(str(error).split())[:120]
            warn(f"the slide was not cached ({why})")
            path = task.slide
        yield stack.enter_context(open_slide(path, mpp=task.mpp, series=task.series, page=task.page))


@contextlib.contextmanager
def _copied(slide: str) -> Iterator[str | Path]:
    """Copy a slide to the cache; yield the slide itself without a cache or if its format cannot be copied."""
    cache, source = os.environ.get(CACHE_VARIABLE), Path(slide)
    if not cache or "://" in slide or source.is_dir() or source.suffix.lower() in _IN_SEVERAL_FILES:
        yield slide
        return
    with tempfile.TemporaryDirectory(prefix=_prefix(os.getpid()), dir=cache, ignore_cleanup_errors=True) as folder:
        used = Path(folder, f".{_IN_USE}")
        used.touch()
        with in_use(used):
            used.rename(used.with_name(_IN_USE))  # now it is visible to others, and locked
            copy = Path(shutil.copy2(source, folder))
            if source.suffix.lower() == _WITH_FOLDER and source.with_suffix("").is_dir():
                shutil.copytree(source.with_suffix(""), copy.with_suffix(""))
            yield copy


def cache_folder(cache: Path | None) -> Path | None:
    """Return the cache folder, if any; the environment takes precedence over the option of the batch."""
    own = os.environ.get(CACHE_VARIABLE)
    return Path(own) if own else cache


def remove_old_copies(cache: Path | None) -> None:
    """Remove copies of processes that were killed."""
    folder = cache_folder(cache)
    for used in folder.glob(f"{_prefix('*')}*/{_IN_USE}") if folder else ():
        with contextlib.suppress(OutputError, OSError), unused(used, "busy"):
            shutil.rmtree(used.parent, ignore_errors=True)
            _log.info("removed %s from the cache, left behind by a killed run", used.parent.name)


def remove_leftovers_of(pid: int, tasks: Sequence[SlideTask], cache: Path | None) -> None:
    """Remove the copies and partial outputs that a worker left behind."""
    if folder := cache_folder(cache):
        for copy in folder.glob(f"{_prefix(pid)}*"):
            shutil.rmtree(copy, ignore_errors=True)
    for task in tasks:
        with contextlib.suppress(OSError):
            remove_stale_files(task.output)


def _prefix(pid: int | str) -> str:
    return f"wsi2ihc-{pid}-"


THUMBNAIL_PX = 240


def write_thumbnail(output: Path) -> None:
    """Write the thumbnail of a finished output; `OutputError` if it cannot be written."""
    content = imagecodecs.jpeg_encode(read_result(output, THUMBNAIL_PX), level=85)
    make_folder(thumbnail_path(output).parent)
    write_atomically(thumbnail_path(output), bytes(content))


MAX_IN_FLIGHT = 2
"""Slides in a worker at once: one on the device, another being prepared or written."""

THREADS_VARIABLE = "WSI2IHC_CHILD_THREADS"
"""Environment variable with the number of threads of a worker, unless a task sets it."""

_WITHOUT_DEVICE = (WAITING, WRITING, CHECKING)
"""Stages that do not need the device. Resumed translations also keep it while they are prepared."""

_PROGRESS_INTERVAL_S = 0.5
"""Interval of progress messages of a slide."""

_BUSY_POLL_S = 2.0
"""Interval at which the lock of another batch is polled."""


def serve(tasks: Iterator[SlideTask], send: Send) -> None:
    """Translate tasks until there are no more; what is unfinished then is discarded."""
    faulthandler.enable()
    queued: SimpleQueue[SlideTask] = SimpleQueue()
    device, models = threading.Semaphore(1), Models()
    for _ in range(MAX_IN_FLIGHT):
        threading.Thread(target=_work, args=(queued, device, models, send), daemon=True).start()
    send(Ready(os.environ.get("CUDA_VISIBLE_DEVICES") or "all devices"))
    for task in tasks:
        queued.put(task)


def _work(tasks: SimpleQueue[SlideTask], device: threading.Semaphore, models: Models, send: Send) -> None:
    while True:
        task = tasks.get()
        send(Started(task.number))
        try:
            done = translate_task(task, device, models, send)
        except BaseException as error:
            kind = kind_of(error)
            known = (task.slide, task.output, task.model, task.options.tissue, os.environ.get(CACHE_VARIABLE, ""))
            send(Failed(task.number, kind, one_line_error(error, *known)))
            if kind == "crash":
                os._exit(1)
        else:
            send(done)


def translate_task(task: SlideTask, device: threading.Semaphore, models: Models, send: Send) -> Done:
    """Translate one slide, unless it is done; return its event.

    ``device`` is held while windows are translated, and released while the file is written or other processes are
    awaited.

    Raises
    ------
    Wsi2IhcError
        As `wsi2ihc.translate` does.
    """
    with _output_lock(task, send), ExitStack() as stack:
        if (known := read_done(task)) is not None:
            return Done(task.number, known, is_new=False)
        warnings: list[str] = []
        slide = stack.enter_context(staged(task, warnings.append))
        workers = task.options.workers or int(os.environ.get(THREADS_VARIABLE, "0"))
        options, generator = replace(task.options, workers=workers), models.load(task)
        job = None if options.resume else prepare(slide, generator, options)
        lease = stack.enter_context(DeviceLease(device, lambda is_waiting: send(Waiting(task.number, is_waiting))))
        watch = _progress_callback(task.number, lease, send)
        if job is None:
            report = translate(slide, generator, task.output, options, progress=watch)
        else:
            report = translate_job(job, task.output, progress=watch)
            discard_checkpoint(task.output)  # of an earlier run with --resume
        facts = _facts(report, warnings)
        try:
            write_thumbnail(task.output)
        except Exception as error:  # a missing thumbnail is not an error
            _log.warning("no thumbnail of %s: %s", task.name, one_line_error(error, task.output))
        write_marker(task, facts, report.output_sha256)
        return Done(task.number, facts)


class Models:
    """Loaded models, shared by the threads of a worker."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Model] = {}
        self._lock = threading.Lock()

    def load(self, task: SlideTask) -> Model:
        """Return the model of a task; `ModelError` if its file has changed since the batch began."""
        with self._lock:
            key = task.model, task.version
            if key not in self._known:
                generator = load_model(task.model)
                if generator.version != task.version:
                    raise ModelError(
                        f"the model {base_name(task.model)} has changed since the batch began; start the batch again"
                    )
                self._known = {key: generator}  # one at a time bounds memory
            return self._known[key]


class DeviceLease:
    """Exclusive use of the device; released after the last window and acquired again if needed.

    ``on_wait`` is called with True when waiting begins, and with False when it ends.
    """

    def __init__(self, device: threading.Semaphore, on_wait: Callable[[bool], None]) -> None:
        self._device, self._on_wait, self._held = device, on_wait, False

    def __enter__(self) -> DeviceLease:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Wait for the device, unless it is held."""
        if not self._held:
            self._on_wait(True)
            self._device.acquire()
            self._held = True
            self._on_wait(False)

    def release(self) -> None:
        """Release the device."""
        if self._held:
            self._held = False
            self._device.release()


def _progress_callback(number: int, lease: DeviceLease, send: Send) -> Callable[[Progress], None]:
    """Return a progress callback that sends events and holds the device only in the stages that need it."""
    reported_at = 0.0

    def watch(progress: Progress) -> None:
        nonlocal reported_at
        if progress.stage in _WITHOUT_DEVICE:
            lease.release()
        if progress.stage != TRANSLATING:
            return
        if progress.done >= progress.total > 0:
            lease.release()
        else:
            lease.acquire()
        now = time.monotonic()
        if now - reported_at >= _PROGRESS_INTERVAL_S:
            reported_at = now
            send(Translating(number, progress.done, progress.total))

    return watch


@contextlib.contextmanager
def _output_lock(task: SlideTask, send: Send) -> Iterator[None]:
    """Lock an output against other batches; wait for the one that is translating it."""
    is_waiting = False

    def on_wait() -> None:
        nonlocal is_waiting
        if not is_waiting:
            is_waiting = True
            send(Waiting(task.number, is_waiting=True))

    busy = f"another batch is translating {task.name}"
    folder = locks_folder(task.output.parent)
    with exclusive_lock(folder, busy, task.name, timeout_s=math.inf, poll_s=_BUSY_POLL_S, on_wait=on_wait):
        if is_waiting:
            send(Waiting(task.number, is_waiting=False))
        yield


def _facts(report: TranslateReport, warnings: Sequence[str]) -> dict[str, Any]:
    """Return the results of a slide for the table, without paths; ``warnings`` precede those of the report."""
    return {
        "seconds": round(sum(report.seconds[part] for part in ("tissue", "model", "run")), 2),
        "mpx": round(report.plan["kept_px"] / 1e6, 2),
        "mpx_per_s": round(report.mpx_per_s, 2),
        "tissue_share": round(report.tissue_share, 4),
        "seam_z": None if report.seams is None or report.seams.z is None else round(report.seams.z, 2),
        "device": report.device,
        "precision": report.precision,
        "warnings": [*warnings, *report.warnings],
    }
