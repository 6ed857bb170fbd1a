"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .errors import OutputError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""The file in the folder that is locked."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Make a folder, and keep other processes that ask for it out of it while the body runs.

    The lock ends with the process however that ends. Where the system has no such locks (Windows, some network file
    systems), nobody is kept out.

    Parameters
    ----------
    folder
        Made if it is not there.
    busy
        What to say if another process is in it.

    Raises
    ------
    OutputError
        If the folder cannot be made, or another process is in it.
    """
    with _locked_file(folder, busy):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)


def _locked_file(folder: Path, busy: str) -> TextIO:
    """The open lock file, locked.

    Whoever leaves the folder removes the file. One that was opened before that and locked after it keeps nobody out,
    so the file that is locked has to be the one that others will find.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("w")
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be written ({error.strerror})") from error
        try:
            _lock(file, folder, busy)
            if _is_there(file, folder):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_there(file: TextIO, folder: Path) -> bool:
    """Whether the open file is the one under its name."""
    if sys.platform == "win32":  # an open file cannot be removed
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())
    except FileNotFoundError:
        return False


def _lock(file: TextIO, folder: Path, busy: str) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(busy) from error
    except OSError as error:
        _log.debug("no file locks in %s: %s", folder, error)
