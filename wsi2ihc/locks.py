"""Locks on folders and files, which end with their process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from .errors import OutputBusyError, OutputError
from .files import open_without_following

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""Name of the lock file in a folder."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive_lock(
    folder: Path,
    busy: str,
    name: str = LOCK,
    *,
    make: bool = True,
    timeout_s: float = 0.0,
    poll_s: float = 0.2,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Lock a folder against other processes that lock it, while the body runs.

    The lock ends with the process, however that ends. Systems without such locks (Windows, some network file systems)
    exclude no process; a warning says so, once for each file system.

    Parameters
    ----------
    folder
        Folder to lock; it is created unless ``make`` is False.
    busy
        Message of the error if another process holds the lock.
    name
        Name of the lock file in the folder. Locks of different names are independent.
    timeout_s
        Seconds to wait for a process that holds the lock; `math.inf` waits until it ends.
    poll_s
        Seconds between two attempts.
    on_wait
        Called before each pause.

    Yields
    ------
    bool
        Whether other processes are excluded; False on file systems without locks.

    Raises
    ------
    OutputBusyError
        If another process holds the lock for longer than the timeout.
    OutputError
        If the folder cannot be created, or the lock file is not a regular file.
    """
    until = time.monotonic() + timeout_s
    while (locked := _locked_file(folder, folder / name, make)) is None:
        if time.monotonic() >= until:
            raise OutputBusyError(busy)
        on_wait()
        time.sleep(poll_s)
    file, is_exclusive = locked
    with file:
        try:
            yield is_exclusive
        finally:
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def in_use(file: Path) -> Iterator[TextIO]:
    """Hold a shared lock on an existing file while the body runs.

    Raises
    ------
    OutputBusyError
        If another process is removing the file (see `unused`).
    OSError
        If the file does not exist.
    """
    with _opened(file, os.O_RDWR) as opened:
        if try_lock(opened, shared=True) is False:
            raise OutputBusyError(f"{file.parent} is being removed by another run: run again")
        yield opened


@contextlib.contextmanager
def unused(file: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on an existing file while the body runs, so that no process has it `in_use`.

    Raises
    ------
    OutputBusyError
        If another process uses the file.
    OutputError
        If the file system has no locks, so that the file may be in use.
    OSError
        If the file does not exist.
    """
    with _opened(file, os.O_RDWR) as opened:
        is_locked = try_lock(opened)
        if is_locked is None:
            raise OutputError(
                f"{file.parent}: its file system has no locks, so another run may use it; remove it if none does"
            )
        if not is_locked:
            raise OutputBusyError(busy)
        yield


def _locked_file(folder: Path, path: Path, make: bool) -> tuple[TextIO, bool] | None:
    """Open a lock file and lock it, if the file system has locks.

    The process that holds the lock removes the file at the end. A file that was opened before and locked after its
    removal excludes no process, so the locked file must be the one that the folder still has.

    Returns
    -------
    file, is_locked
        None if another process holds the lock.
    """
    while True:
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            file = _opened(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or not os.path.lexists(path):
                raise OutputError(f"the folder {folder} cannot be written ({error.strerror})") from error
            raise OutputError(f"{path} cannot be locked ({error.strerror}); remove it") from error
        with contextlib.ExitStack() as stack:
            stack.enter_context(file)
            is_locked = try_lock(file)
            if is_locked is False:
                return None
            if not is_there(file, path):
                continue
            status = os.fstat(file.fileno())
            if status.st_size:  # it must not be removed at the end
                raise OutputError(f"{path} has the name of a lock file, but is another file; move it elsewhere")
            if is_locked is None and status.st_dev not in _without_locks:
                _without_locks.add(status.st_dev)
                _log.warning(
                    "the file system of %s has no locks: make sure that no other run writes the same output", folder
                )
            stack.pop_all()
            return file, is_locked is True


_without_locks: set[int] = set()
"""File systems for which the warning was logged."""


def _opened(path: Path, flags: int) -> TextIO:
    return os.fdopen(open_without_following(path, flags), "r+", encoding="utf-8")


def is_there(file: TextIO, path: Path) -> bool:
    """Whether an open file still has its name, and was neither removed nor replaced."""
    if sys.platform == "win32":  # an open file cannot be removed
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def try_lock(file: int | TextIO, *, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed or the process ends.

    Returns
    -------
    bool or None
        True if the file is locked, False if another process holds the lock, None if the file system has no locks (some
        network file systems). Always True on Windows, where open files can be neither removed nor renamed.
    """
    if sys.platform == "win32":
        return True
    try:
        if not shared:
            from filelock import lock_descriptor  # takes 50 ms to import

            return lock_descriptor(file if isinstance(file, int) else file.fileno(), blocking=False)
        # filelock's shared locks are SQLite databases, not locks of an existing file
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("no file locks here: %s", error)
        return None
    return True
