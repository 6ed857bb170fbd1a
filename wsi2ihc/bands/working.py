"""One band: claimed, translated by the stages that translate a whole slide, written, and marked as done."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ..errors import OutputBusyError, OutputError, Wsi2IhcError
from ..locks import locked
from ..progress import ProgressCallback, silent
from ..pyramid import Tile
from ..pyramid.atomic import sync_folder
from ..pyramid.folders import sync_file
from ..pyramid.omezarr import shard_columns, shard_path
from ..pyramid.shards import write_tiles
from ..pyramid.writer import disk_error
from ..translation.pipeline import counted, tiles_of_cores, translated_cores
from ..translation.reading import ForgivingSlide
from ..translation.seams import SeamMeter
from ..translation.translating import DeviceClock
from .division import Band, cut_to_band
from .marker import Marker, write_marker
from .places import LOCKS
from .store import Store, forget_band, is_still_there, marker_of, marker_path

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
        with locked(store.folder / LOCKS, "", f"{number:04d}", make=False):
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
    try:
        forget_band(store, band.number)
        for file in _shards(store, band):
            file.unlink(missing_ok=True)
        with ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor:
            cores = translated_cores(job, band.work, executor, clock)
            cores = cut_to_band(counted(cores, progress, *_work_px(store)), band.region)
            tiles = _placed(tiles_of_cores(job, cores, band.shown, executor, meter), band)
            with contextlib.closing(tiles):
                write_tiles(store.image, tiles, level, band.rows, job.fill, executor, ahead=job.workers + 1)
        sizes = _make_durable(store, band)
    except OSError as error:
        if isinstance(error, Wsi2IhcError):
            raise
        raise disk_error(store.folder, error) from error
    run_s = time.perf_counter() - started
    write_marker(
        marker_path(store, band.number),
        Marker(sizes, meter.sums() if meter else None, clock.busy_s, run_s, _damaged(store)),
    )


def _placed(tiles: Iterable[Tile], band: Band) -> Generator[Tile, None, None]:
    """Tiles counted from the top of the output instead of the band's."""
    for tile in tiles:
        yield replace(tile, row=tile.row + band.rows.start)


def _work_px(store: Store) -> tuple[int, int]:
    """Px of windows of all bands, and of those that are done."""
    done = [store.bands[number].work.window_px for number in store.known]
    return sum(band.work.window_px for band in store.bands), sum(done)


def _shards(store: Store, band: Band) -> Iterator[Path]:
    """The files that a band owns, there or not."""
    level = store.levels[0]
    for row in band.rows:
        for column in range(-(-level.columns // shard_columns(level))):
            yield store.image / shard_path(0, row, column)


def _make_durable(store: Store, band: Band) -> dict[str, int]:
    """Bring a band's files to the disk; their sizes. What is nothing but zeros has no file."""
    sizes: dict[str, int] = {}
    for file in _shards(store, band):
        if file.exists():
            sync_file(file)
            sizes[file.relative_to(store.image).as_posix()] = file.stat().st_size
    for folder in {(store.image / name).parent for name in sizes}:
        sync_folder(folder)
    return sizes


def _damaged(store: Store) -> tuple[tuple[int, int, int], ...]:
    slide = store.job.scene.reader.slide
    if not isinstance(slide, ForgivingSlide):
        return ()
    return tuple(sorted((level, region.x, region.y) for level, region in slide.damaged))
