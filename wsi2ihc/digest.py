"""SHA-256 of outputs, to recognize them: of a file, or of all files in a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .files import open_regular


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as ``sha256sum`` prints it; of a folder, that of a list of its files.

    The list has one line for each file, sorted by name: its SHA-256, two spaces, and its path in the folder.

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
    """Return the SHA-256 of a regular file.

    Raises
    ------
    OSError
        If it cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
