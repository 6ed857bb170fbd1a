"""Train a generator, from the folder of patches to the model file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from wsi2ihc.errors import DeviceMemoryError, Wsi2IhcError
from wsi2ihc.progress import ProgressCallback, silent

from .checkpoints import check_same_run, read_state
from .curves import draw_curves
from .finishing import finish
from .job import TrainingJob, describe_data
from .loop import fit
from .machine import start_fabric
from .runs import RunFolder

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
    if is_first_process():
        _check(job, folder, resume)
    fabric = start_fabric(job.options)
    if fabric.is_global_zero and not resume:
        folder.begin(job.options, describe_data(job))
    try:
        position = fit(job, fabric, folder, resume=resume, progress=progress)
        if not fabric.is_global_zero:
            return {}
        summary = finish(job, fabric, folder, position, progress)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, Wsi2IhcError) or not _is_out_of_memory(error):
            raise
        raise DeviceMemoryError("out of memory while training; lower --batch-size, --crop-size or --ngf (wsi2ihc train "
                                "--dry-run estimates what is needed)") from error  # fmt: skip
    _draw(folder)
    return summary


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def _check(job: TrainingJob, folder: RunFolder, resume: bool) -> None:
    """Refuse before anything starts what would be refused later."""
    if not resume:
        folder.check_new()
        return
    folder.check_resumable()
    check_same_run(read_state(folder.last), job.options, job.data.fingerprint(), folder.last)


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
