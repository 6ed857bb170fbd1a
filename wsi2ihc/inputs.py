"""Reading files that a user names: regular ones of a bounded size, and nothing that never ends or never answers."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

LARGEST_JSON_BYTES = 256 << 20
"""The largest that the program writes itself, the record of a slide's patches, takes some 10 MB."""


def open_regular(path: str | Path, largest_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    A device such as ``/dev/zero`` has no end, and a pipe without a writer blocks the program that opens it.

    Parameters
    ----------
    path
        The file, or a symbolic link to it.
    largest_bytes
        Refuse a larger file.

    Raises
    ------
    OSError
        If it is a folder, device, pipe or socket, is larger, or cannot be opened; ``strerror`` says why.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if largest_bytes is not None and status.st_size > largest_bytes:
            raise _too_large(path, largest_bytes)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | Path, largest_bytes: int) -> bytes:
    """Read a regular file of at most so many bytes as a whole.

    Raises
    ------
    OSError
        As `open_regular` does.
    """
    with open_regular(path, largest_bytes) as file:
        content = file.read(largest_bytes + 1)  # some file systems do not know sizes, and files grow
    if len(content) > largest_bytes:
        raise _too_large(path, largest_bytes)
    return content


def read_json(path: str | Path, largest_bytes: int = LARGEST_JSON_BYTES) -> Any:
    """Read a JSON file.

    Raises
    ------
    OSError
        As `open_regular` does.
    ValueError
        If it is not JSON, or is nested too deeply for the parser.
    """
    try:
        return json.loads(read_regular(path, largest_bytes))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _too_large(path: str | Path, largest_bytes: int) -> OSError:
    size = f"{largest_bytes >> 20} MB" if largest_bytes >= 1 << 20 else f"{largest_bytes} bytes"
    return OSError(errno.EFBIG, f"it is larger than {size}", str(path))
