"""Train a generator, from the folder of patches to the model file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wsi2ihc.errors import DeviceMemoryError, OutputError, TrainingError, Wsi2IhcError
from wsi2ihc.progress import ProgressCallback, silent

from .checkpoints import check_same_run, read_state
from .curves import draw_curves
from .finishing import finish
from .job import TrainingJob, describe_data
from .loop import fit
from .machine import end_others, in_first_process, start_fabric
from .runs import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_log = logging.getLogger(__name__)


def train(
    job: TrainingJob, out: str | Path, *, resume: bool = False, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """Train a generator, and leave ``model.safetensors`` in the folder ``out``.

    With several processes each of them calls this; the first one writes.

    Parameters
    ----------
    job:
        from `prepare`
    out:
        the run's folder; new, or with ``resume`` one that holds a checkpoint
    resume:
        go on from the last checkpoint, exactly
    progress:
        called after every step

    Returns
    -------
    dict
        what ``summary.json`` holds; empty in all processes but the first

    Raises
    ------
    Wsi2IhcError
        One of its leaves, with one line that says what is wrong. Checkpoints written before stay.
    """
    folder = RunFolder(Path(out))
    fabric = start_fabric(job.options)
    with ExitStack() as stack, _told_plainly(), _ended_together(fabric):
        in_first_process(fabric, lambda: _begin(job, folder, resume, stack))
        position = fit(job, fabric, folder, resume=resume, progress=progress)
        summary: dict[str, Any] = {}
        in_first_process(fabric, lambda: summary.update(finish(job, fabric, folder, position, progress)))
    if fabric.is_global_zero:
        _draw(folder)
    return summary


def _check(job: TrainingJob, folder: RunFolder, resume: bool) -> None:
    """Refuse before anything is written, and in one process, what each would refuse later."""
    if folder.path.resolve().is_relative_to(job.data.folder.resolve()):
        raise OutputError(f"--out {folder.path} lies among the patches, and its pictures would be taken for some; "
                          "choose a folder elsewhere")  # fmt: skip
    if not resume:
        folder.check_new()
        return
    folder.check_resumable()
    check_same_run(read_state(folder.last), job.options, job.data.fingerprint(), folder.last)


def _begin(job: TrainingJob, folder: RunFolder, resume: bool, stack: ExitStack) -> None:
    _check(job, folder, resume)
    stack.enter_context(folder.locked())  # makes the folder
    if not resume:
        folder.check_new()  # another training may have begun since
    folder.begin(job.options, describe_data(job))


@contextlib.contextmanager
def _ended_together(fabric: Fabric) -> Iterator[None]:
    """End the other training processes where this one is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        end_others(fabric)
        raise


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """Make one line of what torch says when memory ends, or when another process has."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, Wsi2IhcError):
            raise
        if _is_out_of_memory(error):
            raise DeviceMemoryError("out of memory while training; lower --batch-size, --crop-size or --ngf (wsi2ihc "
                                    "train --dry-run estimates what is needed)") from error  # fmt: skip
        if any(sign in str(error) for sign in _LOST_PEER):
            raise TrainingError(
                "another training process has ended, and says why; the last checkpoint is kept"
            ) from error
        raise


_LOST_PEER = ("closed by peer", "reset by peer", "ncclRemoteError", "Broken pipe")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text


def _draw(folder: RunFolder) -> None:
    """The curves; without matplotlib there are none, which is no reason to fail after hours."""
    try:
        draw_curves([folder.path], folder.curves)
    except Wsi2IhcError as error:
        _log.warning("no curves are drawn: %s", error)
