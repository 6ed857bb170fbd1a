"""Bands are done as long as some are missing, then the output is made: by one process, or by many at the same time.

Each takes the next band that nobody has. Who finds all of them done makes the output, and the others wait for it; they
go on where one of them is killed.
"""

from __future__ import annotations

import time

from ..errors import OutputError
from ..progress import Progress, ProgressCallback, silent
from ..translation.report import TranslateReport
from ..translation.stage_names import WAITING
from .assembling import assemble
from .note import is_published
from .places import PAUSE_S
from .store import Store, is_still_there, missing_bands
from .working import translate_band


def complete(store: Store, *, progress: ProgressCallback = silent) -> TranslateReport | None:
    """Do what is missing of a store, together with whoever else is at it, up to the finished output.

    Returns
    -------
    TranslateReport or None
        None if another process made the output and removed the store.

    Raises
    ------
    Wsi2IhcError
        As `translate` does. What is done stays done.
    """
    while is_still_there(store):
        is_done = _is_done(store)
        try:
            worked = not is_done and _do_bands(store, progress)
            if is_done or not missing_bands(store):
                report = assemble(store, progress=progress)
                if report is not None:
                    return report
        except OutputError:
            if not is_still_there(store):
                break  # the store was removed under our hands
            if is_done or not _is_done(store):
                raise
            continue  # its image became the output under our hands
        if not worked:
            progress(Progress(WAITING))
            time.sleep(PAUSE_S)
    return None


def _is_done(store: Store) -> bool:
    """Whether the output is published; then the bands of an OME-Zarr are in the store no more."""
    return is_published(store.folder, store.output, store.job.options.pyramid)


def _do_bands(store: Store, progress: ProgressCallback) -> bool:
    """Do every band that nobody has; whether there was one."""
    worked = False
    for number in missing_bands(store):
        worked |= translate_band(store, number, progress=progress)
    return worked
