"""Write output files atomically: completely or not at all.

An output is written to a hidden, locked partial file in its folder and renamed when it is complete (`published`). Locks
end with their process, so a partial file that is not locked is stale and is removed by the next run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import OutputBusyError, OutputError, OutputExistsError, Wsi2IhcError
from .locks import try_lock

_log = logging.getLogger(__name__)

SUFFIXES = (".ome.tiff", ".ome.tif")
"""Suffixes of pyramids, by which readers distinguish OME-TIFF from other TIFF files."""

LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 4000
"""Limits of common file systems; for paths, minus the length of paths in hidden folders beside the output."""

HIDDEN_BYTES = 32
"""Largest difference in length between a hidden name and the name of its output."""


def check_output(path: Path, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that an output can be written, before any work is done.

    ``suffixes`` are case-insensitive; if there are none, any suffix is allowed.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    OutputError
        If the name or its suffix is invalid, the folder is missing or not writable, or the path is not a regular file.
    """
    check_name(path)
    if suffixes and not path.name.lower().endswith(tuple(suffixes)):
        raise OutputError(f"output {path.name} has an unknown suffix: end its name in {' or '.join(suffixes)}")
    check_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"output {path} is a folder: name a file")
    if os.path.lexists(path):
        if not path.is_file():
            raise OutputError(f"output {path} exists and is not a regular file: choose another name")
        if not overwrite:
            raise output_exists(path)
    check_writable(path.parent)


def check_name(path: Path) -> None:
    """Check that the name of an output is not empty, valid UTF-8, and not too long for its folder."""
    if path.name in ("", ".", "..") or "\0" in str(path):
        raise OutputError(f"output {str(path)!r} names no file: give it a name")
    try:
        length = len(path.name.encode())
    except UnicodeEncodeError:
        raise OutputError(f"output {path.name!r} is not a valid UTF-8 name: choose another name") from None
    longest = _longest_name(path.parent)
    if length > longest:
        raise OutputError(
            f"output {path.name[:40]}… has a name of {length} bytes and may have {longest}: choose a shorter one"
        )
    if len(os.fsencode(path.absolute())) > LONGEST_PATH_BYTES:
        raise OutputError(f"output {path.name}: its path has more than {LONGEST_PATH_BYTES} bytes: write elsewhere")


def _longest_name(folder: Path) -> int:
    try:
        return min(os.pathconf(folder, "PC_NAME_MAX"), LONGEST_NAME_BYTES)
    except (AttributeError, OSError, ValueError):  # Windows, or a missing folder
        return LONGEST_NAME_BYTES


def check_folder(folder: Path) -> None:
    """Check that an output folder exists."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise OutputError(f"output folder {folder} {what}: create it, or write elsewhere")


def check_writable(folder: Path) -> None:
    """Check that an output folder is writable."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {folder} is not writable: change its permissions, or write elsewhere")


@contextlib.contextmanager
def published(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a partial file to write to; at the end of the body, make it durable and rename it to ``path``.

    If the body raises any exception (KeyboardInterrupt included), the file is removed and ``path`` is not changed.
    Stale partial files of interrupted runs are removed first. The body must write to the given file itself: opening
    the file again truncates it, but replacing it by another file loses the lock.

    On file systems without locks (some network ones), stale files are kept, and two runs that write the same output do
    not notice each other: without ``overwrite``, the first one to finish succeeds and the other fails.

    Raises
    ------
    OutputExistsError
        If ``path`` exists at the start or at the end, and may not be replaced.
    OutputError
        If `check_output` fails (any suffix is allowed), another run is writing the same output, or the file system
        reports an error.
    """
    check_output(path, overwrite, suffixes=())
    remove_stale_files(path)
    partial = hidden_path(path, "partial")
    handle = None
    try:  # KeyboardInterrupt can come as soon as the file exists
        handle = _create(partial, path)
        yield partial
        _publish(partial, handle, path, overwrite)
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _create(partial: Path, path: Path) -> int:
    try:
        handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise OutputError(f"cannot create {path.name} in {path.parent}: {error.strerror}") from error
    try_lock(handle)
    return handle


def hidden_path(path: Path, suffix: str) -> Path:
    """Return a new hidden path beside ``path``, for its next or previous version."""
    return path.with_name(f"{hidden_stem(path)}.{secrets.token_hex(4)}.{suffix}")


def hidden_stem(path: Path) -> str:
    """Return the prefix of hidden names beside a path: a dot and its name, or its hash if that would be too long."""
    if len(os.fsencode(path.name)) <= _longest_name(path.parent) - HIDDEN_BYTES:
        return f".{path.name}"
    return f".wsi2ihc-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]}"


def hidden_files(path: Path, suffix: str) -> list[Path]:
    """List the hidden files of a suffix beside a path, in use or stale."""
    pattern = re.compile(rf"{re.escape(hidden_stem(path))}\.[0-9a-f]{{8}}\.{suffix}")
    return [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]


def remove_stale_files(path: Path) -> None:
    """Remove the partial files of interrupted runs that wrote an output.

    Raises
    ------
    OutputBusyError
        If another run is writing the output.
    """
    for partial in hidden_files(path, "partial"):
        try:
            if _is_locked(partial):
                raise OutputBusyError(f"another run is writing {path}: wait for it to end, or choose another name")
            partial.unlink(missing_ok=True)
        except OutputBusyError:
            raise
        except OSError as error:
            _log.warning("cannot remove %s, left behind by an interrupted run: %s", partial, error.strerror)
        else:
            _log.info("removed %s, left behind by an interrupted run", partial.name)


def _is_locked(partial: Path) -> bool:
    """Whether another process holds the lock of a file; raises `OSError` if the file system has no locks."""
    try:
        handle = os.open(partial, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        was_free = try_lock(handle)
    finally:
        os.close(handle)
    if was_free is None:
        raise OSError(errno.ENOLCK, "the file system has no locks, so it may be in use")
    return not was_free


def _publish(partial: Path, handle: int, path: Path, overwrite: bool) -> None:
    try:
        os.fsync(handle)
        if sys.platform == "win32":
            os.close(handle)  # Windows cannot rename an open file; elsewhere the lock is kept to the end
        if overwrite:
            partial.replace(path)
        else:
            _rename_unless_exists(partial, path)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise output_exists(path) from error
    except OSError as error:
        raise OutputError(f"cannot finish {path.name} in {path.parent}: {error.strerror}") from error


def _rename_unless_exists(partial: Path, path: Path) -> None:
    if sys.platform == "win32":
        partial.rename(path)  # fails if the path exists
        return
    try:
        # unlike a rename, a hard link fails if the path exists by now
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links (FAT, some network file systems): the time between test and rename is short
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        partial.rename(path)
    else:
        partial.unlink()


def sync_folder(folder: Path) -> None:
    """Force new names in a folder to disk (fsync), if the system can synchronize folders."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """Force all files in a folder, and their names, to disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(place, name))
        sync_folder(Path(place))


def sync_file(path: Path) -> None:
    """Force the content of a file to disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it; log a warning if something cannot be removed."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("cannot remove all of %s", folder)


def tree_bytes(folder: Path) -> int:
    """Return the total size of all files in a folder."""
    return sum(Path(place, name).stat().st_size for place, _, names in os.walk(folder) for name in names)


def output_exists(path: Path) -> OutputExistsError:
    """Return the error for an output that exists."""
    return OutputExistsError(f"output {path} is already there: choose another name, or allow it with --overwrite")


@contextlib.contextmanager
def disk_errors(path: Path, *, unless: Callable[[OSError], bool] = lambda _: False) -> Iterator[None]:
    """Convert an `OSError` of the body, which writes ``path``, to `OutputError`.

    Errors of wsi2ihc, and those for which ``unless`` is true because they do not concern the output, are not converted.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, Wsi2IhcError) or unless(error):
            raise
        message = f"cannot write {path.name} in {path.parent}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"disk full: no room in {path.parent} for {path.name}; free some, or write elsewhere"
        elif error.errno in (errno.EACCES, errno.EPERM):
            message += "; it may be another user's: have its permissions changed, or write elsewhere"
        raise OutputError(message) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a partial file; an existing file is replaced.

    If the file system reports an error, such as a full disk, it is an `OutputError`, and ``path`` is not changed.
    """
    try:
        with published(path, overwrite=True) as partial:
            partial.write_bytes(content)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, if they do not exist; errors of the file system are an `OutputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that cannot be written."""
    return OutputError(f"cannot write {path}: {error.strerror or error}; free some space or write elsewhere")
