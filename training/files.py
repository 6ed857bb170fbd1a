"""Files of a run: written in one piece, or growing by whole pieces."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from wsi2ihc.errors import OutputError
from wsi2ihc.files import open_without_following
from wsi2ihc.pyramid import published


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a file beside it; what is there is replaced.

    Raises
    ------
    OutputError
        If the file system refuses, for instance since the disk is full; ``path`` is then as it was.
    """
    try:
        with published(path, overwrite=True) as partial:
            partial.write_bytes(content)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


class GrowingFile:
    """A file that grows by pieces, each of which is in it as a whole or not at all.

    It is not buffered: what cannot be written fails at once, and nothing of it is tried again on closing.

    Parameters
    ----------
    path
        Of a file, which is made if it is not there.

    Raises
    ------
    OutputError
        If the file system refuses, then or later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._handle = open_without_following(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, content: bytes) -> None:
        """Write one piece at the end."""
        if self._handle < 0:
            raise ValueError(f"{self._path} is closed")
        try:
            size = os.fstat(self._handle).st_size
        except OSError as error:
            raise cannot_write(self._path, error) from error
        try:
            while content:
                content = content[os.write(self._handle, content) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, size)
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file; once closed, do nothing."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            try:
                os.close(handle)
            except OSError as error:
                raise cannot_write(self._path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if it is not there.

    Raises
    ------
    OutputError
        If the file system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The one line for a file that cannot be written."""
    return OutputError(f"cannot write {path}: {error.strerror or error}; free some space or write elsewhere")
