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
        _lock(opened, file.parent, f"{file.parent} is being removed by another run: run again", shared=True)
        yield opened


@contextlib.contextmanager
def unused(file: Path, busy: str) -> Iterator[None]:
    """Make sure that nobody has a file `in_use` while the body runs.

    Raises
    ------
    OutputBusyError
        If somebody has.
    OSError
        If there is no such file.
    """
    with file.open("r+", encoding="utf-8") as opened:
        _lock(opened, file.parent, busy)
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
            _lock(file, folder, busy)
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


def _lock(file: TextIO, folder: Path, busy: str, *, shared: bool = False) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputBusyError(busy) from error
    except OSError as error:
        _log.debug("no file locks in %s: %s", folder, error)
