"""The check before a batch begins: every slide is opened, every model read, and all that is wrong reported together."""

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
from ..processes import how_it_ended, python_command, safe_environment
from .check_child import THREADS, row_to_json
from .manifest import Problem, Row
from .places import BATCH_FOLDER
from .task import SlideTask

CHECK_S = 300.0
"""Longest time to open one slide."""

_LOOK_S = 0.5

_HEADROOM_BYTES = 5 << 30
"""What the process may have beyond ``--max-memory``: the largest plain image, and the libraries."""

_PROGRAM = python_command("wsi2ihc.batch.check_child")

_log = logging.getLogger(__name__)


def check_rows(
    rows: Sequence[Row], folder: Path, listed: Sequence[Row], on_checked: Callable[[int], None] = lambda _count: None
) -> tuple[list[SlideTask], list[Problem]]:
    """Open every slide, and find out whether it can be translated as far as its header and its model tell.

    That is done in a process of its own (`check_child`). A row that crashes it, or takes too long, has a problem; the
    others are checked by the next process.

    Parameters
    ----------
    rows
        Without clashes.
    folder
        Of the outputs.
    listed
        All rows of the list, of which these may be a shard: none of their slides may be replaced.
    on_checked
        Told how many rows have been looked at.

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
        self._in_hand: dict[int, float | None] = {}
        self._alone: int | None = None
        self._checker: _Checker | None = None

    def results(self) -> Generator[tuple[int, SlideTask | Problem], None, None]:
        """Indices of rows with what came of them, as they are checked."""
        try:
            while self._waiting or self._suspects or self._in_hand:
                self._hand_out()
                assert self._checker is not None
                answer = self._checker.answer(_LOOK_S)
                if answer is not None:
                    yield from self._heard(answer)
                elif self._checker.has_ended:
                    yield from self._lost(how_it_ended(self._checker.end()).text)
                elif (overdue := self._overdue()) is not None:
                    self._checker.end()
                    del self._in_hand[overdue]
                    self._requeue()
                    yield overdue, self._problem(overdue, f"opening it took more than {CHECK_S / 60:g} minutes")
        finally:
            if self._checker is not None:
                self._checker.end()

    def _hand_out(self) -> None:
        if self._checker is None:
            self._checker = _Checker(self._common)
        while self._waiting and len(self._in_hand) < THREADS:
            self._give(self._waiting.popleft())
        if self._suspects and not self._in_hand:
            self._alone = self._suspects.popleft()
            self._give(self._alone)

    def _give(self, index: int) -> None:
        assert self._checker is not None
        self._in_hand[index] = None
        self._checker.ask({"index": index, "row": row_to_json(self._rows[index])})

    def _heard(self, answer: Mapping[str, Any]) -> Iterator[tuple[int, SlideTask | Problem]]:
        index = answer["index"]
        if "began" in answer:
            self._in_hand[index] = time.monotonic()
            return
        del self._in_hand[index]
        if "task" in answer:
            yield index, SlideTask.from_json(answer["task"])
        elif answer["is_memory"] and index != self._alone:
            self._suspects.append(index)
        else:
            yield index, self._problem(index, answer["problem"])

    def _lost(self, how: str) -> Iterator[tuple[int, Problem]]:
        """The process has ended by itself: a row that was the only one being checked is the cause."""
        if len(self._in_hand) == 1:
            (index,) = self._in_hand
            self._in_hand.clear()
            yield index, self._problem(index, f"it cannot be opened: {how}")
        self._requeue()

    def _requeue(self) -> None:
        """Check the rows that were being checked again, one at a time."""
        self._suspects.extend(self._in_hand)
        self._in_hand.clear()
        self._checker = None

    def _overdue(self) -> int | None:
        now = time.monotonic()
        return next((index for index, began in self._in_hand.items() if began and now - began > CHECK_S), None)

    def _problem(self, index: int, message: str) -> Problem:
        row = self._rows[index]
        return Problem(row.line, row.name, message, row.output)


class _Checker:
    """A process that checks rows, as its parent holds it."""

    def __init__(self, common: Mapping[str, Any]) -> None:
        # each library thread takes address space that the limit counts
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        shown = None if _log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL
        self._process = subprocess.Popen(
            _PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=shown,
            env={**os.environ, **single, **safe_environment(os.environ)}, start_new_session=True,
        )  # fmt: skip
        self._answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self.has_ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.ask(common)

    def ask(self, facts: Mapping[str, Any]) -> None:
        """Write a line. If the process is gone already, the end of its pipe tells."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps(facts) + "\n").encode())
            self._process.stdin.flush()

    def answer(self, timeout_s: float) -> dict[str, Any] | None:
        """The next answer; None if there is none for so long, or the process has ended."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except Empty:
            return None
        self.has_ended = answer is None
        return answer

    def end(self) -> int:
        """End it; its exit code, which is its own if it has ended by itself."""
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
                self._answers.put(json.loads(line))
        self._answers.put(None)


def check_folder(folder: Path) -> None:
    """Make the output folder, if it is not there.

    Raises
    ------
    OutputError
        If it cannot be made or written.
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
        raise OutputError(f"{linked[0]} is a symbolic link, which leads elsewhere; remove it")


def check_writable(folder: Path) -> None:
    """Find out whether the output folder can be made and written, without doing so.

    Raises
    ------
    OutputError
        If it cannot.
    """
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} cannot be written; name another output folder")


def _inputs(rows: Sequence[Row]) -> frozenset[str]:
    """What must never be replaced: slides, models and masks, by their real paths."""
    named = [path for row in rows for path in (row.slide, row.model, str(row.options.tissue)) if "://" not in path]
    return frozenset(os.path.realpath(path) for path in named if _exists(path))


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False
