"""A child as its parent holds it: a process, what it has in hand, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..files import open_without_following
from ..processes import Ended, python_command, safe_environment
from ..text import printable
from .events import Began, Done, Event, Failed, Ready, Returned, Turned, from_line
from .privacy import anonymous
from .task import SlideTask

Hear = Callable[[int, Event | None], None]
"""Takes the number of a child and its event; None when its pipe has ended."""

_KNOWN_TASKS = 8
"""Slides whose paths are known when a line of the log is written: those in hand, and some before them."""

_LONGEST_LINE = 1 << 16
"""Bytes of a line of the log, after which it is broken."""

_PATIENCE_S = 10.0
"""For a child whose stdin was closed."""


class Child:
    """One child process.

    Parameters
    ----------
    number
        Tells it from other children.
    hear
        Called by a thread with every event.
    environment
        Variables beside those of this process.
    log
        File to which what it prints is appended.
    """

    def __init__(self, number: int, hear: Hear, environment: Mapping[str, str], log: Path) -> None:
        self.number = number
        self.in_hand: dict[int, SlideTask] = {}
        self._clocks: dict[int, _Clock] = {}
        self.is_spoiled = False
        self.given = 0
        self.is_ready = False
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = os.fdopen(open_without_following(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
        try:
            self._process = subprocess.Popen(
                python_command("wsi2ihc.batch.child"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, **environment, **safe_environment({**os.environ, **environment})},
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            stream.close()
            raise
        self._paths: deque[tuple[str, ...]] = deque(maxlen=_KNOWN_TASKS)
        self._keeper = threading.Thread(target=self._keep_log, args=(stream,), daemon=True)
        self._keeper.start()
        self._listener = threading.Thread(target=self._listen, args=(hear,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, task: SlideTask) -> None:
        """Hand over a slide. If the child is gone already, its pipe's end tells."""
        self._paths.append((task.slide, str(task.output), task.model, str(task.options.tissue)))
        self.in_hand[task.number] = task
        self.given += 1
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps(task.to_json()) + "\n").encode())
            self._process.stdin.flush()

    def overdue(self, timeout_s: float) -> SlideTask | None:
        """A slide that has been worked on for too long. What it waits for counts for nothing, nor does the start."""
        if timeout_s:
            for number, clock in self._clocks.items():
                if clock.seconds() > timeout_s:
                    return self.in_hand[number]
        return None

    def hear(self, event: Event) -> None:
        """Take note of what is in hand and for how long, and of whether the process is of use."""
        if isinstance(event, Ready):
            self.is_ready = True
        elif isinstance(event, Began) and event.number in self.in_hand:
            self._clocks[event.number] = _Clock(0.0, time.monotonic())
        elif isinstance(event, Turned) and event.number in self._clocks:
            self._clocks[event.number].turn(event.is_waiting)
        elif isinstance(event, Done | Failed):
            self.in_hand.pop(event.number, None)
            self._clocks.pop(event.number, None)
            self.is_spoiled = self.is_spoiled or (isinstance(event, Failed) and event.kind == "crash")

    def end(self, *, now: bool = False) -> int:
        """Let it end, or make it; its exit code (negative: the signal that ended it)."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if now:
            self._process.kill()
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for thread in (self._listener, self._keeper):
            thread.join(_PATIENCE_S)  # its pipe has ended with the process
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return code

    def losses(self, how: Ended, to_blame: int | None = None) -> list[Event]:
        """What becomes of the slides in hand now that the child is gone.

        One that is named is to blame, and so is one that was alone in a child that was of use. Of two, nobody knows;
        and where another one has spoiled the device, or the child never began, it is none of them.
        """
        numbers = list(self.in_hand)
        self.in_hand.clear()
        if to_blame is not None:
            return [
                Failed(to_blame, "timeout", how.text),
                *(Returned(number, how.text) for number in numbers if number != to_blame),
            ]
        if len(numbers) == 1 and self.is_ready and not self.is_spoiled:
            return [Failed(numbers[0], "memory" if how.was_killed else "crash", how.text)]
        return [Returned(number, how.text) for number in numbers]

    def _keep_log(self, log: BinaryIO) -> None:
        """Append what the process prints to its log, without folders and names: the log lies among the outputs."""
        assert self._process.stderr is not None
        with log, contextlib.suppress(OSError, ValueError):
            while line := self._process.stderr.readline(_LONGEST_LINE):
                known = [path for paths in list(self._paths) for path in paths]
                text = anonymous(line.decode("utf-8", "replace").rstrip("\r\n"), *known)
                with contextlib.suppress(OSError):  # the disk is full; the process must not wait for it
                    log.write(f"{printable(text)}\n".encode())
                    log.flush()

    def _listen(self, hear: Hear) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                if (event := from_line(line.decode("utf-8", "replace"))) is not None:
                    hear(self.number, event)
        hear(self.number, None)


@dataclass(slots=True)
class _Clock:
    """How long a slide has been worked on: seconds up to now, and since when again, if it is."""

    spent_s: float
    since: float | None

    def seconds(self) -> float:
        return self.spent_s + (0.0 if self.since is None else time.monotonic() - self.since)

    def turn(self, is_waiting: bool) -> None:
        self.spent_s, self.since = self.seconds(), None if is_waiting else time.monotonic()
