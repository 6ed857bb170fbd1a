"""One band: claimed, translated by the stages that translate a whole slide, written, and marked as done."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..errors import OutputBusyError, OutputError
from ..files import sha256_of_file
from ..progress import ProgressCallback, silent
from ..pyramid import Tile
from ..pyramid.folders import remove_tree, sync_file
from ..pyramid.omezarr import open_level
from ..pyramid.shards import shards_ahead, write_tiles
from ..storage import disk_errors, sync_folder
from ..translation.pipeline import counted, tiles_of_cores, translated_cores
from ..translation.seams import SeamMeter
from ..translation.translating import DeviceClock
from .division import Band, cut_to_band
from .marker import Marker, write_marker
from .store import (
    Store,
    band_lock,
    forget_band,
    is_still_there,
    marker_of,
    marker_path,
    row_folders,
    shards_on_disk,
)

_log = logging.getLogger(__name__)


def translate_band(store: Store, number: int, *, progress: ProgressCallback = silent) -> bool:
    """Translate one band, unless it is done.

    Returns
    -------
    bool
        True if the band is done now; False if another process is at it.

    Raises
    ------
    OutputError
        If it cannot be written, or the store has been removed.
    Wsi2IhcError
        As the translation of a slide does; the band is not done then, and others are as they were.
    """
    try:
        with band_lock(store, number):
            if not is_still_there(store):
                raise OutputError(f"{store.folder} was removed by another run: run again")
            if marker_of(store, number) is None:
                _log.info("%s: band %d begun", store.output.name, number)
                _translate(store, store.bands[number], progress)
                _log.info("%s: band %d done", store.output.name, number)
    except OutputBusyError:
        return False
    return True


def _translate(store: Store, band: Band, progress: ProgressCallback) -> None:
    started = time.perf_counter()
    job, level, clock = store.job, store.levels[0], DeviceClock()
    meter = None
    if job.can_have_seams:
        meter = SeamMeter(band.shown, of_px=sum(one.shown.kept_px for one in store.bands))
    with disk_errors(store.folder):
        open_level(store.image, 0, write=True)  # where it is the output by now, nothing is to be taken from it
        forget_band(store, band.number)
        for folder in row_folders(store, band.number):  # a killed writer also leaves files that are no shards
            remove_tree(folder)
        with ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor:
            cores = translated_cores(job, band.work, executor, clock)
            cores = cut_to_band(counted(cores, progress, *_work_px(store)), band.region)
            tiles = _placed(tiles_of_cores(job, cores, band.shown, executor, meter), band)
            with contextlib.closing(tiles):
                ahead = shards_ahead(level, job.workers)
                write_tiles(store.image, tiles, level, band.rows, job.fill, executor, ahead)
        shards = _make_durable(store, band)
    run_s = time.perf_counter() - started
    write_marker(
        marker_path(store, band.number),
        Marker(shards, meter.sums() if meter else None, clock.busy_s, run_s, job.scene.damaged_places),
    )


def _placed(tiles: Iterable[Tile], band: Band) -> Generator[Tile, None, None]:
    """Tiles counted from the top of the output instead of the band's."""
    for tile in tiles:
        yield replace(tile, row=tile.row + band.rows.start)


def _work_px(store: Store) -> tuple[int, int]:
    """Px of windows of all bands, and of those that are done."""
    done = [store.bands[number].work.window_px for number in store.known]
    return sum(band.work.window_px for band in store.bands), sum(done)


def _make_durable(store: Store, band: Band) -> dict[str, tuple[int, str]]:
    """Bring a band's shards to the disk; their sizes and SHA-256."""
    sizes = shards_on_disk(store, band.number)
    if sizes is None:
        raise OutputError(
            f"{store.image}: band {band.number} is not as it was written: is another run at it? Run again"
        )
    for name in sizes:
        sync_file(store.image / name)
    rows = row_folders(store, band.number)
    for folder in (*rows, *rows[0].parents[:3]):  # a row's name lies in those above it, up to the level's
        sync_folder(folder)
    return {name: (size, sha256_of_file(store.image / name)) for name, size in sizes.items()}
