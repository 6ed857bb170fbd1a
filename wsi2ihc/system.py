"""Cores, memory and library versions; safe start of Python processes."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import resource_tracker
from pathlib import Path

VERSIONED = ("wsi2ihc", "numpy", "scipy", "opencv-python-headless", "pillow", "imagecodecs", "openslide-python",
             "openslide-bin", "tiffslide", "tifffile")  # fmt: skip
"""Distributions whose versions can change pixels, transforms or files."""


def cores() -> int:
    """Return the number of cores available to this process, which containers and SLURM limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory available without swapping, or None if the system does not report it.

    This is "MemAvailable" of Linux, which includes the file cache, limited by the control groups of this process (as
    in containers and under SLURM). "MemFree" would be close to zero on a machine that has read some files.
    """
    found = [_number_after("MemAvailable:", root / "proc/meminfo"), *_left_by_groups(root)]
    known = [amount for amount in found if amount is not None]
    return min(known) if known else None


def _left_by_groups(root: Path) -> Iterator[int | None]:
    """Yield the memory left by each control group of this process and its parents (versions 1 and 2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            names = "memory.max", "memory.current", "inactive_file "
            mounted = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "
            mounted = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = mounted / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mounted):
                break
            yield _left_by(folder, *names)


def _left_by(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """Return the limit of a group minus its usage, without the file cache that can be dropped."""
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if not (most.isdecimal() and now.isdecimal()):  # no limit, or no such group in this namespace
        return None
    return max(0, int(most) - int(now) + (_number_after(cached, folder / "memory.stat", unit=1) or 0))


def _number_after(name: str, path: Path, unit: int = 1024) -> int | None:
    for line in _text(path).splitlines():
        if line.startswith(name):
            words = line.removeprefix(name).split()
            return unit * int(words[0]) if words and words[0].isdecimal() else None
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and the installed distributions of `VERSIONED` and ``more``."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONED, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended, and whether it was killed (as systems do that are out of memory)."""

    text: str
    was_killed: bool = False


def how_it_ended(code: int) -> ProcessEnd:
    """Describe the end of a process by its exit code (negative: the signal that ended it)."""
    if code >= 0:
        return ProcessEnd(f"its process ended with code {code}")
    name = next((one.name for one in signal.Signals if one.value == -code), f"signal {-code}")
    if name == "SIGKILL":
        return ProcessEnd(f"its process was killed ({name}), most likely because memory ran out", was_killed=True)
    return ProcessEnd(f"its process crashed ({name}), most likely over a damaged slide")


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this installation in a new process, to be started in `safe_path`."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Remove the current folder from the module search path of every process that is started in the body.

    ``python -m`` and ``python -c``, which multiprocessing uses, search the current folder first. A file named
    ``pickle.py`` beside the slides would be executed. Other folders, including those of PYTHONPATH, are searched as
    before.
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
                for name, value in _before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                _before.clear()


_lock = threading.Lock()
_before: dict[str, str | None] = {}  # values of the changed variables before the first active body of `safe_path`

_bodies = 0


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes of multiprocessing in the body, in `safe_path` and with SIGINT blocked.

    Ctrl-C reaches all processes of a terminal. One that is interrupted while it imports would print a traceback; the
    parent ends its workers instead.
    """
    with safe_path():
        if sys.platform != "win32":
            resource_tracker.ensure_running()  # else it starts in the body and unblocks the signal
        with blocked("SIGINT"):
            yield


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Delay signals that end the program until the body, which should be short, has finished."""
    return blocked("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def blocked(*names: str) -> Iterator[None]:
    """Block these signals in this thread and in processes that are started in the body."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in names})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def safe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables with which a new process does not search the current folder for modules."""
    changes = {"PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        changes["PYTHONPATH"] = _without_current_folder(environment["PYTHONPATH"])
    if sys.platform == "win32":  # which looks for programs in the current folder as well
        changes["NoDefaultCurrentDirectoryInExePath"] = "1"
    return changes


def _without_current_folder(search_path: str) -> str:
    """Remove the entries of a search path that mean the current folder; make other relative entries absolute.

    An empty entry, as in ``PYTHONPATH=$PYTHONPATH:/opt/lib``, means the current folder.
    """
    kept = [part for part in search_path.split(os.pathsep) if part and os.path.normpath(part) != os.curdir]
    return os.pathsep.join(os.path.abspath(part) for part in kept)  # noqa: PTH100  # keeps symbolic links
