"""Keeping the table and the page of a running batch up to date, without ever holding the batch up."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OutputError, Wsi2IhcError
from ..pyramid import published
from .manifest import Row
from .page import PAGE_NAME, write_page
from .places import shards_folder
from .results import Result, read_results, table_name, write_table

TABLE_EVERY_S, PAGE_EVERY_S = 5.0, 60.0
"""Between two writings: with thousands of slides each takes a while."""

PATIENCE_S = 20.0

_log = logging.getLogger(__name__)


class ResultsWriter:
    """Writes the table of a running batch, and the page of all tables of its folder.

    They are written now and then, and where that is not possible (another batch is writing, the disk is full) at the
    next occasion; only the last writing is worth a word.

    Parameters
    ----------
    folder
        Of the outputs.
    shard
        Shards have tables of their own, so that none replaces another's.
    """

    def __init__(self, folder: Path, shard: str = "") -> None:
        self._folder, self._path = folder, folder / table_name(shard)
        self._table_at = self._page_at = -math.inf

    def update(self, results: Callable[[], Sequence[Result]]) -> None:
        """Write what has not been written for long enough."""
        now = time.monotonic()
        if now - self._table_at >= TABLE_EVERY_S:
            self._table_at = now
            with contextlib.suppress(OutputError):
                write_table(self._path, results())
        if now - self._page_at >= PAGE_EVERY_S:
            self._page_at = now
            with contextlib.suppress(Wsi2IhcError):
                write_page(self._folder, *read_results(self._folder))

    def finish(self, results: Sequence[Result]) -> None:
        """Write both, in the end; others may be doing so just now."""
        _patiently(lambda: write_table(self._path, results), self._path)
        _patiently(lambda: write_page(self._folder, *read_results(self._folder)), self._folder / PAGE_NAME)


def record_shard(folder: Path, shard: str, listed: Sequence[Row]) -> list[str]:
    """Note the list of slides that a shard is dealt from; the shards that were dealt from another one.

    If the list has changed between two tasks of an array job, some slides are in none of them.

    Parameters
    ----------
    folder
        Of the outputs.
    shard
        ``"I/N"``.
    listed
        All rows of the list.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    number, _, count = shard.partition("/")
    names = "\n".join(sorted(row.output for row in listed))
    own = hashlib.sha256(names.encode()).hexdigest()
    path = shards_folder(folder) / f"{int(number)}-of-{int(count)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, overwrite=True) as partial:
        partial.write_text(own, encoding="utf-8")
    others = (other for other in path.parent.glob(f"*-of-{int(count)}") if other != path)
    return sorted((other.name.partition("-")[0] for other in others if _text_of(other) != own), key=int)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _patiently(write: Callable[[], None], path: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return write()
        except Wsi2IhcError as error:
            if not isinstance(error, OutputError) or time.monotonic() > until:
                _log.warning("%s was not written: %s", path.name, error)
                return None
            time.sleep(0.1)
