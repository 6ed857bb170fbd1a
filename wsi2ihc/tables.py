"""Read CSV files.

`csv_rows` parses a file row by row, and every module that reads CSV uses it. `read_csv` also checks the columns and
limits the size of fields, rows and the table, so that a file of another kind is refused with a clear message.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .errors import DatasetError
from .files import open_regular, read_regular

_ENCODING = "utf-8-sig"  # accepts the byte-order mark

LARGEST_TABLE_BYTES = 256 << 20
MOST_COLUMNS = 1000
MOST_CELLS = 10_000_000  # most fields of a table: half a million patches with 20 columns, which take about 2 GB
LONGEST_CELL = 4096  # longest field in characters; no path is longer


def open_csv(path: Path, largest_bytes: int) -> TextIO:
    """Open a CSV file in UTF-8, with or without the byte-order mark of spreadsheets.

    Raises `OSError` as `open_regular` does.
    """
    return io.TextIOWrapper(open_regular(path, largest_bytes), encoding=_ENCODING, newline="")


def csv_rows(file: TextIO, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Parse a CSV file.

    Yields
    ------
    line, fields
        Each row with a field that is not blank, and the line on which it begins, from 1.

    Raises
    ------
    UnicodeDecodeError, csv.Error
        If the file is not UTF-8, or not CSV.
    """
    reader = csv.reader(file, delimiter=delimiter)
    line = 1
    for fields in reader:
        if any(field.strip() for field in fields):
            yield line, fields
        line = reader.line_num + 1


@dataclass(frozen=True, slots=True)
class CsvTable:
    """Content of a CSV file."""

    # fields without surrounding blanks, by column name in lower case. Blank rows are left out.
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]  # line of the file on which each row begins, from 1
    sha256: str  # SHA-256 of the file


def read_csv(path: Path) -> CsvTable:
    """Read a CSV file with column names in its first row.

    Raises `DatasetError` if the file does not exist, is not CSV in UTF-8 separated by commas, has no rows, has a row
    with more fields than columns, or exceeds the limits of this module.
    """
    lines: list[tuple[int, list[str]]] = []
    count = 0
    try:
        content = read_regular(path, LARGEST_TABLE_BYTES)
        if b"\0" in content:
            raise DatasetError(
                f"{path} is not text in UTF-8 (it has NUL bytes); save it as UTF-8 (spreadsheets: as CSV UTF-8)"
            )
        for line, fields in csv_rows(io.StringIO(content.decode(_ENCODING), newline="")):
            count += len(fields)
            _check_row(path, line, fields, count)
            lines.append((line, [field.strip() for field in fields]))
    except FileNotFoundError as error:
        raise DatasetError(f"the table {path} does not exist") from error
    except IsADirectoryError as error:
        raise DatasetError(f"{path} is a folder; name a CSV file") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text in UTF-8; save it as UTF-8 (spreadsheets: as CSV UTF-8)") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error!s:.80})") from error
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as a CSV file ({error!s:.80})") from error
    (_, head), *rows = lines or [(1, [])]
    _check_separator(path, head)
    if not rows:
        raise DatasetError(f"{path} has no rows below its column names")
    names = [name.lower() for name in head]
    if duplicates := sorted(name for name, times in Counter(names).items() if name and times > 1):
        raise DatasetError(f"{path} has the column {duplicates[0]!r:.60} twice")
    if len(rows) * len(names) > MOST_CELLS:
        raise DatasetError(f"{path} has {len(rows):,} rows and {len(names)} columns, too many for a table; divide it")
    for line, fields in rows:
        if len(fields) > len(names):
            raise DatasetError(f"{path}, row {line}: {len(fields)} fields, but {len(names)} columns")
    return CsvTable(
        tuple(dict.fromkeys(names, "") | dict(zip(names, fields, strict=False)) for _, fields in rows),
        tuple(line for line, _ in rows),
        hashlib.sha256(content).hexdigest(),
    )


def _check_row(path: Path, line: int, fields: Sequence[str], count: int) -> None:
    if count > MOST_CELLS:
        raise DatasetError(f"{path}, row {line}: the table has more than {MOST_CELLS:,} fields; divide it")
    if len(fields) > MOST_COLUMNS:
        raise DatasetError(f"{path}, row {line}: {len(fields):,} fields, more than {MOST_COLUMNS:,}")
    if (longest := max(map(len, fields), default=0)) > LONGEST_CELL:
        raise DatasetError(f"{path}, row {line}: a field of {longest:,} characters, more than {LONGEST_CELL:,}")


def _check_separator(path: Path, head: list[str]) -> None:
    """Refuse a table separated by semicolons (as spreadsheets of some countries write) or tabs: it has one column."""
    for character, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(head) == 1 and character in head[0]:
            raise DatasetError(f"the columns of {path} are separated by {name}; separate them by commas")
