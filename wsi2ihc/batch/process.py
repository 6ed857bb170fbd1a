"""A child as its parent holds it: a process, what it has in hand, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .events import Event, Failed, Ready, Returned, from_line
from .task import SlideTask

Hear = Callable[[int, Event | None], None]
"""Takes the number of a child and its event; None when its pipe has ended."""

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
        self.in_hand: dict[int, SlideTask] = {}  # in the order in which they were given
        self._since: float | None = None  # when the first of them began to be worked on
        self.given = 0
        self.is_ready = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wsi2ihc.batch.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, args=(hear,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, task: SlideTask) -> None:
        """Hand over a slide. If the child is gone already, its pipe's end tells."""
        self.in_hand[task.number] = task
        self.given += 1
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps(task.to_json()) + "\n").encode())
            self._process.stdin.flush()

    def overdue(self, timeout_s: float) -> SlideTask | None:
        """The slide that is worked on, if it takes too long. What the child takes to start counts for none."""
        if not timeout_s or self._since is None or time.monotonic() - self._since <= timeout_s:
            return None
        return next(iter(self.in_hand.values()), None)

    def begin(self, number: int) -> None:
        """A slide is worked on; behind another one it waits for the device, which does not count."""
        if self._since is None and next(iter(self.in_hand), None) == number:
            self._since = time.monotonic()

    def leave(self, number: int) -> None:
        """A slide is out of its hands; the time of the next one begins now."""
        was_first = next(iter(self.in_hand), None) == number
        self.in_hand.pop(number, None)
        if was_first:
            self._since = time.monotonic() if self.in_hand else None

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
        self._listener.join(_PATIENCE_S)  # its pipe has ended with the process
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def losses(self, why: str, to_blame: int | None = None) -> list[Event]:
        """What becomes of the slides in hand now that the child is gone.

        One that was alone is to blame, and so is the one that is named. Of two, nobody knows.
        """
        numbers = list(self.in_hand)
        self.in_hand.clear()
        if to_blame is not None:
            return [
                Failed(to_blame, "timeout", why),
                *(Returned(number, why) for number in numbers if number != to_blame),
            ]
        if len(numbers) == 1:
            return [Failed(numbers[0], "memory" if "killed" in why else "crash", why)]
        return [Returned(number, why) for number in numbers]

    def _listen(self, hear: Hear) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                if (event := from_line(line.decode("utf-8", "replace"))) is not None:
                    self.is_ready = self.is_ready or isinstance(event, Ready)
                    hear(self.number, event)
        hear(self.number, None)


def how_it_ended(code: int) -> str:
    """The end of a process in words."""
    if code >= 0:
        return f"its process ended with code {code}"
    name = next((one.name for one in signal.Signals if one.value == -code), f"signal {-code}")
    if name == "SIGKILL":
        return "its process was killed (SIGKILL), most likely for want of memory"
    return f"its process crashed ({name}), most likely over a damaged slide"
