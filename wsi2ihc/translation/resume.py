"""Resumable translation in bands, in one or several processes.

`open_checkpoint` opens or creates the checkpoint folder. `complete` translates every band that no other process is
working on (`translate_band`), and assembles the output when all bands are done (`assemble`). A band is marked as done
after its shards are on disk. A commit record is written before the output gets its name, so that any other process can
do the cleanup that remains. An interruption costs at most the bands in progress.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from ..atomic_files import disk_errors, published, remove_tree, sync_file, sync_folder, sync_tree, tree_bytes
from ..concurrency import Progress, ProgressCallback, silent
from ..errors import OutputBusyError, OutputError, OutputExistsError
from ..files import sha256_of, sha256_of_file
from ..geometry import Size
from ..locks import exclusive_lock, in_use
from ..models.registry import Model
from ..pyramid import PyramidReport, is_zarr, publish_folder, validate
from ..pyramid.levels import PyramidLevel, plan_levels, tile_grid
from ..pyramid.ome_zarr import (
    DamagedShardError,
    check_level,
    create_image,
    create_level,
    open_level,
    read_tiles,
    remove_old_versions,
    shards_ahead,
    validate_image,
    write_downsampled_levels,
    write_tiles,
)
from ..slide import Slide
from .checkpoint_folder import (
    COMMITTED,
    DONE,
    IMAGE,
    IN_USE,
    LOCKS,
    PAUSE_S,
    Band,
    Checkpoint,
    DoneMarker,
    band_height,
    checkpoint_lock,
    checkpoint_path,
    committed_report,
    core_for_bands,
    count_done,
    crop_to_band,
    damaged_checkpoint,
    divide_into_bands,
    hidden_checkpoint_path,
    is_committed,
    occupied_tiles,
    read_shared_plan,
    record_commit,
    remove_checkpoint,
    remove_interrupted_folders,
    remove_shared_checkpoint,
    write_done_marker,
    write_shared_plan,
)
from .job import SharedPlan, TranslationFingerprint, TranslationJob, differences, prepare, translation_fingerprint
from .options import CHECKING, WAITING, WRITING, TranslateOptions
from .output import (
    WorkSummary,
    check_outputs,
    extras_removed_on_error,
    make_report,
    plan_metadata,
    report_progress,
    tiles_of_cores,
    translated_cores,
    write_extras,
    write_extras_first,
    write_image,
)
from .report import TranslateReport, describe_image, unused_in_zarr
from .seams import SeamMeter
from .stages import DeviceClock
from .window_size import choose_layout

_MAX_EXCESS = 1.25
"""Windows of a shared plan may be this many times larger than affordable without a warning, since memory use varies."""

_ASSEMBLE_LOCK = "assembling"
"""Lock held while the output is assembled."""

_NO_PROFILE = "OME-Zarr cannot store the color profile of the slide, which was left out; --icc srgb converts colors"

_log = logging.getLogger(__name__)


@contextmanager
def open_checkpoint(
    slide: Slide,
    generator: Model,
    output: str | os.PathLike[str],
    options: TranslateOptions | None = None,
    *,
    fingerprint: TranslationFingerprint | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[Checkpoint]:
    """Open the checkpoint folder of an output while the body runs; create it if it is missing.

    With ``options.resume`` it is shared, and stays until the output is complete; else it belongs to this process and is
    removed at the end. The lock is held while the folder is created, which includes `prepare`. Processes that find an
    existing folder release the lock first, so they run `prepare` in parallel.

    Parameters
    ----------
    fingerprint
        Result of `translation_fingerprint`, if known.

    Raises
    ------
    OutputError
        If the output cannot be written, if another run is writing it, if the file system has no locks for a shared
        folder, or if the folder belongs to another translation (unless ``options.overwrite`` allows a restart).
    Wsi2IhcError
        As `prepare` does.
    """
    options, path = options or TranslateOptions(), Path(output)
    fingerprint = fingerprint or translation_fingerprint(slide, generator, options)
    _check_outputs(slide, path, options)  # before waiting for the lock
    with ExitStack() as stack:
        job, folder = None, checkpoint_path(path)
        with checkpoint_lock(path, progress, wait=options.resume) as is_locked:
            if options.resume and not is_locked:
                raise OutputError(
                    f"{path.parent}: this file system has no locks, so two runs could do the same part of {path.name} "
                    "at once; translate without --resume, or write elsewhere"
                )
            _check_outputs(slide, path, options)  # another process may have written it while this one waited
            with disk_errors(folder):
                remove_old_versions(path)
                remove_interrupted_folders(path, shared=options.resume)
                shared = _shared_plan_or_restart(path, fingerprint, options) if options.resume else None
            if shared is None:
                job = prepare(slide, generator, options, fingerprint=fingerprint, progress=progress)
                shared = _make_shared_plan(job)
                folder = _create(path, job, shared)
                if not options.resume:
                    stack.callback(remove_tree, folder)
            with disk_errors(folder):
                in_use_file = stack.enter_context(in_use(folder / IN_USE))
        if job is None:
            job = prepare(slide, generator, options, shared=shared, fingerprint=fingerprint, progress=progress)
            _check_device(job, folder)
            if not _is_published(path, options):
                _warn_about_kept_options(job, shared, folder)
        bands = divide_into_bands(job, shared.core_size, shared.band_px)
        tile_px = job.options.pyramid.tile_px
        levels = plan_levels(job.plan.extent.size, tile_px, occupied_tiles(bands, tile_px))
        yield Checkpoint(folder, path, job, bands, levels, shared.unreadable_areas, in_use_file)


def check_checkpoint(
    slide: Slide, generator: Model, output: str | os.PathLike[str], options: TranslateOptions | None = None
) -> int | None:
    """Raise the errors of `open_checkpoint` without opening anything; return the number of finished bands, if any."""
    options, path = options or TranslateOptions(), Path(output)
    _check_outputs(slide, path, options)
    if not options.overwrite:  # with it, a folder that does not match is replaced
        _existing_shared_plan(path, translation_fingerprint(slide, generator, options), options)
    return count_done(path)


def _is_published(output: Path, options: TranslateOptions) -> bool:
    """Return whether the output was published from the shared checkpoint folder, so that only cleanup remains."""
    return options.resume and is_committed(checkpoint_path(output), output, options.pyramid)


def _check_outputs(slide: Slide, output: Path, options: TranslateOptions) -> None:
    """Check the outputs, and accept an existing one that was published from the checkpoint folder."""
    try:
        check_outputs(slide, output, options)
    except OutputExistsError:
        if not _is_published(output, options):  # checked last, since another process may be publishing it right now
            raise


def _shared_plan_or_restart(
    output: Path, fingerprint: TranslationFingerprint, options: TranslateOptions
) -> SharedPlan | None:
    """Read the shared plan of an existing folder; with ``overwrite``, remove a folder that does not match."""
    try:
        return _existing_shared_plan(output, fingerprint, options)
    except OutputError as error:
        if not options.overwrite:
            raise
        _log.warning("%s: restarted", error)
        remove_shared_checkpoint(output)
        return None


def _existing_shared_plan(
    output: Path, fingerprint: TranslationFingerprint, options: TranslateOptions
) -> SharedPlan | None:
    """Read the shared plan of an existing folder; `OutputError` if it is damaged or has other settings."""
    folder = checkpoint_path(output)
    if not folder.is_dir():
        return None
    shared = read_shared_plan(folder)
    for name, is_kind in ((IN_USE, Path.is_file), (DONE, Path.is_dir), (LOCKS, Path.is_dir)):
        if not is_kind(folder / name):
            raise damaged_checkpoint(folder, f"no {name}")
    _check_image(folder, shared, output, options)
    # Bands that were finished with "fail" have no unreadable areas, so that "background" gives the same pixels.
    ignored = ("--on-read-error",) if options.on_read_error == "background" else ()
    if found := differences(shared.fingerprint, fingerprint, ignored=ignored):
        raise OutputError(
            f"{folder}: started with other settings: {'; '.join(found)}. Resume with the original ones, choose "
            "another output, or restart with --overwrite"
        )
    return shared


def _check_image(folder: Path, shared: SharedPlan, output: Path, options: TranslateOptions) -> None:
    """Refuse a checkpoint folder with a damaged image, unless the image has become the output."""
    try:
        check_level(folder / IMAGE, 0, _empty_level(shared.size, shared.layout.tile_px))
    except OutputError as error:
        if not _is_published(output, options):
            raise damaged_checkpoint(folder, str(error)) from error


def _empty_level(size: Size, tile_px: int) -> PyramidLevel:
    """Describe level 0 of the growing image; which tiles are occupied is not stored."""
    return PyramidLevel(size, tile_px, np.zeros(tile_grid(size, tile_px), np.bool_))


def _make_shared_plan(job: TranslationJob) -> SharedPlan:
    band_px = band_height(job.options, job.layout.overlap_px, job.options.pyramid.tile_px)
    return SharedPlan(
        fingerprint=job.fingerprint,
        mask=job.prepared.mask,
        statistics=job.inference.statistics,
        layout=job.layout,
        core_size=core_for_bands(job, band_px),
        fill=job.fill,
        band_px=band_px,
        size=job.plan.extent.size,
        unreadable_areas=job.prepared.unreadable_areas,
    )


def _create(output: Path, job: TranslationJob, shared: SharedPlan) -> Path:
    """Create a checkpoint folder, under the shared name with ``resume``, else under a hidden one."""
    folder = hidden_checkpoint_path(output)
    try:
        with disk_errors(checkpoint_path(output)):
            for part in (folder, folder / DONE, folder / LOCKS):
                part.mkdir()
            (folder / IN_USE).touch()
            write_shared_plan(folder, shared)
            create_image(folder / IMAGE, describe_image(job, output.name), levels=1)
            create_level(folder / IMAGE, 0, _empty_level(shared.size, job.options.pyramid.tile_px))
            sync_tree(folder)
            if not job.options.resume:
                return folder
            folder.rename(checkpoint_path(output))
            sync_folder(output.parent)
    except BaseException:
        remove_tree(folder)
        raise
    return checkpoint_path(output)


def _check_device(job: TranslationJob, folder: Path) -> None:
    """Refuse a device that needs another window layout than the shared plan has."""
    translator, layout = job.inference.translators[0], job.layout
    if (translator.halo_px, translator.stride_px) != (layout.halo_px, layout.stride_px) or (
        layout.multiple_px % translator.multiple_px
    ):
        raise OutputError(f"{folder}: started on another kind of device; resume with the original --device")


def _warn_about_kept_options(job: TranslationJob, shared: SharedPlan, folder: Path) -> None:
    """Warn about options that the shared plan overrides."""
    options, size = job.options, shared.layout.max_window_px
    if options.band_px and band_height(options, job.layout.overlap_px, options.pyramid.tile_px) != shared.band_px:
        _log.warning("%s: resuming with the original --band-height %d", folder.name, shared.band_px)
    affordable = choose_layout(job.inference, options, job.prepared.extent.width).max_window_px
    if size > _MAX_EXCESS * affordable:
        _log.warning(
            "%s: resuming with the original windows of up to %.2f Mpx, and this process can afford %.2f: if it runs "
            "out of memory, raise --max-memory, use another --device, or remove that folder to restart",
            folder.name, size / 1e6, affordable / 1e6,
        )  # fmt: skip


def complete(checkpoint: Checkpoint, *, progress: ProgressCallback = silent) -> TranslateReport | None:
    """Translate the missing bands and publish the output, in cooperation with other processes.

    Returns None if another process published the output and removed the folder. After an error, finished bands are
    kept.
    """
    while checkpoint.still_exists():
        is_published, worked = checkpoint.is_published, False
        try:
            for number in () if is_published else checkpoint.missing_bands():
                worked |= translate_band(checkpoint, number, progress=progress)
            if is_published or not checkpoint.missing_bands():
                report = assemble(checkpoint, progress=progress)
                if report is not None:
                    return report
        except OutputError:
            # another process may have published the output, and so moved the image or removed the folder
            if not checkpoint.still_exists():
                break
            if is_published or not checkpoint.is_published:
                raise
            continue
        if not worked:
            progress(Progress(WAITING))
            time.sleep(PAUSE_S)
    return None


def translate_band(checkpoint: Checkpoint, number: int, *, progress: ProgressCallback = silent) -> bool:
    """Translate one band, unless it is done; return False if another process is working on it.

    After an error the band is not done, and others are unchanged.

    Raises
    ------
    OutputError
        If it cannot be written, or the folder has been removed.
    """
    try:
        with checkpoint.band_lock(number):
            if not checkpoint.still_exists():
                raise OutputError(f"{checkpoint.folder} was removed by another run: run again")
            if checkpoint.done_marker(number) is None:
                _log.info("%s: band %d started", checkpoint.output.name, number)
                _write_band(checkpoint, checkpoint.bands[number], progress)
                _log.info("%s: band %d done", checkpoint.output.name, number)
    except OutputBusyError:
        return False
    return True


def _write_band(checkpoint: Checkpoint, band: Band, progress: ProgressCallback) -> None:
    started = time.perf_counter()
    job, level, clock = checkpoint.job, checkpoint.levels[0], DeviceClock()
    meter = None
    if job.can_have_seams:
        meter = SeamMeter(band.cropped_plan, total_px=sum(one.cropped_plan.kept_px for one in checkpoint.bands))
    with disk_errors(checkpoint.folder):
        # fails, before anything is removed, if the image has become the output
        open_level(checkpoint.image, 0, write=True)
        checkpoint.remove_done_marker(band.number)
        for folder in checkpoint.row_folders(band.number):  # also removes partial files of interrupted writers
            remove_tree(folder)
        total_px = sum(one.plan.window_px for one in checkpoint.bands)
        done_px = sum(checkpoint.bands[number].plan.window_px for number in checkpoint.done_markers)
        with ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor:
            cores = translated_cores(job, band.plan, executor, clock)
            cores = crop_to_band(report_progress(cores, progress, total_px, done_px), band.region)
            band_tiles = tiles_of_cores(job, cores, band.cropped_plan, executor, meter)  # rows count from its top
            tiles = (replace(tile, row=tile.row + band.rows.start) for tile in band_tiles)
            with contextlib.closing(tiles):
                ahead = shards_ahead(level, job.workers)
                write_tiles(checkpoint.image, tiles, level, band.rows, job.fill, executor, ahead)
        shards = _sync_shards(checkpoint, band)
    run_s = time.perf_counter() - started
    write_done_marker(
        checkpoint.marker_path(band.number),
        DoneMarker(shards, meter.statistics() if meter else None, clock.busy_s, run_s, job.prepared.unreadable_areas),
    )


def _sync_shards(checkpoint: Checkpoint, band: Band) -> dict[str, tuple[int, str]]:
    """Flush the shards of a band to disk, and return their sizes and SHA-256."""
    sizes = checkpoint.shards_on_disk(band.number)
    if sizes is None:
        raise OutputError(
            f"{checkpoint.image}: the shards of band {band.number} changed after they were written: is another run "
            "working on it? Run again"
        )
    for name in sizes:
        sync_file(checkpoint.image / name)
    rows = checkpoint.row_folders(band.number)
    for folder in (*rows, *rows[0].parents[:3]):  # also 0/c/0, 0/c and 0, which the first row may have created
        sync_folder(folder)
    return {name: (size, sha256_of_file(checkpoint.image / name)) for name, size in sizes.items()}


def assemble(checkpoint: Checkpoint, *, progress: ProgressCallback = silent) -> TranslateReport | None:
    """Assemble and publish the output if all bands are done, and remove the checkpoint folder.

    Returns None if another process is assembling, or if a band is missing. A band with a damaged shard becomes missing,
    and is to be translated again.

    Raises
    ------
    OutputError
        If the output cannot be written or has appeared meanwhile, or a band has a damaged shard for the second time.
    """
    try:
        with exclusive_lock(checkpoint.folder / LOCKS, "", _ASSEMBLE_LOCK, make=False):
            if not checkpoint.still_exists():
                return None
            if checkpoint.is_published:
                report = _published_report(checkpoint)
                remove_old_versions(checkpoint.output)
            else:
                checkpoint.done_markers.clear()  # another process may have removed the marker of a damaged band
                found = map(checkpoint.done_marker, range(len(checkpoint.bands)))
                markers = [marker for marker in found if marker is not None]
                if len(markers) < len(checkpoint.bands):
                    return None
                try:
                    report = _publish(checkpoint, markers, progress)
                except DamagedShardError as error:
                    _retry_damaged_band(checkpoint, error)
                    return None
            if checkpoint.job.options.resume:  # else this is an OME-Zarr, and `_publish_zarr` has written them
                write_extras(checkpoint.job, checkpoint.output, report, progress)
            _clean_up(checkpoint, progress)
    except OutputBusyError:
        return None
    return report


def _published_report(checkpoint: Checkpoint) -> TranslateReport:
    """Read the report of the published output; refuse an output that was changed, and forget that it was published."""
    report = committed_report(checkpoint.folder, checkpoint.output)
    if report.output_sha256 != sha256_of(checkpoint.output):
        (checkpoint.folder / COMMITTED).unlink(missing_ok=True)
        raise OutputError(
            f"output {checkpoint.output} was changed after it was written: choose another name, or replace it with "
            "--overwrite"
        )
    return report


def _clean_up(checkpoint: Checkpoint, progress: ProgressCallback) -> None:
    """Remove the checkpoint folder; the lock keeps others from reading the shared plan meanwhile."""
    try:
        with checkpoint_lock(checkpoint.output, progress, wait=True):
            remove_checkpoint(checkpoint.folder, checkpoint.output)
    except OutputError as error:  # Windows does not rename folders with open files; the next run removes it
        _log.info("%s", error)


def _retry_damaged_band(checkpoint: Checkpoint, damage: DamagedShardError) -> None:
    """Remove the done marker of the band of a damaged shard, unless it is damaged for the second time.

    Raises `OutputError` in this case, and `OutputBusyError`, which `assemble` expects, if another process is working on
    the band.
    """
    number = next(band.number for band in checkpoint.bands if damage.row in band.rows)
    with checkpoint.band_lock(number):
        repeated = checkpoint.folder / DONE / f"{number:04d}.again"
        if repeated.exists():
            repeated.unlink()  # the next run may try again
            raise OutputError(
                f"{checkpoint.image}: band {number}: {damage}, a second time; check the disk, or write elsewhere"
            )
        repeated.touch()
        checkpoint.remove_done_marker(number)
    _log.warning("%s: band %d is translated again: %s", checkpoint.folder.name, number, damage)


def _publish(checkpoint: Checkpoint, markers: list[DoneMarker], progress: ProgressCallback) -> TranslateReport:
    _check_shards(checkpoint, markers)
    with disk_errors(checkpoint.output):
        if is_zarr(checkpoint.output):
            return _publish_zarr(checkpoint, markers, progress)
        return _publish_tiff(checkpoint, markers, progress)


def _check_shards(checkpoint: Checkpoint, markers: list[DoneMarker]) -> None:
    """Compare all shards with the SHA-256 in their markers; shards of background are not decoded later."""
    expected = {name: digest for marker in markers for name, (_, digest) in marker.shards.items()}
    with ThreadPoolExecutor(checkpoint.job.workers, thread_name_prefix="verify") as executor:
        digests = executor.map(lambda name: _digest_or_none(checkpoint.image / name), expected)
        for (name, before), now in zip(expected.items(), digests, strict=True):
            if before != now:
                row, column = map(int, Path(name).parts[-2:])
                raise DamagedShardError(row, column, "it has changed since it was written")


def _digest_or_none(shard: Path) -> str | None:
    try:
        return sha256_of_file(shard)
    except OSError as error:
        _log.info("%s cannot be read: %s", shard.name, error.strerror)
        return None


def _publish_tiff(checkpoint: Checkpoint, markers: list[DoneMarker], progress: ProgressCallback) -> TranslateReport:
    job, level, started = checkpoint.job, checkpoint.levels[0], time.perf_counter()
    with (
        published(checkpoint.output, overwrite=job.options.overwrite) as partial,
        ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor,
    ):
        tiles = read_tiles(open_level(checkpoint.image, 0), level, executor, shards_ahead(level, job.workers))
        on_progress = _writing_progress(checkpoint, progress)
        written = write_image(job, partial, tiles, level.occupied, executor, checkpoint.output.name, on_progress)
        progress(Progress(CHECKING))
        validate(partial, written.levels, openslide_compatible=job.options.pyramid.openslide_compatible)
        report = _make_report(checkpoint, markers, written, time.perf_counter() - started)
        record_commit(checkpoint.folder, partial, report)
    return report


def _publish_zarr(checkpoint: Checkpoint, markers: list[DoneMarker], progress: ProgressCallback) -> TranslateReport:
    job, levels, image, started = checkpoint.job, checkpoint.levels, checkpoint.image, time.perf_counter()
    sizes = tuple(level.size for level in levels)
    with ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor:
        ahead = shards_ahead(levels[0], job.workers)
        write_downsampled_levels(image, levels, job.fill, executor, ahead, _writing_progress(checkpoint, progress))
    create_image(image, describe_image(job, checkpoint.output.name), len(sizes))
    progress(Progress(CHECKING))
    validate_image(image, sizes)
    tiles = sum(level.occupied.size for level in levels)
    blank = tiles - sum(int(level.occupied.sum()) for level in levels)
    written = PyramidReport(sizes, tree_bytes(image), blank, tiles, sha256_of(image))
    report = _make_report(checkpoint, markers, written, time.perf_counter() - started)
    record_commit(checkpoint.folder, image, report)
    problem = None
    if not job.options.resume:  # no later run can write the extras
        sync_tree(image)  # may take long; afterwards the report and the image appear together
        problem = write_extras_first(job, checkpoint.output, report, image, progress)
    with extras_removed_on_error(job, checkpoint.output):
        publish_folder(image, checkpoint.output, job.options.overwrite)
    if problem is not None:  # the output is complete nevertheless
        raise problem
    return report


def _writing_progress(checkpoint: Checkpoint, progress: ProgressCallback) -> Callable[[int], None]:
    total = int(checkpoint.levels[0].occupied.sum())
    return lambda done: progress(Progress(WRITING, done, total, "tile"))


def _make_report(
    checkpoint: Checkpoint, markers: list[DoneMarker], written: PyramidReport, assembling_s: float
) -> TranslateReport:
    job, bands = checkpoint.job, checkpoint.bands
    seams = [marker.seams for marker in markers if marker.seams is not None]
    areas = {*checkpoint.unreadable_areas, *(area for marker in markers for area in marker.unreadable_areas)}
    plan = plan_metadata([band.plan for band in bands], [band.cropped_plan for band in bands])
    work = WorkSummary(
        plan={**plan, "bands": len(bands), "band_px": bands[0].region.height},
        seams=reduce(add, seams).metrics() if seams else None,
        model_s=sum(marker.model_s for marker in markers),
        run_s=sum(marker.run_s for marker in markers) + assembling_s,
        unreadable=len(areas),
        warnings=_zarr_warnings(job) if is_zarr(checkpoint.output) else (),
    )
    return make_report(job, checkpoint.output.name, written, work)


def _zarr_warnings(job: TranslationJob) -> tuple[str, ...]:
    """Return warnings about options and slide metadata that OME-Zarr does not support."""
    unused = unused_in_zarr(job.options.pyramid)
    warnings = (f"OME-Zarr is lossless; ignored: {', '.join(unused)}",) if unused else ()
    profile_lost = job.options.icc == "keep" and job.slide.info.icc_profile is not None
    return (*warnings, _NO_PROFILE) if profile_lost else warnings
