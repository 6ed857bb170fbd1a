"""Where encoded tiles of the lower levels wait until level 0 is complete."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from .levels import Level


class TileSpool:
    """Encoded tiles in an anonymous temporary file: nothing of it is left, even if the process is killed.

    TIFF wants the data of a lower level behind that of level 0, yet both are made at the same time.

    Memory bound: 16 bytes a tile. Disk: about a third of level 0.

    Parameters
    ----------
    folder
        Where the file lies: that of the output, which has to have room for the same bytes anyway.
    levels
        All levels of the pyramid; level 0 has no business here but keeps the numbering plain.
    """

    def __init__(self, folder: Path, levels: Sequence[Level]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._lock = threading.Lock()
        self._end = 0
        self._starts = [np.zeros(level.occupied.size if number else 0, np.int64) for number, level in enumerate(levels)]
        self._lengths = [np.zeros_like(starts) for starts in self._starts]

    def put(self, level: int, index: int, data: bytes) -> None:
        """Keep one tile; ``index`` counts the level's tiles in raster order. Thread-safe."""
        with self._lock:
            self._file.write(data)
            self._starts[level][index] = self._end
            self._lengths[level][index] = len(data)
            self._end += len(data)

    def get(self, level: int, index: int) -> bytes:
        """Give back a tile that was put. Once anything has been given back, nothing more can be put.

        Raises
        ------
        KeyError
            If it was not.
        """
        with self._lock:
            length = int(self._lengths[level][index])
            if not length:
                raise KeyError(f"tile {index} of level {level}")
            self._file.seek(int(self._starts[level][index]))
            return self._file.read(length)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TileSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
