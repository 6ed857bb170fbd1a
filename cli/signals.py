"""Signals that end the program: it leaves by way of an exception, so that partial files and processes are removed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_NAMES = ("SIGTERM", "SIGHUP")
"""SIGINT is an exception already. Windows has no SIGHUP."""


@contextlib.contextmanager
def cleaned_up_when_ended() -> Iterator[None]:
    """Raise SystemExit (128 + the signal) in the body when the process is terminated or its terminal is closed.

    The handlers that were there are put back. In a thread other than the main one, which cannot set any, nothing is
    done; a signal that the process was started to ignore, as `nohup` does, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was set by a library in C, and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    raise SystemExit(128 + number)
