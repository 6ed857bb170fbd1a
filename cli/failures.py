"""One-line messages for errors."""

from __future__ import annotations

import errno

from wsi2ihc.errors import Wsi2IhcError


def one_line(error: Exception) -> str:
    """Describe an error for a user in one line, whether it was raised on purpose or not."""
    text = " ".join(str(error).split())
    if isinstance(error, Wsi2IhcError):
        return text
    if isinstance(error, BrokenPipeError):
        return "the program that read the output has gone"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}); free some space or write elsewhere"
    if _is_out_of_processes(error):
        return "the system allows no further thread or process (see ulimit -u, or the limit of the container)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError) and "null byte" in text:
        return "a name holds the character NUL, which no file system takes"
    if isinstance(error, MemoryError):
        return "out of memory; lower --max-memory, --batch-size or --workers"
    return f"unexpected {type(error).__name__}: {text} (run again with -v for details, and please report it)"


def _is_out_of_processes(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    return isinstance(error, OSError) and error.errno == errno.EAGAIN
