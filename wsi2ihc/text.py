"""Text for terminals and tables: numbers with nouns, errors in one line, and text of unknown origin made safe."""

from __future__ import annotations

import csv
import errno
import io
import re
import unicodedata
from collections.abc import Callable, Iterable

from .errors import Wsi2IhcError

_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""Characters that Python counts as printable but that are invisible."""

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\0＝＋－＠]")
"""Beginning of a cell that is a formula, or becomes one if an apostrophe is removed."""

_NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|inf|nan)", re.ASCII)


def printable(text: str) -> str:
    r"""Escape characters that could change more of the terminal than the place where the text is printed.

    Control characters, line breaks, marks that change the direction of text, characters without width and surrogates
    are escaped as in Python (``\x1b``, ``\n``, ``\u202e``). Bytes of a name that are not UTF-8 appear as ``\xff``. All
    other text, in any script, is unchanged.
    """
    if text.isprintable() and not any(one in text for one in _INVISIBLE):
        return text
    return "".join(one if _is_visible(one) else _escaped(one) for one in text)


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun: "1 patient", "2 patients", "1,000 patches".

    Parameters
    ----------
    plural
        Of the noun, if it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def describe_error(error: BaseException, redact: Callable[[str], str] | None = None) -> str:
    """Describe an error in one printable line, whether it was raised on purpose or not.

    Parameters
    ----------
    redact
        Removes from a message what may not be shown, such as folders. Files that the system names are left out then.
    """
    text = " ".join(str(error).split())
    text = text if redact is None else redact(text)
    return printable(text if isinstance(error, Wsi2IhcError) else _describe_unexpected(error, text, redact is None))


def csv_table(rows: Iterable[Iterable[object]], line_end: str = "\r\n") -> str:
    """Format a table as CSV.

    Text that a spreadsheet would execute as a formula is prefixed by an apostrophe, which marks text there; `original`
    removes it. Numbers, including negative ones, are unchanged.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def original(cell: str) -> str:
    """Return the text of a cell that `csv_table` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def columns(text: str) -> int:
    """Count the columns of a printable text on a terminal: two for wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(one) for one in text)


def cut(text: str, most: int) -> str:
    """Cut a printable text to at most ``most`` columns, with an ellipsis at the end if it was longer."""
    if columns(text) <= most:
        return text
    taken, kept = 0, []
    for one in text:
        taken += _columns_of(one)
        if taken > most - 1:
            break
        kept.append(one)
    return "".join(kept) + ("…" if most > 0 else "")


def _describe_unexpected(error: BaseException, text: str, with_file: bool) -> str:
    file = getattr(error, "filename", None) if with_file else None
    name = "" if file is None else str(file)
    if isinstance(error, BrokenPipeError):
        return "the program that read the output has gone"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({name or 'while writing'}); free some space or write elsewhere"
    if _is_out_of_processes(error):
        return "the system allows no further thread or process (see ulimit -u, or the limit of the container)"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}" if name else error.strerror
    if isinstance(error, ValueError) and "null byte" in text:
        return "a name holds the character NUL, which no file system takes"
    if isinstance(error, MemoryError):
        return "out of memory; lower --workers, and --max-memory or --batch-size where the command has them"
    return f"unexpected {type(error).__name__}: {text} (run again with -v for details, and please report it)"


def _is_out_of_processes(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    return isinstance(error, OSError) and error.errno == errno.EAGAIN


def _cell(value: object) -> object:
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def _is_visible(one: str) -> bool:
    # Python does not count spaces such as the no-break space as printable
    return (one.isprintable() and one not in _INVISIBLE) or unicodedata.category(one) == "Zs"


def _escaped(one: str) -> str:
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # surrogate of a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return one.encode("unicode_escape").decode("ascii")


def _columns_of(one: str) -> int:
    if unicodedata.category(one) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(one) in ("W", "F") else 1
