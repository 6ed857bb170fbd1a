"""Which files of a folder are images, and tables as dictionaries."""

from __future__ import annotations

import csv
import errno
import filecmp
import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
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


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images straight in a folder by the stems of their names.

    Raises
    ------
    DatasetError
        If two images differ in their suffixes alone.
    """
    files: dict[str, Path] = {}
    for file in images_in(folder):
        if (other := files.setdefault(file.stem, file)) != file:
            raise DatasetError(f"{folder} has both {other.name} and {file.name}; keep one of them")
    return files


def linked_files(pairs: Iterable[tuple[Path, Path]]) -> tuple[Path, Path] | None:
    """The first pair whose two paths are one file (spelled otherwise, or linked), if there is one.

    Raises
    ------
    DatasetError
        If a file cannot be looked at.
    """
    try:
        return next((pair for pair in pairs if pair[0].samefile(pair[1])), None)
    except OSError as error:
        raise _unreadable(error) from error


def same_images(pairs: Sequence[tuple[Path, Path]]) -> tuple[Path, Path] | None:
    """A pair whose two paths are one file; or the first one, if the files of all pairs are copies of each other.

    Two stains, or an image and its reference, are never the same: the same files were named for both. That some images
    are alike (empty background) proves nothing.

    Raises
    ------
    DatasetError
        If a file cannot be read.
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
    """The folders straight in a folder whose names in lower case are wanted, by those names."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower() in wanted and entry.is_dir())
    found: dict[str, Path] = {}
    for name in names:
        if (other := found.setdefault(name.lower(), folder / name)).name != name:
            raise DatasetError(f"{folder} has both {other.name}/ and {name}/; keep one of them")
    return found


LARGEST_TABLE_BYTES = 256 << 20
MOST_COLUMNS = 1000
MOST_CELLS = 10_000_000
"""Of a table: half a million patches with 20 columns, which take some 2 GB."""

LONGEST_CELL = 4096
"""Characters; no path is longer."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file as it was read, once.

    rows:   with column names in lower case, and cells without blanks around them; rows without a cell are left out
    lines:  on which line of the file each row begins; the first line of a file is 1
    sha256: of the file's bytes
    """

    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    sha256: str


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of `read_lines`."""
    return list(read_lines(path).rows)


def read_lines(path: Path) -> Table:
    """Read a CSV file.

    Raises
    ------
    DatasetError
        If it is not there, is not text, has no rows, is separated by something else than commas, a row has more cells
        than there are columns, or it is larger than such tables are.
    """
    lines: list[tuple[int, list[str]]] = []
    count = 0
    try:
        content = _content_of(path)
        # utf-8-sig: spreadsheets put a byte-order mark in front
        reader, begin = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")), 1
        for cells in reader:
            count += len(cells)
            _check_row(path, begin, cells, count)
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append((begin, stripped))
            begin = reader.line_num + 1
    except FileNotFoundError as error:
        raise DatasetError(f"there is no table {path}") from error
    except IsADirectoryError as error:
        raise DatasetError(f"{path} is a folder; name a CSV file") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8; save it as UTF-8 (spreadsheets: as CSV UTF-8)") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error!s:.80})") from error
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as a CSV file ({error!s:.80})") from error
    (_, head), *rows = lines or [(1, [])]
    _check_separator(path, head)
    if not rows:
        raise DatasetError(f"{path} has no rows below its column names")
    names = [name.lower() for name in head]
    if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise DatasetError(f"{path} has the column {twice[0]!r:.60} twice")
    if len(rows) * len(names) > MOST_CELLS:
        raise DatasetError(f"{path} has {len(rows):,} rows and {len(names)} columns, too many for a table; divide it")
    for number, cells in rows:
        if len(cells) > len(names):
            raise DatasetError(f"{path}, row {number}: {len(cells)} cells, but {len(names)} columns")
    return Table(
        tuple(dict.fromkeys(names, "") | dict(zip(names, cells, strict=False)) for _, cells in rows),
        tuple(number for number, _ in rows),
        hashlib.sha256(content).hexdigest(),
    )


def _content_of(path: Path) -> bytes:
    """The bytes of a regular file of a bounded size; a pipe or a device would block, or never end."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if status.st_size > LARGEST_TABLE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST_TABLE_BYTES >> 20} MB", str(path))
    content = path.read_bytes()
    if b"\0" in content:
        raise DatasetError(
            f"{path} is no text in UTF-8 (it has NUL bytes); save it as UTF-8 (spreadsheets: as CSV UTF-8)"
        )
    return content


def _check_row(path: Path, line: int, cells: Sequence[str], so_far: int) -> None:
    if so_far > MOST_CELLS:
        raise DatasetError(f"{path}, row {line}: the table has more than {MOST_CELLS:,} cells; divide it")
    if len(cells) > MOST_COLUMNS:
        raise DatasetError(f"{path}, row {line}: {len(cells):,} cells; {MOST_COLUMNS:,} is the most")
    if (longest := max(map(len, cells), default=0)) > LONGEST_CELL:
        raise DatasetError(f"{path}, row {line}: a cell of {longest:,} characters; {LONGEST_CELL:,} is the most")


def _check_separator(path: Path, head: list[str]) -> None:
    """Spreadsheets of some countries separate by semicolons: then the names of all columns are one cell."""
    for character, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(head) == 1 and character in head[0]:
            raise DatasetError(f"the columns of {path} are separated by {name}; separate them by commas")
