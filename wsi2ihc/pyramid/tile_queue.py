"""Bounded buffer between the pipeline and the writer, which brings tiles into the order of the file."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait

from .levels import PyramidLevel, Tile

DISORDER_PX = 16384  # largest distance, in rows of px, of a tile below the first missing one


def default_pending() -> int:
    """Return a number of tiles in flight for which no core waits for the thread that reads and writes."""
    return max(16, 2 * (os.cpu_count() or 1))


class TileFeed:
    """Consumes tiles, encodes them in the executor, and returns the encoded bytes in any order.

    Ordering contract: each occupied tile comes exactly once, no other tile comes, and none comes more than
    `DISORDER_PX` (at least two rows of tiles) below the first missing one. Otherwise `ValueError` is raised.

    Memory bound: ``max_pending`` tiles of raw pixels (16 of 0.75 MiB by default, more with more than 8 cores), and the
    encoded bytes of tiles that came early, at most those of the rows that the ordering contract spans.

    The first failure, of a job or of the source, is raised; no tile is consumed after it. The source is consumed in the
    thread that calls `encoded`, and closed by `close` if possible; ``finish`` encodes a tile in the threads of the
    executor, which may be shared.
    """

    def __init__(
        self,
        tiles: Iterable[Tile],
        level: PyramidLevel,
        finish: Callable[[Tile], bytes],
        executor: Executor,
        max_pending: int,
    ) -> None:
        self._source: Iterator[Tile] = iter(tiles)
        self._level = level
        self._finish = finish
        self._executor = executor
        self._max_pending = max_pending
        self._rows_ahead = max(2, DISORDER_PX // level.tile_px)
        self._missing = bytearray(level.occupied.tobytes())  # one byte a tile, in raster order
        self._first_missing = self._missing.find(1)
        self._jobs: dict[int, Future[bytes]] = {}
        self._pending: deque[Future[bytes]] = deque()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self.source_failure: Exception | None = None

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an occupied tile by its index in raster order, once."""
        while True:
            job = self._jobs.get(index)
            if job is not None and job.done():
                break
            while self._pending and self._pending[0].done():
                self._pending.popleft()
            if self._first_missing >= 0 and len(self._pending) < self._max_pending:
                self._submit(self._pull())
            elif job is not None:
                break
            else:
                self._result(self._pending.popleft())
        data = self._result(job)
        del self._jobs[index]
        return data

    def finish(self) -> None:
        """Run the source to its end, which may have side effects; it must not yield another tile."""
        tile = self._next()
        if tile is not None:
            raise ValueError(f"tile ({tile.column}, {tile.row}) comes after all occupied tiles have come")

    def close(self) -> None:
        """Cancel jobs that have not started, wait for the others, and close the source."""
        # cancelled jobs are not waited for: they count as done only once a thread has taken them
        wait([job for job in self._jobs.values() if not job.cancel()])
        close_source = getattr(self._source, "close", None)
        if close_source is not None:
            close_source()

    def _next(self) -> Tile | None:
        tile: Tile | None = None
        if self._failure is None:
            try:
                tile = next(self._source, None)
            except Exception as error:
                self.source_failure = error
                self._note(error)
        if self._failure is not None:
            raise self._failure
        return tile

    def _pull(self) -> Tile:
        tile = self._next()
        if tile is None:
            row, column = divmod(self._first_missing, self._level.columns)
            raise ValueError(f"the tiles end, but tile ({column}, {row}) is occupied and has not come")
        return tile

    def _submit(self, tile: Tile) -> None:
        index = self._check(tile)
        self._missing[index] = 0
        if index == self._first_missing:
            self._first_missing = self._missing.find(1, index)
        job = self._executor.submit(self._run, tile)
        self._jobs[index] = job
        self._pending.append(job)

    def _check(self, tile: Tile) -> int:
        level, name = self._level, f"tile ({tile.column}, {tile.row})"
        if not (0 <= tile.column < level.columns and 0 <= tile.row < level.rows):
            raise ValueError(f"{name} lies outside the grid of {level.columns}×{level.rows} tiles")
        if not level.occupied[tile.row, tile.column]:
            raise ValueError(f"{name} comes, but was declared blank")
        index = tile.row * level.columns + tile.column
        if not self._missing[index]:
            raise ValueError(f"{name} comes a second time")
        first_row = self._first_missing // level.columns
        if tile.row - first_row > self._rows_ahead:
            raise ValueError(f"{name} comes too early: row {first_row} is incomplete, over {self._rows_ahead} rows up")
        if tile.pixels.shape != (level.tile_px, level.tile_px, 3) or tile.pixels.dtype != "u1":
            raise ValueError(f"{name} is not uint8 RGB of {level.tile_px}² px: {tile.pixels.shape} {tile.pixels.dtype}")
        return index

    def _run(self, tile: Tile) -> bytes:
        try:
            return self._finish(tile)
        except BaseException as error:
            self._note(error)
            raise

    def _result(self, job: Future[bytes]) -> bytes:
        if job.exception() is not None and self._failure is not None:
            raise self._failure
        return job.result()

    def _note(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
