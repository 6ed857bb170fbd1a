"""All output of the program: made printable, in the encoding of the stream."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import click

from wsi2ihc.text import cut, printable

MOST_CHARACTERS = 2000
"""Longest line on stderr: text from a file can have megabytes."""


def say(*lines: str) -> None:
    """Print lines on stdout.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    _say("".join(f"{printable(line)}\n" for line in lines))


def echo_json(value: Any) -> None:
    """Print one JSON object on stdout, in ASCII characters only."""
    _say(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def tell(*lines: str) -> None:
    """Print lines on stderr; failures are ignored."""
    screen.tell(lines)


class Screen:
    """Stderr, with lines at its end that are redrawn in place if it is a terminal."""

    def __init__(self) -> None:
        self._drawn = 0
        self._lock = threading.RLock()

    @property
    def is_terminal(self) -> bool:
        """Whether lines can be redrawn in place."""
        try:
            return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        except (OSError, ValueError):
            return False

    def tell(self, lines: Sequence[str]) -> None:
        """Print permanent lines, above those that are redrawn."""
        with self._lock:
            self.clear()
            _write_stderr("".join(f"{_shortened(printable(line))}\n" for line in lines))

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the drawn lines. Each is cut to the terminal's width: a wrapped line could not be cleared."""
        size = _size()
        kept = [cut(printable(line), size.columns - 1) for line in lines[: max(1, size.lines - 1)]]
        with self._lock:
            self.clear()
            _write_stderr("\n".join(kept))
            self._drawn = len(kept)

    def clear(self) -> None:
        """Remove the drawn lines."""
        with self._lock:
            if self._drawn:
                up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
                _write_stderr(f"\r{up}\x1b[J")
                self._drawn = 0


screen = Screen()


class ScreenHandler(logging.Handler):
    """Logging handler that prints on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).split("\n")
        except Exception:  # a message that does not fit its arguments
            lines = [f"{record.levelname}: {record.msg}"]
        screen.tell(lines)


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


def _say(text: str) -> None:
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


def _size() -> os.terminal_size:
    """Size of the terminal behind stderr; `shutil.get_terminal_size` uses stdout, which may be a file."""
    with contextlib.suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stderr.fileno())
        if size.columns > 0 and size.lines > 0:
            return size
    return shutil.get_terminal_size()


def _shortened(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"
