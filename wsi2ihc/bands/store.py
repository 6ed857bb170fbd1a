"""The folder in which a translation grows band by band, shared by all processes that work on it.

It is hidden and lies beside the output: ``.NAME.bands`` holds what was settled (`record`), the image, a marker for each
finished band, and locks, which end with the process that holds them. It appears under its name only with everything
settled, so those who come later agree with the first to the bit. A run that nobody is to go on with (OME-Zarr without
``resume``) has a store of its own, under a name that only it knows, and removes it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ..errors import OutputError, Wsi2IhcError
from ..generator.model import Generator
from ..locks import in_use, is_there
from ..progress import ProgressCallback, silent
from ..pyramid.atomic import sync_folder
from ..pyramid.folders import remove_tree, sync_tree
from ..pyramid.levels import Level, plan_levels
from ..pyramid.omezarr import create_image, create_level
from ..pyramid.writer import disk_error
from ..slide import Slide
from ..translation.identity import Identity, differences, identity
from ..translation.job import Job, Settled
from ..translation.options import TranslateOptions
from ..translation.pipeline import check_outputs, prepare
from ..translation.provenance import describe_image
from .division import Band, band_height, cell_for_bands, divide, occupied_tiles
from .marker import Marker, read_marker
from .places import (
    DONE,
    IMAGE,
    IN_USE,
    LOCKS,
    alone,
    is_published,
    own_path,
    remove_leftovers,
    remove_unused,
    store_path,
)
from .record import Record, damaged_store, read_identity, read_record, write_record

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Store:
    """An open store.

    folder:   of the store
    output:   what it will become
    job:      the translation, prepared as everybody has it
    bands:    all of them
    levels:   of the output
    damaged:  how many places were unreadable when the tissue was looked for
    user:     held open as long as this process uses the store
    known:    markers of bands that were found done
    redone:   bands that could not be read back once
    """

    folder: Path
    output: Path
    job: Job
    bands: tuple[Band, ...]
    levels: tuple[Level, ...]
    damaged: int
    user: TextIO
    known: dict[int, Marker] = field(default_factory=dict)
    redone: set[int] = field(default_factory=set)

    @property
    def image(self) -> Path:
        """The image that grows."""
        return self.folder / IMAGE


def is_still_there(store: Store) -> bool:
    """Whether the store is still under its name: who completes the output removes it."""
    return is_there(store.user, store.folder / IN_USE)


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
        marker = read_marker(marker_path(store, number), store.image)
        if marker is None or (marker.damaged and store.job.options.on_read_error == "fail"):
            return None
        store.known[number] = marker
    return store.known[number]


def forget_band(store: Store, number: int) -> None:
    """Take a band for undone."""
    store.known.pop(number, None)
    marker_path(store, number).unlink(missing_ok=True)


@contextmanager
def open_store(
    slide: Slide,
    generator: Generator,
    output: str | os.PathLike[str],
    options: TranslateOptions | None = None,
    *,
    progress: ProgressCallback = silent,
) -> Iterator[Store]:
    """Open the store of an output while the body runs; make it if it is not there.

    With ``options.resume`` it is shared, and stays until the output is complete; else it is this process's own and is
    removed at the end.

    Raises
    ------
    OutputError
        If the output cannot be written, if another run is writing it, or if the store that is there is that of another
        translation (unless it may be begun anew, with ``options.overwrite``).
    Wsi2IhcError
        As `prepare` does.
    """
    options, path = options or TranslateOptions(), Path(output)
    facts = identity(slide, generator, options)
    _check(slide, path, options)
    with ExitStack() as stack:
        with alone(path, progress, wait=options.resume):
            _check(slide, path, options)  # the output may have come while others were waited for
            remove_leftovers(path, shared=options.resume)
            folder = store_path(path)
            record = _known_record(path, facts, options) if options.resume else None
            if record is not None:
                job = prepare(slide, generator, options, settled=record.settled, progress=progress)
                _check_layout(job, folder)
            else:
                job = prepare(slide, generator, options, progress=progress)
                record = _settle(job)
                folder = _make(path, job, record)
                if not options.resume:
                    stack.callback(remove_tree, folder)
            user = stack.enter_context(in_use(folder / IN_USE))
        bands = divide(job, record.settled.cell, record.band_px)
        tile_px = job.options.pyramid.tile_px
        levels = plan_levels(job.plan.extent.size, tile_px, occupied_tiles(bands, tile_px))
        yield Store(folder, path, job, bands, levels, record.damaged, user)


def _check(slide: Slide, output: Path, options: TranslateOptions) -> None:
    """`check_outputs`, but for an output that was published and wants only the last steps."""
    if not (options.resume and is_published(store_path(output), output)):
        check_outputs(slide, output, options)


def _known_record(output: Path, facts: Identity, options: TranslateOptions) -> Record | None:
    """What was settled in the store that is there; one of another translation is removed if it may be, else refused."""
    folder = store_path(output)
    if not folder.is_dir():
        return None
    try:
        before = read_identity(folder)
        if not (folder / IN_USE).is_file():
            raise damaged_store(folder, f"no file {IN_USE}")
        found = differences(before, facts)
        if options.on_read_error == "glass":  # what has been done without an error is the same
            found = [one for one in found if not one.startswith("--on-read-error")]
        if not found:
            return read_record(folder)
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


def _settle(job: Job) -> Record:
    band_px = band_height(job.options, job.layout.overlap_px, job.options.pyramid.tile_px)
    settled = Settled(job.scene.mask, job.machine.statistics, job.layout, cell_for_bands(job, band_px), job.fill)
    return Record(job.identity, settled, band_px, job.scene.damaged_places)


def _check_layout(job: Job, folder: Path) -> None:
    """Refuse a device whose windows are laid out in another way than those of the process that made the store."""
    translator, layout = job.machine.translators[0], job.layout
    if (translator.halo_px, translator.lattice_px) != (layout.halo_px, layout.lattice_px) or (
        layout.multiple_px % translator.multiple_px
    ):
        raise OutputError(f"{folder}: begun on another kind of device; go on with --device as it was")


def _make(output: Path, job: Job, record: Record) -> Path:
    """Make a store: under its own name if it is to be shared, else under one that only this process knows."""
    folder = own_path(output)
    try:
        for part in (folder, folder / DONE, folder / LOCKS):
            part.mkdir()
        (folder / IN_USE).touch()
        write_record(folder, record)
        size, tile_px = job.plan.extent.size, job.options.pyramid.tile_px
        create_image(folder / IMAGE, describe_image(job, output.name), [size])
        create_level(folder / IMAGE, 0, plan_levels(size, tile_px, job.plan.occupied_tiles(tile_px))[0])
        sync_tree(folder)
        if not job.options.resume:
            return folder
        folder.rename(store_path(output))
        sync_folder(output.parent)
        return store_path(output)
    except BaseException as error:
        remove_tree(folder)
        if isinstance(error, OSError) and not isinstance(error, Wsi2IhcError):
            raise disk_error(store_path(output), error) from error
        raise
