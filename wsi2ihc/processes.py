"""How processes are started, so that no file in the current folder is executed, and in words how one ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended; and whether it was killed, as systems do that are out of memory."""

    text: str
    was_killed: bool = False


def how_it_ended(code: int) -> Ended:
    """The end of a process by its exit code (negative: the signal that ended it)."""
    if code >= 0:
        return Ended(f"its process ended with code {code}")
    name = next((one.name for one in signal.Signals if one.value == -code), f"signal {-code}")
    if name == "SIGKILL":
        return Ended(f"its process was killed ({name}), most likely for want of memory", was_killed=True)
    return Ended(f"its process crashed ({name}), most likely over a damaged slide")


def python_command(module: str) -> list[str]:
    """The command that runs a module of this installation in a new process; to be used within `safe_path`."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Keep the current folder out of the module search path of every process that is started in the body.

    ``python -m`` and ``python -c``, which is how multiprocessing starts its processes, search the current folder first.
    A file named ``pickle.py`` beside somebody's slides would be executed. Other folders, those of PYTHONPATH included,
    are searched as before.
    """
    global _bodies
    with _lock:
        if _bodies == 0:
            changes = safe_environment(os.environ)
            _before.update({name: os.environ.get(name) for name in changes})
            os.environ.update(changes)
        _bodies += 1
    try:
        yield
    finally:
        with _lock:
            _bodies -= 1
            if _bodies == 0:
                _restore()


def _restore() -> None:
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()


_lock = threading.Lock()
_before: dict[str, str | None] = {}
"""What the changed variables were before the first of the bodies of `safe_path` that run now."""

_bodies = 0


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes by multiprocessing in the body: within `safe_path`, and not to be interrupted.

    Ctrl-C reaches all processes of a terminal. What it interrupts while it imports would print a traceback; the parent
    decides what becomes of its children.
    """
    with safe_path():
        if sys.platform != "win32":
            resource_tracker.ensure_running()  # else it is started in the body, and unblocks what was blocked
        with blocked("SIGINT"):
            yield


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Put off signals that end the program until the body is done, which should not take long."""
    return blocked("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def blocked(*names: str) -> Iterator[None]:
    """Put off these signals in this thread, and leave them blocked in processes that are started in the body."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in names})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def safe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set beside those of ``environment``, so that a child does not search the current folder."""
    changes = {"PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        changes["PYTHONPATH"] = _without_current_folder(environment["PYTHONPATH"])
    if sys.platform == "win32":  # which looks for programs in the current folder as well
        changes["NoDefaultCurrentDirectoryInExePath"] = "1"
    return changes


def _without_current_folder(search_path: str) -> str:
    """A search path without the entries that stand for the current folder; other relative ones become absolute.

    An empty entry is such a one, and easily made: ``PYTHONPATH=$PYTHONPATH:/opt/lib``.
    """
    kept = [part for part in search_path.split(os.pathsep) if part and os.path.normpath(part) != os.curdir]
    return os.pathsep.join(os.path.abspath(part) for part in kept)  # noqa: PTH100  # keeps symbolic links
