"""A store is found, or made, by one process at a time; those who find one go on with what the first has settled."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ..errors import OutputError, OutputExistsError
from ..generator.model import Generator
from ..geometry import Size
from ..locks import in_use
from ..progress import ProgressCallback, silent
from ..pyramid.folders import remove_replaced, remove_tree, sync_tree
from ..pyramid.levels import Level, plan_levels, tile_grid
from ..pyramid.omezarr import check_level, create_image, create_level
from ..slide import Slide
from ..storage import disk_errors, sync_folder
from ..translation.identity import Identity, differences, identity
from ..translation.job import Job, Settled
from ..translation.layout import choose_layout
from ..translation.options import TranslateOptions
from ..translation.pipeline import check_outputs, prepare
from ..translation.provenance import describe_image
from .division import band_height, cell_for_bands, divide, occupied_tiles
from .note import is_published
from .places import (
    DONE,
    IMAGE,
    IN_USE,
    LOCKS,
    alone,
    count_done,
    hidden_store_path,
    remove_leftovers,
    remove_unused,
    store_path,
)
from .record import Record, damaged_store, read_record, write_record
from .store import Store

_NOTABLY = 1.25
"""How much larger windows may be than would be chosen now, until it is said: what a process holds varies."""

_log = logging.getLogger(__name__)


@contextmanager
def open_store(
    slide: Slide,
    generator: Generator,
    output: str | os.PathLike[str],
    options: TranslateOptions | None = None,
    *,
    known_identity: Identity | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[Store]:
    """Open the store of an output while the body runs; make it if it is not there.

    With ``options.resume`` it is shared, and stays until the output is complete; else it is this process's own and is
    removed at the end. One at a time looks at what is there; who makes a store keeps the others waiting, and those who
    find one prepare at the same time.

    Parameters
    ----------
    known_identity
        What `identity` gives for these; it is found out if it is None.

    Raises
    ------
    OutputError
        If the output cannot be written, if another run is writing it, if the file system cannot keep processes apart
        that share a store, or if the store that is there is that of another
        translation (unless it may be begun anew, with ``options.overwrite``).
    Wsi2IhcError
        As `prepare` does.
    """
    options, path = options or TranslateOptions(), Path(output)
    known_identity = known_identity or identity(slide, generator, options)
    _check_outputs(slide, path, options)
    with ExitStack() as stack:
        job, folder = None, store_path(path)
        with alone(path, progress, wait=options.resume) as is_alone:
            if options.resume and not is_alone:
                raise OutputError(
                    f"{path.parent}: this file system has no locks, so two runs could do the same part of {path.name} "
                    "at once; translate without --resume, or write elsewhere"
                )
            _check_outputs(slide, path, options)  # something may have come while others were waited for
            with disk_errors(folder):
                remove_replaced(path)
                remove_leftovers(path, shared=options.resume)
                record = _known_record(path, known_identity, options) if options.resume else None
            if record is None:
                job = prepare(slide, generator, options, known_identity=known_identity, progress=progress)
                record = _settle(job)
                folder = _make(path, job, record)
                if not options.resume:
                    stack.callback(remove_tree, folder)
            with disk_errors(folder):
                user = stack.enter_context(in_use(folder / IN_USE))
        if job is None:
            job = prepare(
                slide, generator, options, settled=record.settled, known_identity=known_identity, progress=progress
            )
            _check_layout(job, folder)
            if not _is_finished(path, options):
                _tell_what_stays(job, record, folder)
        bands = divide(job, record.settled.cell, record.band_px)
        tile_px = job.options.pyramid.tile_px
        levels = plan_levels(job.plan.extent.size, tile_px, occupied_tiles(bands, tile_px))
        yield Store(folder, path, job, bands, levels, record.damaged, user)


def check_store(
    slide: Slide, generator: Generator, output: str | os.PathLike[str], options: TranslateOptions | None = None
) -> int | None:
    """Find out what `open_store` would refuse, changing nothing; how many bands are done, None if there is no store.

    Raises
    ------
    OutputError
        As `open_store` does.
    """
    options, path = options or TranslateOptions(), Path(output)
    _check_outputs(slide, path, options)
    if not options.overwrite:  # else a store that does not fit is begun anew
        _known_record(path, identity(slide, generator, options), options)
    return count_done(path)


def _is_finished(output: Path, options: TranslateOptions) -> bool:
    """Whether the output is published as it is asked for, and only the last steps are wanting."""
    return options.resume and is_published(store_path(output), output, options.pyramid)


def _check_outputs(slide: Slide, output: Path, options: TranslateOptions) -> None:
    """`check_outputs`, which minds an output that is there, unless that is the finished one of the store."""
    try:
        check_outputs(slide, output, options)
    except OutputExistsError:
        if not _is_finished(output, options):  # asked last, since another process may be publishing it right now
            raise


def _known_record(output: Path, known_identity: Identity, options: TranslateOptions) -> Record | None:
    """What was settled in the store that is there; one of another translation is removed if it may be, else refused."""
    folder = store_path(output)
    if not folder.is_dir():
        return None
    try:
        record = read_record(folder)
        _check_parts(folder)
        _check_image(folder, record, output, options)
        found = differences(record.identity, known_identity)
        if options.on_read_error == "glass":  # what has been done without an error is the same
            found = [one for one in found if not one.startswith("--on-read-error")]
        if not found:
            return record
        problem = OutputError(
            f"{folder}: a translation that was begun otherwise: {'; '.join(found)}. Finish it as it was begun, choose "
            "another output, or begin anew with --overwrite"
        )
    except OutputError as error:
        problem = error
    if not options.overwrite:
        raise problem
    _log.warning("%s: begun anew", problem)
    remove_unused(output)
    return None


def _check_parts(folder: Path) -> None:
    """Refuse a store that lacks what bands are put into."""
    for name, is_kind in ((IN_USE, Path.is_file), (DONE, Path.is_dir), (LOCKS, Path.is_dir)):
        if not is_kind(folder / name):
            raise damaged_store(folder, f"no {name}")


def _check_image(folder: Path, record: Record, output: Path, options: TranslateOptions) -> None:
    """Refuse a store whose image is not as it was made, unless it is the output by now."""
    try:
        check_level(folder / IMAGE, 0, _bare_level(record.size, record.settled.layout.tile_px))
    except OutputError as error:
        if not _is_finished(output, options):
            raise damaged_store(folder, str(error)) from error


def _bare_level(size: Size, tile_px: int) -> Level:
    return Level(size, tile_px, np.zeros(tile_grid(size, tile_px), np.bool_))


def _settle(job: Job) -> Record:
    band_px = band_height(job.options, job.layout.overlap_px, job.options.pyramid.tile_px)
    settled = Settled(job.scene.mask, job.machine.statistics, job.layout, cell_for_bands(job, band_px), job.fill)
    return Record(job.identity, settled, band_px, job.plan.extent.size, job.scene.damaged_places)


def _check_layout(job: Job, folder: Path) -> None:
    """Refuse a device whose windows are laid out in another way than those of the process that made the store."""
    translator, layout = job.machine.translators[0], job.layout
    if (translator.halo_px, translator.lattice_px) != (layout.halo_px, layout.lattice_px) or (
        layout.multiple_px % translator.multiple_px
    ):
        raise OutputError(f"{folder}: begun on another kind of device; go on with --device as it was")


def _tell_what_stays(job: Job, record: Record, folder: Path) -> None:
    """Warn of options that the store has settled in another way."""
    asked, size = job.options, record.settled.layout.max_window_px
    if asked.band_px and band_height(asked, job.layout.overlap_px, asked.pyramid.tile_px) != record.band_px:
        _log.warning("%s: begun with --band-height %d, and goes on so", folder.name, record.band_px)
    affordable = choose_layout(job.machine, asked, job.scene.extent.width).max_window_px
    if size > _NOTABLY * affordable:
        _log.warning(
            "%s: begun with more memory, in windows of up to %.2f Mpx, and this process can afford %.2f: where it runs "
            "out of memory, raise --max-memory, take another --device, or remove that folder to begin anew",
            folder.name, size / 1e6, affordable / 1e6,
        )  # fmt: skip


def _make(output: Path, job: Job, record: Record) -> Path:
    """Make a store: under its own name if it is to be shared, else under one that only this process knows."""
    folder = hidden_store_path(output)
    try:
        with disk_errors(store_path(output)):
            for part in (folder, folder / DONE, folder / LOCKS):
                part.mkdir()
            (folder / IN_USE).touch()
            write_record(folder, record)
            create_image(folder / IMAGE, describe_image(job, output.name), [record.size])
            create_level(folder / IMAGE, 0, _bare_level(record.size, job.options.pyramid.tile_px))
            sync_tree(folder)
            if not job.options.resume:
                return folder
            folder.rename(store_path(output))
            sync_folder(output.parent)
    except BaseException:
        remove_tree(folder)
        raise
    return store_path(output)
