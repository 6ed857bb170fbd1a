"""SHA-256 of outputs, by which they are known again: of a file, or of a folder with all that is in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .files import open_regular


def sha256_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, as ``sha256sum`` has it; of a folder that of a list of its files with theirs.

    The list has a line for each file, sorted by name: its SHA-256, two spaces, and its path in the folder.

    Raises
    ------
    OSError
        If something cannot be read, or is neither a file nor a folder.
    """
    if not path.is_dir():
        return sha256_of_file(path)
    files = sorted(
        Path(place, name).relative_to(path).as_posix() for place, _, names in os.walk(path) for name in names
    )
    lines = (f"{sha256_of_file(path / name)}  {name}\n" for name in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of the bytes of a regular file.

    Raises
    ------
    OSError
        If it cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
