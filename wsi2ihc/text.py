"""Text for display: numbers, lists, plurals, printable characters and redacted paths."""

from __future__ import annotations

import contextlib
import csv
import errno
import getpass
import io
import re
import socket
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OptionError, Wsi2IhcError

if TYPE_CHECKING:
    from .geometry import Region

MOST_SEED = 2**63 - 1
MOST_WORKERS = 1024
"""Largest number of workers; more is a typing error, and each worker needs memory."""

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_region(text: str) -> Region:
    """Parse a region ``X,Y,W,H`` in px, which is not empty.

    Raises
    ------
    ValueError
        If it is invalid; the message continues a sentence that begins with the text.
    """
    from .geometry import Region  # imports NumPy, which makes `wsi2ihc --help` slow

    parts = re.fullmatch(r"\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    if parts is None:
        raise ValueError("is not X,Y,W,H in whole pixels, such as 1000,2000,512,512")
    x, y, width, height = map(int, parts.groups())
    if not width or not height:
        raise ValueError("is empty: width and height must be at least 1")
    return Region(x, y, width, height)


def parse_bytes(text: str) -> int:
    """Parse an amount of memory such as ``4G``, ``1500M`` or ``0.5T`` to bytes; units are powers of 1024.

    Raises
    ------
    ValueError
        If it is invalid; the message continues a sentence that begins with the text.
    """
    parts = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if parts is None:
        raise ValueError("is not an amount of memory such as 4G or 1500M")
    return int(float(parts[1]) * _UNITS[parts[2].upper()])


def parse_auto(text: str) -> int:
    """Parse an integer of at least 1, or ``auto`` to 0.

    Raises
    ------
    ValueError
        If it is invalid; the message continues a sentence that begins with the text.
    """
    if text == "auto":
        return 0
    if re.fullmatch(r"\d{1,6}", text) is None or int(text) < 1:
        raise ValueError("is neither auto nor a whole number of at least 1")
    return int(text)


def option(default: Any, text: str, **metadata: Any) -> Any:
    """Return a dataclass field that is also a command-line option, with its help text.

    Parameters
    ----------
    default
        Default of the field.
    text
        Help of the option.
    **metadata
        ``name``: name of the option, with underscores, if it is not that of the field; ``parse``: function that reads
        the value from text; ``shown``: default as the user writes it; ``bounds``: smallest and largest integer; and
        what else the owner of the options needs.
    """
    return field(default=default, metadata={"help": text, **metadata})


def auto_option(text: str, **metadata: str) -> Any:
    """Return the field of an integer option whose default, 0, is written "auto"."""
    return option(0, text, parse=parse_auto, metavar="auto|N", shown="auto", **metadata)


def option_name(one: Field[Any]) -> str:
    """Return the name of the command-line option of a field, with underscores."""
    return str(one.metadata.get("name", one.name))


def flag(name: str) -> str:
    """Return the command-line option of a field."""
    return f"--{name.replace('_', '-')}"


def check_bounds(options: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Check that fields of an options object are None or within their bounds, both included.

    Raises
    ------
    OptionError
        If a field is out of bounds.
    """
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise OptionError(f"{flag(name)} must be at least {least:,}, not {value}")
        if value is not None and not value <= most:
            raise OptionError(f"{flag(name)} must be at most {most:,}, not {value}")


def listed(names: Sequence[str], most: int = 4) -> str:
    """Join the first names and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


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
        Plural of the noun; by default, the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def describe_error(error: BaseException, redact: Callable[[str], str] | None = None) -> str:
    """Describe an error in one printable line, whether it was raised on purpose or not.

    Parameters
    ----------
    redact
        Removes private parts of a message, such as folders. The file of a system error is then left out.
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


def _describe_unexpected(error: BaseException, text: str, with_file: bool) -> str:
    file = getattr(error, "filename", None) if with_file else None
    name = "" if file is None else str(file)
    if isinstance(error, BrokenPipeError):
        return "the program that read the output has ended"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({name or 'while writing'}); free some space or write elsewhere"
    if _is_out_of_processes(error):
        return "the system allows no further thread or process (see ulimit -u, or the limit of the container)"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}" if name else error.strerror
    if isinstance(error, ValueError) and "null byte" in text:
        return "a name holds the character NUL, which no file system allows"
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


_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,9}://[^\s\"'<>]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:|~)?(?:[\\/][^\\/\s\"'<>|:;,()]+){2,}[\\/]?")

_LONGEST = 600
"""Longest message in characters: fields and file names have no limit."""


def base_name(path: str) -> str:
    """Return the base name of a path or URL, without the query of a URL, which can hold a signature."""
    if "://" in path:
        path = path.partition("?")[0].partition("#")[0]
    return path.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def redact_paths(text: str, *paths: str | Path) -> str:
    """Replace these paths, and paths in their folders, by base names."""
    known = sorted({str(path) for path in paths if str(path)}, key=len, reverse=True)
    for path in known:
        if (name := base_name(path)) and name != path:
            text = text.replace(path, name)
    folders = {str(Path(path).parent) for path in known if "://" not in path} - {".", "/"}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def anonymize(text: str, *paths: str | Path) -> str:
    """Remove folders, addresses, and the names of this machine and its user from a text of unknown origin.

    Libraries and the interpreter print full paths. These paths, which may hold blanks, and everything that looks like
    a path or a URL are replaced by base names.
    """
    text = redact_paths(text, *paths)
    text = _URL.sub(lambda found: base_name(found[0]) if "/" in found[0].partition("://")[2] else "ADDRESS", text)
    text = _PATH.sub(lambda found: base_name(found[0]), text)
    for name, replacement in _local_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", replacement, text)
    return text


@lru_cache(maxsize=1)
def _local_names() -> list[tuple[str, str]]:
    """Return the names of this machine and its user, except ordinary words, with their replacements."""
    names = [(socket.gethostname(), "HOST"), (socket.gethostname().partition(".")[0], "HOST")]
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.append((getpass.getuser(), "USER"))
    return [(name, new) for name, new in names if len(name) > 2 and name not in ("root", "localhost")]


def one_line_error(error: BaseException, *paths: str | Path) -> str:
    """Describe an error in one line of bounded length, without the folders of these paths."""
    redact = redact_paths if isinstance(error, Wsi2IhcError) else anonymize
    text = describe_error(error, lambda text: redact(text, *paths))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def pairs_of_slides(number: int) -> str:
    """Format a number of slide pairs: "1 pair of slides"."""
    return pluralize(number, "pair of slides", "pairs of slides")


def patches(number: int) -> str:
    """Format a number of patches: "1 patch"."""
    return pluralize(number, "patch", "patches")


def reason(error: Exception) -> str:
    """Return the message of an error, without the error number of the system."""
    return f"{getattr(error, 'strerror', None) or error!s:.80}"
