"""Files that appear under their name only when they are complete.

Work goes into ``.NAME.xxxxxxxx.partial`` in the destination's own folder, so that the last step is a rename within one
file system. The running process holds a lock on it, which ends with the process however that ends; so a later run can
tell what a killed one left behind (and removes it) from what another one is still writing (and keeps away).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import OutputError, OutputExistsError, Wsi2IhcError
from .locks import try_lock

SUFFIXES = (".ome.tiff", ".ome.tif")
"""What the name of a pyramid has to end in: readers tell OME-TIFF from other TIFF by it."""

LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 4000
"""Of common file systems; paths less what is put into folders beside the output."""

HIDDEN_BYTES = 32
"""How much longer than a name the hidden names beside it are at most."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM)

_log = logging.getLogger(__name__)


def check_output(path: Path, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """See early, before any work is done, whether an output can be written.

    Parameters
    ----------
    path
        The output's final name.
    overwrite
        Whether a file that is there may be replaced.
    suffixes
        What the name may end in, in any case of letters; anything if empty.

    Raises
    ------
    OutputExistsError
        If there is a file and it may not be replaced.
    OutputError
        If the name cannot be used or its suffix is unknown, the folder is missing or not writable, or the name
        belongs to something that is not a regular file.
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
            raise exists(path)
    check_writable(path.parent)


def check_name(path: Path) -> None:
    """Refuse an output's name that is empty, too long for its folder, or no text.

    Raises
    ------
    OutputError
        If it is.
    """
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
    """How many bytes a name in a folder may have."""
    try:
        return min(os.pathconf(folder, "PC_NAME_MAX"), LONGEST_NAME_BYTES)
    except (AttributeError, OSError, ValueError):  # Windows; a folder that is not there
        return LONGEST_NAME_BYTES


def check_folder(folder: Path) -> None:
    """Refuse an output folder that is not there."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise OutputError(f"output folder {folder} {what}: create it, or write elsewhere")


def check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be written to."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {folder} is not writable: change its permissions, or write elsewhere")


@contextlib.contextmanager
def published(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a file to write to; on leaving, make it durable and move it to ``path``.

    If the body raises anything, Ctrl-C included, the file is removed and ``path`` stays as it was. What runs killed
    earlier left of the same output is removed first. The body has to write into the given file itself (opening it
    anew truncates it, which is fine; replacing it by another file loses the lock).

    On file systems without locks (some network ones), leftovers stay, and two runs that write the same output are not
    told of each other: without ``overwrite`` the first one to finish wins and the other fails.

    Raises
    ------
    OutputExistsError
        If ``path`` is there, or has appeared meanwhile, and may not be replaced.
    OutputError
        If `check_output` objects (it is called without suffixes), another run is writing the same output, or the file
        system refuses.
    """
    check_output(path, overwrite, suffixes=())
    remove_leftovers(path)
    partial = hidden_path(path, "partial")
    handle = None
    try:  # from here on, since Ctrl-C can come as soon as the file is there
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
    """The open partial file, locked."""
    try:
        handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise OutputError(f"cannot create {path.name} in {path.parent}: {error.strerror}") from error
    try_lock(handle)
    return handle


def hidden_path(path: Path, suffix: str) -> Path:
    """A new name beside a path, for what is not that yet or is it no more."""
    return path.with_name(f"{hidden_stem(path)}.{secrets.token_hex(4)}.{suffix}")


def hidden_stem(path: Path) -> str:
    """What the hidden names beside a path begin with: a dot and its name, or a hash of it where that would be too long.

    The name may be as long as the file system allows, and the hidden ones are longer.
    """
    if len(os.fsencode(path.name)) <= _longest_name(path.parent) - HIDDEN_BYTES:
        return f".{path.name}"
    return f".wsi2ihc-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]}"


def leftovers(path: Path, suffix: str) -> list[Path]:
    """What lies beside a path under such names, in use or left behind."""
    pattern = re.compile(rf"{re.escape(hidden_stem(path))}\.[0-9a-f]{{8}}\.{suffix}")
    return [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]


def remove_leftovers(path: Path) -> None:
    """Remove what runs that were killed have left of an output.

    Raises
    ------
    OutputError
        If another run is writing it.
    """
    for leftover in leftovers(path, "partial"):
        try:
            if _is_alive(leftover):
                raise OutputError(f"another run is writing {path}: wait for it to end, or choose another name")
            leftover.unlink(missing_ok=True)
        except OutputError:
            raise
        except OSError as error:
            _log.warning("cannot remove %s, left behind by an interrupted run: %s", leftover, error.strerror)
        else:
            _log.info("removed %s, left behind by an interrupted run", leftover.name)


def _is_alive(leftover: Path) -> bool:
    """Whether some process is still writing this file; raises `OSError` where nobody can tell."""
    try:
        handle = os.open(leftover, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        held = try_lock(handle)
    finally:
        os.close(handle)
    if held is None:
        raise OSError(errno.ENOLCK, "this file system cannot tell whether it is still in use")
    return not held


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
        raise exists(path) from error
    except OSError as error:
        raise OutputError(f"cannot finish {path.name} in {path.parent}: {error.strerror}") from error


def _rename_unless_exists(partial: Path, path: Path) -> None:
    if sys.platform == "win32":
        partial.rename(path)  # refuses by itself
        return
    try:
        # a rename would replace what has appeared meanwhile; a second name for the same file is refused instead
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (FAT, some network file systems): the gap between test and rename is tiny
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        partial.rename(path)
    else:
        partial.unlink()


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where folders can be synchronised."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def exists(path: Path) -> OutputExistsError:
    """The error of an output that is there."""
    return OutputExistsError(f"output {path} is already there: choose another name, or allow it with --overwrite")


@contextlib.contextmanager
def disk_errors(path: Path, *, unless: Callable[[OSError], bool] = lambda _: False) -> Iterator[None]:
    """Tell of what the file system refuses while the body writes ``path``; errors that speak for themselves pass.

    Raises
    ------
    OutputError
        Instead of any other `OSError`, but for those of which ``unless`` is true: they are not about the output.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, Wsi2IhcError) or unless(error):
            raise
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> OutputError:
    if error.errno in _NO_ROOM:
        return OutputError(f"disk full: no room in {path.parent} for {path.name}; free some, or write elsewhere")
    advice = "; it may be another user's: have its permissions changed, or write elsewhere"
    return OutputError(
        f"cannot write {path.name} in {path.parent}: {error.strerror or error}"
        f"{advice if error.errno in _NO_PERMISSION else ''}"
    )
