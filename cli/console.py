"""All output of the program: made printable, in the encoding of the stream."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias, cast

import click

from wsi2ihc.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

MOST_CHARACTERS = 2000
"""Longest line on stderr: text from a file can have megabytes."""

Line: TypeAlias = str | tuple[str, ...]
"""A line of text, or a row of a table."""

_NUMBER = re.compile(r"[-+]?[\d,.]*%?")


def print_out(*lines: Line, styles: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print lines on stdout, wrapped to the width of a terminal. Consecutive rows form an indented table.

    Parameters
    ----------
    styles
        Styles of rich for cells of these texts, on terminals.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    text = ""
    for is_row, run in groupby(lines, lambda line: isinstance(line, tuple)):
        part = list(run)
        text += _table(part, styles) if is_row else _wrapped([printable(str(line)) for line in part], sys.stdout)
    _write_stdout(text)


def print_json(value: Any) -> None:
    """Print one JSON object on stdout, in ASCII characters only."""
    _write_stdout(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def print_err(*lines: str) -> None:
    """Print lines on stderr; failures are ignored."""
    screen.print(lines)


class Screen:
    """Stderr, with a live display at its end if it is a terminal."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._lock = threading.RLock()

    @property
    def is_terminal(self) -> bool:
        """Whether lines can be redrawn in place."""
        return _is_terminal(sys.stderr) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")

    def print(self, lines: Sequence[str]) -> None:
        """Print permanent lines, above the live display."""
        text = _wrapped([_shortened(printable(line)) for line in lines], sys.stderr)
        with self._lock:
            if self._live is None:
                _write_stderr(text)
                return
            from rich.text import Text

            self._live.console.print(Text(text), soft_wrap=True, end="")

    def draw(self, content: RenderableType) -> None:
        """Show content in the live display, which starts if necessary."""
        with self._lock:
            if self._live is None:
                from rich.console import Console
                from rich.live import Live

                console = Console(file=cast("TextIO", _Stderr()), force_terminal=True, highlight=False)
                # without a thread of its own, which would outlive a fork
                self._live = Live(
                    console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
                )
                self._live.start()
            self._live.update(content, refresh=True)

    def clear(self) -> None:
        """Remove the live display."""
        with self._lock:
            if self._live is not None:
                live, self._live = self._live, None
                live.stop()


screen = Screen()


class _Stderr(io.TextIOBase):
    """The present stderr as a file whose failures are ignored."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        _write_stderr(text)
        return len(text)


class ScreenHandler(logging.Handler):
    """Logging handler that prints on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).split("\n")
        except Exception:  # a message that does not fit its arguments
            lines = [f"{record.levelname}: {record.msg}"]
        screen.print(lines)


class LineFormatter(logging.Formatter):
    """Formatter of one-line records (tracebacks excepted): a line break in a message could forge another record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in logging
        record.message = printable(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Open the null device for each standard stream that is closed, and discard streams that fail at exit.

    Otherwise the next file that is opened would get the number of the closed stream, and libraries that print would
    write into it. On exit, the previous streams and handler of warnings are restored.
    """
    before, shown = (sys.stdout, sys.stderr), warnings.showwarning
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, stack.enter_context(open(os.devnull, "w", encoding="utf-8")))  # noqa: PTH123
        try:
            yield
        finally:
            screen.clear()
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    _discard(stream)
            (sys.stdout, sys.stderr), warnings.showwarning = before, shown


def log_warnings() -> None:
    """Log warnings of libraries, until `standard_streams` ends."""
    log = logging.getLogger("wsi2ihc.libraries")

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,  # noqa: ARG001
        lineno: int,  # noqa: ARG001
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        log.warning("%s: %s", category.__name__, message)

    warnings.showwarning = show


def _write_stdout(text: str) -> None:
    screen.clear()
    try:
        click.echo(_encodable(text, sys.stdout), file=sys.stdout, nl=False)
    except OSError:
        _discard(sys.stdout)
        raise


def _write_stderr(text: str) -> None:
    try:
        click.echo(_encodable(text, sys.stderr), file=sys.stderr, nl=False)
    except OSError as error:
        if error.errno != errno.ENOSPC:  # a full disk may be temporary
            _discard(sys.stderr)
    except ValueError:  # a closed stream
        pass


def _encodable(text: str, stream: TextIO | None) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device, with what it has buffered: Python would report the failure at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def _wrapped(lines: Sequence[str], stream: TextIO | None) -> str:
    """Join lines; on a terminal, wrap them between words, except commands, so that these can be copied."""
    width = _terminal_width(stream)
    text = ""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        if width and len(line) > width and not line.lstrip().startswith("next: "):
            line = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        text += f"{line}\n"
    return text


def _terminal_width(stream: TextIO | None) -> int:
    """Return the width of a terminal in characters; 0 for another stream."""
    if stream is None or not _is_terminal(stream):
        return 0
    try:
        return int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _table(rows: Sequence[Line], styles: Mapping[str, str]) -> str:
    """Format rows as a table; columns of numbers, apart from their first row, are right-aligned."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for column in zip_longest(*rows, fillvalue=""):
        is_numeric = len(rows) > 1 and any(column[1:]) and all(map(_NUMBER.fullmatch, column[1:]))
        table.add_column(justify="right" if is_numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell), styles.get(cell, "")) for cell in row))
    is_terminal, text = _is_terminal(sys.stdout), io.StringIO()
    width = None if is_terminal else sum(len(cell) + 8 for row in rows for cell in row)
    Console(file=text, force_terminal=is_terminal, width=width).print(Padding.indent(table, 2))
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _shortened(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"
