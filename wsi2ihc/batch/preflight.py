"""Preflight checks: open every slide and model, and report all problems at once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..concurrency import END_TIMEOUT_S, Send, WorkerProcess
from ..errors import OutputError, Wsi2IhcError
from ..models.registry import describe_generator
from ..slide import known_mpp, open_slide
from ..slide.readers.image_reader import memory_to_open
from ..system import how_it_ended
from ..text import one_line_error
from ..tissue import load_mask
from .slide_manifest import Problem, Row
from .task import BATCH_FOLDER, SlideTask

CHECK_S = 300.0
"""Longest time to open one slide."""

_POLL_S = 0.5

_HEADROOM_BYTES = 5 << 30
"""Memory of the process beyond ``--max-memory``, for the largest plain image and the libraries."""

_THREADS = 8
"""Threads that read headers: on network file systems, each header takes some tenths of a second."""

_OF_GEOJSON = 12
"""Bytes of memory per byte of GeoJSON while it is read (measured: 9 to 11)."""

_OF_PNG_MASK = 4
"""Bytes of memory per byte of a mask in PNG; its size is bounded where it is read."""

_OUT_OF_MEMORY = "out of memory while it was opened; raise --max-memory, or convert it to a tiled TIFF"

_log = logging.getLogger(__name__)


def check_rows(
    rows: Sequence[Row], folder: Path, listed: Sequence[Row], on_checked: Callable[[int], None] = lambda _count: None
) -> tuple[list[SlideTask], list[Problem]]:
    """Check by header and model whether the slides of rows can be translated; return tasks and problems in their order.

    Slides are opened in a worker process. A row that crashes it or takes too long has a problem; a new process checks
    the other rows. The outputs of rows are distinct, and must not replace a slide of ``listed``, all rows of the
    manifest. ``on_checked`` is called with the number of checked rows.
    """
    found: dict[int, SlideTask | Problem] = {}
    memory_bytes = max((row.options.max_memory_bytes for row in rows), default=0)
    with contextlib.closing(_Checks(rows, (folder, _inputs(listed), memory_bytes)).results()) as results:
        for count, (index, result) in enumerate(results, 1):
            found[index] = result
            on_checked(count)
    ordered = [found[index] for index in range(len(rows))]
    tasks = [one for one in ordered if isinstance(one, SlideTask)]
    problems = [one for one in ordered if isinstance(one, Problem)]
    return [dataclasses.replace(task, number=number) for number, task in enumerate(tasks)], problems


class _Checks:
    """The checks of some rows, by one process after another.

    Of several rows that were being checked when a process ended, the cause is not known: each is checked again, alone.
    """

    def __init__(self, rows: Sequence[Row], settings: tuple[Path, Set[str], int]) -> None:
        self._rows, self._settings = rows, settings
        self._waiting = deque(range(len(rows)))
        self._suspects: deque[int] = deque()
        self._in_flight: dict[int, float | None] = {}
        self._alone: int | None = None
        self._worker: WorkerProcess | None = None
        self._received: SimpleQueue[tuple[int, SlideTask | Problem | None] | None] = SimpleQueue()

    def results(self) -> Generator[tuple[int, SlideTask | Problem], None, None]:
        """Iterate over the indices of rows and their results as they are checked."""
        try:
            while self._waiting or self._suspects or self._in_flight:
                worker = self._worker = self._worker or self._start()
                self._fill(worker)
                try:
                    message = self._received.get(timeout=_POLL_S)
                except Empty:
                    if (overdue := self._overdue()) is not None:
                        worker.end()
                        del self._in_flight[overdue]
                        self._requeue()
                        yield overdue, self._problem(overdue, f"opening it took more than {CHECK_S / 60:g} minutes")
                    continue
                if message is None:
                    yield from self._handle_exit(how_it_ended(worker.end(END_TIMEOUT_S)).text)
                else:
                    yield from self._handle(*message)
        finally:
            if self._worker is not None:
                self._worker.end()

    def _start(self) -> WorkerProcess:
        # each library thread takes address space that the limit counts
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        shown = None if _log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL
        self._received = SimpleQueue()
        worker = WorkerProcess(serve, self._received.put, single, shown)
        worker.send(self._settings)
        return worker

    def _fill(self, worker: WorkerProcess) -> None:
        given: list[int] = []
        while self._waiting and len(self._in_flight) + len(given) < _THREADS:
            given.append(self._waiting.popleft())
        if self._suspects and not self._in_flight and not given:
            self._alone = self._suspects.popleft()
            given.append(self._alone)
        for index in given:
            self._in_flight[index] = None
            worker.send((index, self._rows[index]))

    def _handle(self, index: int, result: SlideTask | Problem | None) -> Iterator[tuple[int, SlideTask | Problem]]:
        if result is None:  # its check starts
            self._in_flight[index] = time.monotonic()
            return
        del self._in_flight[index]
        if isinstance(result, Problem) and result.message == _OUT_OF_MEMORY and index != self._alone:
            self._suspects.append(index)
        else:
            yield index, result

    def _handle_exit(self, how: str) -> Iterator[tuple[int, Problem]]:
        """Handle a process that ended by itself: a row that was the only one being checked is the cause."""
        if len(self._in_flight) == 1:
            (index,) = self._in_flight
            self._in_flight.clear()
            yield index, self._problem(index, f"it cannot be opened: {how}")
        self._requeue()

    def _requeue(self) -> None:
        """Check the rows that were being checked again, one at a time."""
        self._suspects.extend(self._in_flight)
        self._in_flight.clear()
        self._worker = None

    def _overdue(self) -> int | None:
        now = time.monotonic()
        return next((index for index, began in self._in_flight.items() if began and now - began > CHECK_S), None)

    def _problem(self, index: int, message: str) -> Problem:
        row = self._rows[index]
        return Problem(row.line, row.name, message, row.output)


def serve(messages: Iterator[Any], send: Send) -> None:
    """Check rows in a worker process.

    The first message holds the folder of the outputs, paths that they must not replace, and a bound of the memory; the
    others are rows by index. Each index is sent twice: with None when its
    check starts, then with the result.
    """
    folder, inputs, memory_bytes = next(messages)
    limit_memory(memory_bytes + _HEADROOM_BYTES)
    budget = MemoryBudget(memory_bytes)
    waiting: SimpleQueue[tuple[int, Row]] = SimpleQueue()

    def work() -> None:
        while True:
            index, row = waiting.get()
            try:
                with budget.held(memory_of(row)):
                    send((index, None))
                    found = check_row(row, folder, inputs)
                send((index, found))
            except BaseException:  # else the parent would wait forever for a result
                os._exit(1)

    for _ in range(_THREADS):
        threading.Thread(target=work, daemon=True).start()
    for message in messages:
        waiting.put(message)


class MemoryBudget:
    """Bytes that threads share. A request for more than the total takes all of it, for one thread alone."""

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, wanted_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and reserve them while the body runs."""
        taken = min(wanted_bytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


def check_row(row: Row, folder: Path, inputs: Set[str]) -> SlideTask | Problem:
    """Check, by the header of a slide and its model, whether it can be translated.

    Any exception becomes the problem of this row. ``inputs`` are real paths that outputs must not replace.
    """
    try:
        return _checked(row, folder, inputs)
    except MemoryError:
        message = _OUT_OF_MEMORY
    except _RefusedRowError as refusal:
        message = str(refusal)
    except Exception as error:
        message = one_line_error(error, row.slide, row.model, row.options.tissue, folder / row.output)
    return Problem(row.line, row.name, message, row.output)


class _RefusedRowError(Wsi2IhcError):
    """Reason why a row cannot be translated."""


def _checked(row: Row, folder: Path, inputs: Set[str]) -> SlideTask:
    output, tissue, region = folder / row.output, row.options.tissue, row.options.region
    if os.path.realpath(output) in inputs:
        raise _RefusedRowError("its output is a slide of this list; name another output, or folder")
    if (output.exists() or output.is_symlink()) and not output.is_file():
        raise _RefusedRowError(f"its output {row.output} exists and is not a file; remove it, or name another output")
    version = _model_version(row.model)
    with open_slide(
        row.slide,
        mpp=row.mpp,
        mpp_option="--mpp or the column mpp",
        image_option="the column {}",
        series=row.series,
        page=row.page,
    ) as slide:
        known_mpp(slide.info)
        facts = slide.info
        if tissue not in ("auto", "none"):
            load_mask(tissue, slide)
        if region is not None and region.intersection(facts.bounds).is_empty:
            raise _RefusedRowError(f"the region {region} lies outside the slide")
    source = f"{facts.name} {facts.quickhash} {facts.size} {'' if facts.changed_at is None else facts.changed_at}"
    options = dataclasses.replace(row.options, overwrite=True, preview=None)
    return SlideTask(0, row.slide, output, row.model, row.mpp, options, source, version, row.series, row.page)


def memory_of(row: Row) -> int:
    """Estimate the most bytes that the check of a row takes, from its files; 0 if few."""
    total, tissue = 0, row.options.tissue
    if "://" not in row.slide:
        total += memory_to_open(Path(row.slide))
    with contextlib.suppress(OSError, ValueError):
        if tissue not in ("auto", "none"):
            factor = _OF_PNG_MASK if Path(tissue).suffix.lower() == ".png" else _OF_GEOJSON
            total += factor * Path(tissue).stat().st_size
    return total


def limit_memory(limit_bytes: int) -> None:
    """Limit the private memory of this process, if the system supports that."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, most)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, most))


_versions: dict[str, str] = {}
_versions_lock = threading.Lock()


def _model_version(model: str) -> str:
    """Version of a model, read once although many rows share it."""
    with _versions_lock:
        if model not in _versions:
            _versions[model] = describe_generator(model).version
        return _versions[model]


def check_folder(folder: Path) -> None:
    """Create the output folder if it does not exist; `OutputError` if it cannot be created or written."""
    try:
        (folder / BATCH_FOLDER).mkdir(parents=True, exist_ok=True)
        for where in (folder, folder / BATCH_FOLDER):
            probe = where / f".writable-{secrets.token_hex(4)}"
            probe.touch(exist_ok=False)
            probe.unlink(missing_ok=True)
        linked = [where for where in (folder / BATCH_FOLDER, *(folder / BATCH_FOLDER).iterdir()) if where.is_symlink()]
    except OSError as error:
        where = error.filename or folder
        raise OutputError(f"{where} cannot be written ({error.strerror}); name another output folder") from error
    if linked:
        raise OutputError(f"{linked[0]} is a symbolic link, which is not allowed; remove it")


def check_writable(folder: Path) -> None:
    """Check that the output folder can be created and written, without doing so; `OutputError` if it cannot."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} cannot be written; name another output folder")


def _inputs(rows: Sequence[Row]) -> frozenset[str]:
    """Return the real paths of slides, models and masks, which outputs must not replace."""
    named = [path for row in rows for path in (row.slide, row.model, str(row.options.tissue)) if "://" not in path]
    return frozenset(os.path.realpath(path) for path in named if _exists(path))


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False
