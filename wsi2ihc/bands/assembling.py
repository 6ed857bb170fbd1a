"""From the bands to the output, in one pass: an OME-TIFF, or the store's own image with its lower levels.

The order in which things happen is what makes a kill at any moment harmless. It is noted in the
store what will be published (`note`), then the output gets its name, then the report and the preview are written beside
it, and only then is the store removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from pathlib import Path

from ..errors import OutputBusyError, OutputError
from ..files import sha256_of, sha256_of_file
from ..locks import locked
from ..progress import Progress, ProgressCallback, silent
from ..pyramid import PyramidReport, is_zarr, publish_folder, published, validate
from ..pyramid.folders import remove_replaced, sync_tree, tree_bytes
from ..pyramid.omezarr import create_image, open_level
from ..pyramid.shards import DamagedShardError, read_tiles, shards_ahead
from ..pyramid.zarr_levels import validate_image, write_lower_levels
from ..storage import disk_errors
from ..translation.finishing import Work, make_report, plan_facts, removing_extras, write_extras, write_image
from ..translation.job import Job
from ..translation.pipeline import extras_problem
from ..translation.provenance import describe_image
from ..translation.report import TranslateReport, unused_in_zarr
from ..translation.stage_names import CHECKING, WRITING
from .marker import Marker
from .note import forget_published, is_published, note_published, noted_report
from .places import DONE, LOCKS, alone, remove_store
from .store import Store, band_lock, band_numbers, forget_band, is_still_there, missing_bands

ASSEMBLING = "assembling"
"""The lock of the one who makes the output."""

_NO_PROFILE = "OME-Zarr has no place for the slide's colour profile, and it was left out; --icc srgb converts colours"

_log = logging.getLogger(__name__)


def assemble(store: Store, *, progress: ProgressCallback = silent) -> TranslateReport | None:
    """Make the output of a store whose bands are all done, and remove the store.

    Returns
    -------
    TranslateReport or None
        None if it cannot be made now: a band is missing, or could not be read back and is to be done again; or another
        process is at it.

    Raises
    ------
    OutputError
        If the output cannot be written, has appeared meanwhile and may not be replaced, or a band could not be read
        back for the second time.
    """
    try:
        with locked(store.folder / LOCKS, "", ASSEMBLING, make=False):
            if not is_still_there(store):
                return None
            if is_published(store.folder, store.output, store.job.options.pyramid):
                report = noted_report(store.folder, store.output)
                if report.output_sha256 != sha256_of(store.output):
                    forget_published(store.folder)
                    raise OutputError(
                        f"output {store.output} was changed after it was written: choose another name, or allow it to "
                        "be replaced with --overwrite"
                    )
                remove_replaced(store.output)
            else:
                # what was done may have been found damaged by another process since it was looked at
                store.known.clear()
                if missing_bands(store):
                    return None
                try:
                    report = _publish(store, [store.known[number] for number in band_numbers(store)], progress)
                except DamagedShardError as error:
                    _do_again(store, error)
                    return None
            if store.job.options.resume:  # else they were written before the output got its name
                write_extras(store.job, store.output, report, progress)
            _remove(store, progress)
    except OutputBusyError:
        return None
    return report


def _remove(store: Store, progress: ProgressCallback) -> None:
    """Remove the store, but not while others are reading what was settled. Its output needs it no more."""
    try:
        with alone(store.output, progress, wait=True):
            remove_store(store.folder, store.output)
    except OutputError as error:  # on Windows nothing is renamed in which a file is open
        _log.info("%s", error)


def _do_again(store: Store, damage: DamagedShardError) -> None:
    """Forget a band that cannot be read back, and note it in the store; `OutputBusyError` if another is at it."""
    number = next(band.number for band in store.bands if damage.row in band.rows)
    with band_lock(store, number):
        note = store.folder / DONE / f"{number:04d}.again"
        if note.exists():
            note.unlink()  # whoever has looked after the disk may try again
            raise OutputError(
                f"{store.image}: band {number}: {damage}, a second time; check the disk, or write elsewhere"
            )
        note.touch()
        forget_band(store, number)
    _log.warning("%s: band %d is done again: %s", store.folder.name, number, damage)


def _publish(store: Store, markers: list[Marker], progress: ProgressCallback) -> TranslateReport:
    _check_shards(store, markers)
    with disk_errors(store.output):
        if is_zarr(store.output):
            return _publish_zarr(store, markers, progress)
        return _publish_tiff(store, markers, progress)


def _check_shards(store: Store, markers: list[Marker]) -> None:
    """Refuse a shard that is not as it was written.

    Chunks carry checksums, but not all chunks are read: a shard of background is published as it is.

    Raises
    ------
    DamagedShardError
        If there is one.
    """
    expected = {name: digest for marker in markers for name, (_, digest) in marker.shards.items()}
    with ThreadPoolExecutor(store.job.workers, thread_name_prefix="verify") as executor:
        found = executor.map(lambda name: _digest_or_none(store.image / name), expected)
        for (name, digest), now in zip(expected.items(), found, strict=True):
            if digest != now:
                row, column = map(int, Path(name).parts[-2:])
                raise DamagedShardError(row, column, "it is not as it was written")


def _digest_or_none(shard: Path) -> str | None:
    try:
        return sha256_of_file(shard)
    except OSError as error:
        _log.info("%s cannot be read: %s", shard.name, error.strerror)
        return None


def _publish_tiff(store: Store, markers: list[Marker], progress: ProgressCallback) -> TranslateReport:
    job, level, started = store.job, store.levels[0], time.perf_counter()
    with (
        published(store.output, overwrite=job.options.overwrite) as partial,
        ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor,
    ):
        tiles = read_tiles(open_level(store.image, 0), level, executor, shards_ahead(level, job.workers))
        told = _told(store, progress)
        written = write_image(job, partial, tiles, level.occupied, executor, store.output.name, told)
        progress(Progress(CHECKING))
        validate(partial, written.levels, openslide_compatible=job.options.pyramid.openslide_compatible)
        report = _report(store, markers, written, time.perf_counter() - started)
        note_published(store.folder, partial, report)
    return report


def _publish_zarr(store: Store, markers: list[Marker], progress: ProgressCallback) -> TranslateReport:
    job, started, ahead = store.job, time.perf_counter(), shards_ahead(store.levels[0], store.job.workers)
    sizes = tuple(level.size for level in store.levels)
    with ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor:
        write_lower_levels(store.image, store.levels, job.fill, executor, ahead, _told(store, progress))
    create_image(store.image, describe_image(job, store.output.name), sizes)
    progress(Progress(CHECKING))
    validate_image(store.image, sizes)
    tiles = sum(level.occupied.size for level in store.levels)
    blank = tiles - sum(int(level.occupied.sum()) for level in store.levels)
    written = PyramidReport(sizes, tree_bytes(store.image), blank, tiles, sha256_of(store.image))
    report = _report(store, markers, written, time.perf_counter() - started)
    note_published(store.folder, store.image, report)
    problem = None
    if not job.options.resume:  # nobody finds this store again
        sync_tree(store.image)
        problem = extras_problem(job, store.output, report, store.image, progress)
    with removing_extras(job, store.output):
        publish_folder(store.image, store.output, job.options.overwrite)
    if problem is not None:
        raise problem
    return report


def _told(store: Store, progress: ProgressCallback) -> Callable[[int], None]:
    total = int(store.levels[0].occupied.sum())
    return lambda done: progress(Progress(WRITING, done, total, "tile"))


def _report(store: Store, markers: list[Marker], written: PyramidReport, assembling_s: float) -> TranslateReport:
    job = store.job
    seams = [marker.seams for marker in markers if marker.seams is not None]
    places = {*store.damaged, *(place for marker in markers for place in marker.damaged)}
    plan = plan_facts([band.work for band in store.bands], [band.shown for band in store.bands])
    height = store.bands[0].region.height
    work = Work(
        plan={**plan, "bands": len(store.bands), "band_px": height},
        seams=reduce(add, seams).figures() if seams else None,
        generator_s=sum(marker.generator_s for marker in markers),
        run_s=sum(marker.run_s for marker in markers) + assembling_s,
        unreadable=len(places),
        warnings=_left_out(job) if is_zarr(store.output) else (),
    )
    return make_report(job, store.output.name, written, work)


def _left_out(job: Job) -> tuple[str, ...]:
    """What was asked for, or is in the slide, and OME-Zarr has not."""
    unused = unused_in_zarr(job.options.pyramid)
    warnings = (f"OME-Zarr is lossless, and has nothing that {', '.join(unused)} could change",) if unused else ()
    profile_lost = job.options.icc == "keep" and job.slide.info.icc_profile is not None
    return (*warnings, _NO_PROFILE) if profile_lost else warnings
