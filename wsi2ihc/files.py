"""Open regular files with a limit on their size, hash files, and list image files."""

from __future__ import annotations

import errno
import filecmp
import functools
import hashlib
import json
import operator
import os
import stat
import sys
from collections.abc import Container, Iterable, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import DatasetError

LARGEST_JSON_BYTES = 256 << 20
"""Largest JSON file that is read. The largest one that the program writes, a slide's patches, has about 10 MB."""


def open_regular(path: str | Path, largest_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    A device such as ``/dev/zero`` has no end, and a pipe without a writer blocks the program that opens it.

    Raises `OSError`, whose ``strerror`` says why, if it is a folder, device, pipe or socket, is larger than
    ``largest_bytes``, or cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | _available_flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
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
    """Read a whole regular file of at most ``largest_bytes``.

    Raises `OSError` as `open_regular` does.
    """
    with open_regular(path, largest_bytes) as file:
        # Some file systems do not report sizes, and the file may grow.
        content = file.read(largest_bytes + 1)
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


def json_bytes(value: object, indent: int = 2) -> bytes:
    r"""Encode a value as the content of a JSON file.

    Bytes of file names that are not UTF-8 are escaped (``\\udcff``), and `read_json` restores them.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as ``sha256sum`` prints it; of a folder, that of a list of its files.

    The list has one line for each file, sorted by name: its SHA-256, two spaces, and its path in the folder. Raises
    `OSError` if something cannot be read, or is neither a file nor a folder.
    """
    if not path.is_dir():
        return sha256_of_file(path)
    files = sorted(
        Path(place, name).relative_to(path).as_posix() for place, _, names in os.walk(path) for name in names
    )
    lines = (f"{sha256_of_file(path / name)}  {name}\n" for name in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file.

    Raises `OSError` if it cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_without_following(path: Path, flags: int) -> int:
    """Open a regular file in a shared folder, without following a symbolic link at its name.

    Another user who can write to the folder may have replaced the file by a symbolic link, through which a file
    elsewhere would be changed, or by a named pipe or a device, which would block.

    Links in its parent folders are followed. ``flags`` are those of `os.open`; with ``os.O_CREAT`` the file is created
    if it does not exist. Child processes do not inherit the file descriptor that is returned. Raises `OSError` if it is
    not a regular file, or cannot be opened.
    """
    if sys.platform == "win32" and path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    flags |= _available_flags("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY", "O_NOINHERIT")
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


def _available_flags(*names: str) -> int:
    """Combine those flags of `os.open` that this platform has."""
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names))


def _too_large(path: str | Path, largest_bytes: int) -> OSError:
    size = f"{largest_bytes >> 20} MB" if largest_bytes >= 1 << 20 else f"{largest_bytes} bytes"
    return OSError(errno.EFBIG, f"it is larger than {size}", str(path))


IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


def images_in(folder: Path) -> list[Path]:
    """List the images directly in a folder, sorted by name. Hidden and other files (Thumbs.db) are ignored."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name) and not entry.is_dir()]
    return [folder / name for name in sorted(names)]


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images directly in a folder by the stems of their names.

    Raises `DatasetError` if two images have the same stem.
    """
    files: dict[str, Path] = {}
    for file in images_in(folder):
        if (other := files.setdefault(file.stem, file)) != file:
            raise DatasetError(f"{folder} has both {other.name} and {file.name}; keep one of them")
    return files


def linked_files(pairs: Iterable[tuple[Path, Path]]) -> tuple[Path, Path] | None:
    """Return the first pair whose two paths are the same file (possibly through links), or None.

    Raises `DatasetError` if a file cannot be accessed.
    """
    try:
        return next((pair for pair in pairs if pair[0].samefile(pair[1])), None)
    except OSError as error:
        raise _unreadable(error) from error


def same_images(pairs: Sequence[tuple[Path, Path]]) -> tuple[Path, Path] | None:
    """Return a pair whose two paths are the same file, or the first pair if both files of every pair are equal.

    Two stains, or an image and its reference, are never equal, so the same files were named for both. A few equal
    images (empty background) are no evidence. Raises `DatasetError` if a file cannot be read.
    """
    if linked := linked_files(pairs):
        return linked
    try:
        copies = bool(pairs) and all(filecmp.cmp(*pair, shallow=False) for pair in pairs)
    except OSError as error:
        raise _unreadable(error) from error
    finally:
        filecmp.clear_cache()
    return pairs[0] if copies else None


def _unreadable(error: OSError) -> DatasetError:
    return DatasetError(f"{error.filename} cannot be read ({error.strerror or error!s:.80})")


def folders_in(folder: Path, wanted: Container[str]) -> dict[str, Path]:
    """Return the folders directly in a folder whose names in lower case are in ``wanted``, by those names."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower() in wanted and entry.is_dir())
    found: dict[str, Path] = {}
    for name in names:
        if (other := found.setdefault(name.lower(), folder / name)).name != name:
            raise DatasetError(f"{folder} has both {other.name}/ and {name}/; keep one of them")
    return found
