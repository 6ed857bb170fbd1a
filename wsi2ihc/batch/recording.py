"""Keeping the table and the page of a running batch up to date, without ever holding the batch up."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OutputBusyError, Wsi2IhcError
from .page import PAGE_NAME, write_page
from .privacy import told
from .results import Result, read_results, table_name, write_table

TABLE_EVERY_S, PAGE_EVERY_S = 5.0, 60.0
"""Between two writings: with thousands of slides each takes a while."""

PATIENCE_S = 20.0

_NOT_NOW = (Wsi2IhcError, OSError, ValueError)
"""Why a table or page cannot be written, such as a full disk; none of it is a reason to end a batch."""

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
            # soon again after the first time, when all slides wait
            self._table_at = now if self._table_at > -math.inf else now - TABLE_EVERY_S + 1
            with contextlib.suppress(*_NOT_NOW):
                write_table(self._path, results())
        if now - self._page_at >= PAGE_EVERY_S:
            self._page_at = now
            with contextlib.suppress(*_NOT_NOW):
                write_page(self._folder, *read_results(self._folder))

    def finish(self, results: Sequence[Result]) -> list[str]:
        """Write both, in the end, and give the names of what was written; others may be doing so just now."""
        page = self._folder / PAGE_NAME
        writings: dict[Path, Callable[[], None]] = {
            self._path: lambda: write_table(self._path, results),
            page: lambda: write_page(self._folder, *read_results(self._folder)),
        }
        return [path.name for path, write in writings.items() if _patiently(write, path)]


def _patiently(write: Callable[[], None], path: Path) -> bool:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            write()
        except _NOT_NOW as error:
            if not isinstance(error, OutputBusyError) or time.monotonic() > until:
                _log.warning("%s was not written: %s", path.name, told(error, path))
                return False
            time.sleep(0.1)
        else:
            return True
