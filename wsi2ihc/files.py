"""Files of fixed names in folders that others may write to as well."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file under its own name, without emptying it.

    Somebody who can write to the folder may have put something else there: a symbolic link, through which a file
    elsewhere would be changed, or a named pipe or a device, which would block.

    Parameters
    ----------
    path
        Of the file.
    flags
        As `os.open` takes them. With ``os.O_CREAT`` the file is made if it is not there.

    Returns
    -------
    int
        A file descriptor, which children do not inherit.

    Raises
    ------
    OSError
        If it is not a regular file, or cannot be opened.
    """
    if sys.platform == "win32" and path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY", "O_NOINHERIT"):
        flags |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise OSError(error.errno, "is a symbolic link", str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle
