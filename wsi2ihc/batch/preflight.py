"""Preflight checks: open every slide and model, and report all problems at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import OutputError
from ..system import how_it_ended, python_command, safe_environment
from .preflight_worker import THREADS, row_to_json
from .slide_manifest import Problem, Row
from .task import BATCH_FOLDER, SlideTask

CHECK_S = 300.0
"""Longest time to open one slide."""

_POLL_S = 0.5

_HEADROOM_BYTES = 5 << 30
"""Memory of the process beyond ``--max-memory``, for the largest plain image and the libraries."""

_PROGRAM = python_command("wsi2ihc.batch.preflight_worker")

_log = logging.getLogger(__name__)


def check_rows(
    rows: Sequence[Row], folder: Path, listed: Sequence[Row], on_checked: Callable[[int], None] = lambda _count: None
) -> tuple[list[SlideTask], list[Problem]]:
    """Check by header and model whether the slides of rows can be translated.

    Slides are opened in a worker process. A row that crashes it or takes too long has a problem; a new process checks
    the other rows.

    Parameters
    ----------
    rows
        Rows with distinct outputs.
    folder
        Folder of the outputs.
    listed
        All rows of the manifest, of which ``rows`` may be a shard; outputs must not replace their slides.
    on_checked
        Called with the number of checked rows.

    Returns
    -------
    tasks, problems
        In the order of the rows.
    """
    found: dict[int, SlideTask | Problem] = {}
    memory_bytes = max((row.options.max_memory_bytes for row in rows), default=0)
    common = {
        "folder": str(folder), "inputs": sorted(_inputs(listed)),
        "memory_bytes": memory_bytes, "limit_bytes": memory_bytes + _HEADROOM_BYTES,
    }  # fmt: skip
    with contextlib.closing(_Checks(rows, common).results()) as results:
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

    def __init__(self, rows: Sequence[Row], common: Mapping[str, Any]) -> None:
        self._rows, self._common = rows, common
        self._waiting = deque(range(len(rows)))
        self._suspects: deque[int] = deque()
        self._in_flight: dict[int, float | None] = {}
        self._alone: int | None = None
        self._checker: _Checker | None = None

    def results(self) -> Generator[tuple[int, SlideTask | Problem], None, None]:
        """Iterate over the indices of rows and their results as they are checked."""
        try:
            while self._waiting or self._suspects or self._in_flight:
                self._fill()
                assert self._checker is not None
                message = self._checker.next_result(_POLL_S)
                if message is not None:
                    yield from self._handle(message)
                elif self._checker.has_ended:
                    yield from self._handle_exit(how_it_ended(self._checker.end()).text)
                elif (overdue := self._overdue()) is not None:
                    self._checker.end()
                    del self._in_flight[overdue]
                    self._requeue()
                    yield overdue, self._problem(overdue, f"opening it took more than {CHECK_S / 60:g} minutes")
        finally:
            if self._checker is not None:
                self._checker.end()

    def _fill(self) -> None:
        if self._checker is None:
            self._checker = _Checker(self._common)
        while self._waiting and len(self._in_flight) < THREADS:
            self._give(self._waiting.popleft())
        if self._suspects and not self._in_flight:
            self._alone = self._suspects.popleft()
            self._give(self._alone)

    def _give(self, index: int) -> None:
        assert self._checker is not None
        self._in_flight[index] = None
        self._checker.ask({"index": index, "row": row_to_json(self._rows[index])})

    def _handle(self, message: Mapping[str, Any]) -> Iterator[tuple[int, SlideTask | Problem]]:
        index = message["index"]
        if "began" in message:
            self._in_flight[index] = time.monotonic()
            return
        del self._in_flight[index]
        if "task" in message:
            yield index, SlideTask.from_json(message["task"])
        elif message["is_memory"] and index != self._alone:
            self._suspects.append(index)
        else:
            yield index, self._problem(index, message["problem"])

    def _handle_exit(self, how: str) -> Iterator[tuple[int, Problem]]:
        """Handle a process that ended by itself: if a single row was being checked, it is the cause."""
        if len(self._in_flight) == 1:
            (index,) = self._in_flight
            self._in_flight.clear()
            yield index, self._problem(index, f"it cannot be opened: {how}")
        self._requeue()

    def _requeue(self) -> None:
        """Check the rows that were being checked again, one at a time."""
        self._suspects.extend(self._in_flight)
        self._in_flight.clear()
        self._checker = None

    def _overdue(self) -> int | None:
        now = time.monotonic()
        return next((index for index, began in self._in_flight.items() if began and now - began > CHECK_S), None)

    def _problem(self, index: int, message: str) -> Problem:
        row = self._rows[index]
        return Problem(row.line, row.name, message, row.output)


class _Checker:
    """Worker process that checks rows."""

    def __init__(self, common: Mapping[str, Any]) -> None:
        # each library thread takes address space that the limit counts
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        shown = None if _log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL
        self._process = subprocess.Popen(
            _PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=shown,
            env={**os.environ, **single, **safe_environment(os.environ)}, start_new_session=True,
        )  # fmt: skip
        self._results: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.has_ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.ask(common)

    def ask(self, facts: Mapping[str, Any]) -> None:
        """Send a message. If the process has ended, the end of its pipe reports it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps(facts) + "\n").encode())
            self._process.stdin.flush()

    def next_result(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next result; None after the timeout or if the process has ended."""
        try:
            message = self._results.get(timeout=timeout_s)
        except Empty:
            return None
        self.has_ended = message is None
        return message

    def end(self) -> int:
        """End the process and return its exit code."""
        if not self.has_ended:
            self._process.kill()
        code = self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return code

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._results.put(json.loads(line))
        self._results.put(None)


def check_folder(folder: Path) -> None:
    """Create the output folder if it does not exist.

    Raises
    ------
    OutputError
        If it cannot be created or written.
    """
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
    """Check whether the output folder can be created and written, without doing so.

    Raises
    ------
    OutputError
        If it cannot.
    """
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
