"""All that is printed passes here: made printable, in the encoding of the stream, and around what a terminal redraws.

Results go to stdout (`say`), and a reader of stdout that is gone is an error. Everything else goes to stderr (`tell`,
`screen`), which never ends the work: a full disk under a log file, a closed terminal and an absent stderr are ignored.
"""

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
"""Of one line on stderr: a file can bring megabytes of text."""


def say(*lines: str) -> None:
    """Print lines on stdout.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    _say("".join(f"{printable(line)}\n" for line in lines))


def echo_json(value: Any) -> None:
    """One JSON object on stdout, of ASCII characters only."""
    _say(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def tell(*lines: str) -> None:
    """Print lines on stderr, or nothing where that is not possible."""
    screen.tell(lines)


class Screen:
    """Stderr, and the lines at its end that are redrawn in place if it is a terminal."""

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
        """Print lines that stay, above those that are redrawn."""
        with self._lock:
            self.clear()
            _write_stderr("".join(f"{_shortened(printable(line))}\n" for line in lines))

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what was drawn by these lines, none of which wraps: a line that does could not be cleared."""
        size = _size()
        kept = [cut(printable(line), size.columns - 1) for line in lines[: max(1, size.lines - 1)]]
        with self._lock:
            self.clear()
            _write_stderr("\n".join(kept))
            self._drawn = len(kept)

    def clear(self) -> None:
        """Remove what was drawn."""
        with self._lock:
            if self._drawn:
                up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
                _write_stderr(f"\r{up}\x1b[J")
                self._drawn = 0


screen = Screen()


class ScreenHandler(logging.Handler):
    """Prints log records on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).split("\n")
        except Exception:  # a message that does not fit its arguments
            lines = [f"{record.levelname}: {record.msg}"]
        screen.tell(lines)


class LineFormatter(logging.Formatter):
    """Formats a record as one line, but for a traceback: a line break in a message would begin a forged record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in logging
        record.message = printable(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Open the null device for each standard stream that is closed, and leave none that fails when Python exits.

    The next file that is opened would take the number of a closed stream, and be written into by every library that
    prints. Warnings of libraries are printed as log records are.
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
    """Have warnings of libraries logged, until `standard_streams` ends."""
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
        if error.errno != errno.ENOSPC:  # there may be room again
            _discard(sys.stderr)
    except ValueError:  # a closed stream
        pass


def _encodable(text: str, stream: TextIO | None) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard(stream: TextIO) -> None:
    """Send what a stream still holds, and gets from now on, to nowhere: Python would report it when it exits."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def _size() -> os.terminal_size:
    """Of the terminal; the usual function looks at stdout, which may be a file."""
    with contextlib.suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stderr.fileno())
        if size.columns > 0 and size.lines > 0:
            return size
    return shutil.get_terminal_size()


def _shortened(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"
