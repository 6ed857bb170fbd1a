"""Signals that end the program raise an exception, so that partial files and child processes are removed."""

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

    The previous handlers are restored afterwards. Outside the main thread, which alone can set handlers, this does
    nothing. Signals that the process was started to ignore, as `nohup` does, stay ignored.
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
            # None: it was set by a library in C, and cannot be restored
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Ended(SystemExit):
    """SystemExit that supports weak references."""


class _Leaving:
    """Signal handler that raises the exception, and raises it again if it was dropped.

    Destructors and callbacks of C libraries drop exceptions; the program would then continue, and ignore further
    signals. While the exception exists, further signals are ignored, so that the cleanup is not interrupted.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._error: weakref.ref[_Ended] | None = None

    def begin(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._error is None or self._error() is None:
            raise self._new(number)  # not through a variable: its own traceback would keep it alive

    def _new(self, number: int) -> _Ended:
        error = _Ended(128 + number)
        self._error = weakref.ref(error, lambda _: self._lost(number))
        return error

    def _lost(self, number: int) -> None:
        if not self.is_over:  # later, and by a signal: an exception raised here would be dropped, too
            again = threading.Timer(_AGAIN_S, self._send, (number,))
            again.daemon = True
            again.start()

    def _send(self, number: int) -> None:
        if not self.is_over:
            os.kill(os.getpid(), number)
