"""Which files of a folder are images, and tables as dictionaries."""

from __future__ import annotations

import csv
import os
from collections.abc import Container
from pathlib import Path

from wsi2ihc.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


def images_in(folder: Path) -> list[Path]:
    """The images straight in a folder, by name. Hidden files and others (Thumbs.db, readme.txt) are left out."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name) and not entry.is_dir()]
    return [folder / name for name in sorted(names)]


def is_image(name: str) -> bool:
    """Whether a file of this name should be an image."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def folders_in(folder: Path, wanted: Container[str]) -> dict[str, Path]:
    """The folders straight in a folder whose names in lower case are wanted, by those names."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower() in wanted and entry.is_dir())
    found: dict[str, Path] = {}
    for name in names:
        if (other := found.setdefault(name.lower(), folder / name)).name != name:
            raise DatasetError(f"{folder} has both {other.name}/ and {name}/; keep one of them")
    return found


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, with column names in lower case, and cells without blanks around them.

    Raises
    ------
    DatasetError
        If it is not there, is no text, has no rows, is separated by something else than commas, or a row has more
        cells than there are columns.
    """
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except FileNotFoundError as error:
        raise DatasetError(f"there is no table {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a CSV file in UTF-8 ({error!s:.80})") from error
    lines = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    _check_separator(path, lines)
    if len(lines) < 2:
        raise DatasetError(f"{path} has no rows below its column names")
    names = [name.lower() for name in lines[0]]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise DatasetError(f"{path} has the column {twice[0]!r} twice")
    for number, line in enumerate(lines[1:], 2):
        if len(line) > len(names):
            raise DatasetError(f"{path}, row {number}: {len(line)} cells, but {len(names)} columns")
    return [dict.fromkeys(names, "") | dict(zip(names, line, strict=False)) for line in lines[1:]]


def _check_separator(path: Path, lines: list[list[str]]) -> None:
    """Spreadsheets of some countries separate by semicolons: then the names of all columns are one cell."""
    for character, name in ((";", "semicolons"), ("\t", "tabs")):
        if lines and len(lines[0]) == 1 and character in lines[0][0]:
            raise DatasetError(f"the columns of {path} are separated by {name}; separate them by commas")
