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

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""The file in the folder that is locked."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, busy: str, name: str = LOCK, *, make: bool = True) -> Iterator[None]:
    """Make a folder, and keep other processes that ask for it out of it while the body runs.

    The lock ends with the process however that ends. Where the system has no such locks (Windows, some network file
    systems), nobody is kept out.

    Parameters
    ----------
    folder
        Made if it is not there, unless ``make`` is False.
    busy
        What to say if another process is in it.
    name
        Of the file in the folder that is locked: another one keeps another piece of work to oneself.

    Raises
    ------
    OutputBusyError
        If another process is in it.
    OutputError
        If the folder cannot be made.
    """
    with _locked_file(folder, busy, name, make):
        try:
            yield
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
    with file.open("r+", encoding="utf-8") as opened:
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
    with file.open("r+", encoding="utf-8") as opened:
        held = try_lock(opened)
        if held is None:
            raise OutputError(
                f"{file.parent}: its file system cannot tell whether a run uses it; remove it if none does"
            )
        if not held:
            raise OutputBusyError(busy)
        yield


def _locked_file(folder: Path, busy: str, name: str, make: bool) -> TextIO:
    """The open lock file, locked.

    Whoever leaves the folder removes the file. One that was opened before that and locked after it keeps nobody out,
    so the file that is locked has to be the one that others will find.
    """
    while True:
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            file = (folder / name).open("w")
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be written ({error.strerror})") from error
        try:
            if try_lock(file) is False:
                raise OutputBusyError(busy)
            if is_there(file, folder / name):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


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
