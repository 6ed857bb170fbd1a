"""The folder in which a translation grows band by band, shared by all processes that work on it.

It is hidden and lies beside the output: ``.NAME.bands`` holds what was settled (`record`), the image, a marker for each
finished band, and locks, which end with the process that holds them. It appears under its name only with everything
settled, so those who come later agree with the first to the bit. A run that nobody is to go on with (OME-Zarr without
``resume``) has a store of its own, under a name that only it knows, and removes it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ..locks import is_there, locked
from ..pyramid.levels import Level
from ..pyramid.omezarr import shard_grid, shard_path
from ..translation.job import Job
from .division import Band
from .marker import Marker, read_marker
from .places import DONE, IMAGE, IN_USE, LOCKS


@dataclass(slots=True)
class Store:
    """An open store.

    folder:   of the store
    output:   what it will become
    job:      the translation, prepared as everybody has it
    bands:    all of them
    levels:   of the output
    damaged:  places of the slide that were unreadable when the tissue was looked for: (level, x, y)
    user:     held open as long as this process uses the store
    known:    markers of bands that were found done
    """

    folder: Path
    output: Path
    job: Job
    bands: tuple[Band, ...]
    levels: tuple[Level, ...]
    damaged: tuple[tuple[int, int, int], ...]
    user: TextIO
    known: dict[int, Marker] = field(default_factory=dict)

    @property
    def image(self) -> Path:
        """The image that grows."""
        return self.folder / IMAGE


def is_still_there(store: Store) -> bool:
    """Whether the store is still under its name: who completes the output removes it."""
    return is_there(store.user, store.folder / IN_USE)


def band_lock(store: Store, number: int) -> contextlib.AbstractContextManager[object]:
    """The lock of the one who works on a band; `OutputBusyError` if another has it."""
    return locked(store.folder / LOCKS, "", f"{number:04d}", make=False)


def marker_path(store: Store, number: int) -> Path:
    """Where the marker of a band lies."""
    return store.folder / DONE / f"{number:04d}.json"


def band_numbers(store: Store) -> range:
    """All bands, done or not."""
    return range(len(store.bands))


def missing_bands(store: Store) -> list[int]:
    """The bands that are not done; some of them may be in work elsewhere."""
    return [number for number in band_numbers(store) if marker_of(store, number) is None]


def marker_of(store: Store, number: int) -> Marker | None:
    """The marker of a band that is done, else None. What was found good once is believed."""
    if number not in store.known:
        marker = read_marker(marker_path(store, number))
        if marker is None or marker.sizes != shards_on_disk(store, number):
            return None
        if marker.damaged and store.job.options.on_read_error == "fail":
            return None
        store.known[number] = marker
    return store.known[number]


def row_folders(store: Store, number: int) -> list[Path]:
    """The folders of a band's rows of shards, there or not. What is in them is the band's own."""
    return [store.image / shard_path(0, row, 0).parent for row in store.bands[number].rows]


def shards_on_disk(store: Store, number: int) -> dict[str, int] | None:
    """Bytes of each shard of a band, by its path in the image; None if one is missing, or there is anything else."""
    try:
        files = [file for folder in row_folders(store, number) for file in folder.iterdir()]
        sizes = {file.relative_to(store.image): file.stat().st_size for file in files}
    except (FileNotFoundError, NotADirectoryError):  # or the image has become the output in between
        return None
    _, columns = shard_grid(store.levels[0])
    expected = {shard_path(0, row, column) for row in store.bands[number].rows for column in range(columns)}
    return {path.as_posix(): size for path, size in sizes.items()} if sizes.keys() == expected else None


def forget_band(store: Store, number: int) -> None:
    """Take a band for undone, in all processes that have not found it good yet. Its lock has to be held.

    Raises
    ------
    OSError
        If the file system refuses.
    """
    store.known.pop(number, None)
    marker_path(store, number).unlink(missing_ok=True)
