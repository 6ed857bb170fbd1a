"""One process at a time in a folder, or at one piece of work in it; and which files are in use."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .errors import OutputBusyError, OutputError
from .files import open_without_following

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""The file in the folder that is locked."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, busy: str, name: str = LOCK, *, make: bool = True) -> Iterator[bool]:
    """Make a folder, and keep other processes that ask for it out of it while the body runs.

    The lock ends with the process however that ends. Where the system has no such locks (Windows, some network file
    systems), nobody is kept out; a warning says so, once for each file system.

    Parameters
    ----------
    folder
        Made if it is not there, unless ``make`` is False.
    busy
        What to say if another process is in it.
    name
        Of the file in the folder that is locked: another one keeps another piece of work to oneself.

    Yields
    ------
    bool
        Whether other processes are kept out; False where nobody can tell.

    Raises
    ------
    OutputBusyError
        If another process is in it.
    OutputError
        If the folder cannot be made, or what has the name of the lock file is not one.
    """
    file, is_kept = _locked_file(folder, busy, name, make)
    with file:
        try:
            yield is_kept
        finally:
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def in_use(file: Path) -> Iterator[TextIO]:
    """Mark a file that is there as in use while the body runs, by this process and by as many others as like to.

    Raises
    ------
    OutputBusyError
        If somebody removes it (see `unused`).
    OSError
        If there is no such file.
    """
    with _opened(file, os.O_RDWR) as opened:
        if try_lock(opened, shared=True) is False:
            raise OutputBusyError(f"{file.parent} is being removed by another run: run again")
        yield opened


@contextlib.contextmanager
def unused(file: Path, busy: str) -> Iterator[None]:
    """Make sure that nobody has a file `in_use` while the body runs.

    Raises
    ------
    OutputBusyError
        If somebody has.
    OutputError
        If nobody can tell: rather is something left than taken away from somebody.
    OSError
        If there is no such file.
    """
    with _opened(file, os.O_RDWR) as opened:
        held = try_lock(opened)
        if held is None:
            raise OutputError(
                f"{file.parent}: its file system cannot tell whether a run uses it; remove it if none does"
            )
        if not held:
            raise OutputBusyError(busy)
        yield


def _locked_file(folder: Path, busy: str, name: str, make: bool) -> tuple[TextIO, bool]:
    """The open lock file, and whether it is locked (else nobody can tell).

    Whoever leaves the folder removes the file. One that was opened before that and locked after it keeps nobody out,
    so the file that is locked has to be the one that others will find.
    """
    while True:
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            file = _opened(folder / name, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or not os.path.lexists(folder / name):
                raise OutputError(f"the folder {folder} cannot be written ({error.strerror})") from error
            raise OutputError(f"{folder / name} cannot be locked ({error.strerror}); remove it") from error
        try:
            held = try_lock(file)
            if held is False:
                raise OutputBusyError(busy)
            if is_there(file, folder / name):
                _check_lock_file(file, folder / name)
                if held is None:
                    _warn_once(file, folder)
                return file, held is True
        except BaseException:
            file.close()
            raise
        file.close()


def _opened(path: Path, flags: int) -> TextIO:
    return os.fdopen(open_without_following(path, flags), "r+", encoding="utf-8")


def _check_lock_file(file: TextIO, path: Path) -> None:
    """Refuse a file with content: lock files have none, and are removed in the end."""
    if os.fstat(file.fileno()).st_size:
        raise OutputError(f"{path} has the name of a lock file and is something else; move it elsewhere")


def _warn_once(file: TextIO, folder: Path) -> None:
    device = os.fstat(file.fileno()).st_dev
    if device not in _without_locks:
        _without_locks.add(device)
        _log.warning("the file system of %s has no locks: see that no other run writes the same output", folder)


_without_locks: set[int] = set()
"""File systems of which that was said."""


def is_there(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one under its name, and not one that was removed or replaced."""
    if sys.platform == "win32":  # an open file cannot be removed
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def try_lock(file: int | TextIO, *, shared: bool = False) -> bool | None:
    """Lock an open file for this process, until it is closed or the process ends, however that ends.

    Returns
    -------
    bool or None
        True if done, False if another process holds it, None if nobody can tell (some network file systems). On Windows
        it is always done: there are no such locks, but what a process holds open is neither removed nor renamed.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("no file locks here: %s", error)
        return None
    return True
