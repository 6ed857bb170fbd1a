"""Signals that end the program: it leaves by way of an exception, so that partial files and processes are removed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")
"""SIGINT is an exception already. Windows has no SIGHUP."""

_AGAIN_S = 0.1


@contextlib.contextmanager
def cleaned_up_when_ended() -> Iterator[None]:
    """Raise SystemExit (128 + the signal) in the body when the process is terminated or its terminal is closed.

    The handlers that were there are put back. In a thread other than the main one, which cannot set any, nothing is
    done; a signal that the process was started to ignore, as `nohup` does, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, leaving = {}, _Leaving()
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, leaving.begin)
    try:
        yield
    finally:
        leaving.is_over = True
        for number, handler in before.items():
            # None: it was set by a library in C, and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Ended(SystemExit):
    """As its base class, which takes no weak references."""


class _Leaving:
    """Raises the exception, and raises it again where it gets lost.

    It can be raised within a destructor or a callback of a library in C, which drop it; the program would go on, and
    not be ended by another signal of the kind. As long as the exception exists, further signals change nothing, so that
    the cleaning up is not interrupted.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._error: weakref.ref[_Ended] | None = None

    def begin(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._error is None or self._error() is None:
            raise self._new(number)  # no variable holds it, or its own traceback would keep it alive

    def _new(self, number: int) -> _Ended:
        error = _Ended(128 + number)
        self._error = weakref.ref(error, lambda _: self._lost(number))
        return error

    def _lost(self, number: int) -> None:
        if not self.is_over:  # later, and from outside: what is raised here would be lost again
            again = threading.Timer(_AGAIN_S, self._send, (number,))
            again.daemon = True
            again.start()

    def _send(self, number: int) -> None:
        if not self.is_over:
            os.kill(os.getpid(), number)
