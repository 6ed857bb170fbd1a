"""The training loop."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsi2ihc.progress import Progress, ProgressCallback

from .checkpoints import Best, Position, check_finite, load_state, save_best, save_state
from .data.patches import training_batches
from .frozen_statistics import uses_running_statistics, with_estimated_statistics
from .history import RunRecord
from .job import TrainingJob
from .log import STEP_COLUMNS, LossLog
from .machine import count_workers, in_first_process
from .metrics import FIGURES, is_better
from .pictures import picture_grid
from .runs import RunFolder
from .schedule import is_validated, rate_factor, step_seed
from .step import Networks, build_networks, training_step
from .validation import validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(job: TrainingJob, fabric: Fabric, folder: RunFolder, *, resume: bool, progress: ProgressCallback) -> Position:
    """Train until the last step, from the first one or from the last checkpoint.

    The batches, the learning rate and the random numbers of a step follow from its number and the seed, so the weights
    at the end do not depend on how often the run was stopped.

    Raises
    ------
    TrainingError
        If a loss is not finite (naming the step), or the checkpoint is of another run.
    OutputError
        If something cannot be written.
    DatasetError
        If a patch cannot be decoded.
    """
    options, fingerprint = job.options, job.data.fingerprint()
    networks = build_networks(options, fabric)
    position = load_state(folder.last, networks, fabric, options, fingerprint) if resume else Position()
    batches = training_batches(
        job.train,
        crop_px=options.crop_size,
        augmentation=options.augmentation,
        stain_jitter=options.stain_jitter,
        batch_size=options.batch_size // fabric.world_size,
        seed=options.seed,
        process=fabric.global_rank,
        processes=fabric.world_size,
        first_step=position.step,
        last_step=job.steps,
        workers=count_workers(options),
        pin=fabric.device.type == "cuda",
    )
    began = time.monotonic() - position.seconds
    with ExitStack() as stack:
        record = stack.enter_context(_record(job, folder, position)) if fabric.is_global_zero else None
        log = LossLog(options, job.steps_per_epoch, job.steps, record, progress, lambda x: _mean(fabric, x))

        def keep(epoch: int | None) -> None:
            """In the first process: validate after this epoch, if any, and save the state."""
            if epoch is not None and record is not None:
                how = "" if uses_running_statistics(job, position.step) else " with re-estimated statistics"
                progress(Progress(f"validating epoch {epoch}{how}"))
                _validate(job, fabric, networks, folder, record, position, epoch)
            position.seconds = time.monotonic() - began
            save_state(folder.last, networks, fabric, position, options, fingerprint)

        for batch in batches:
            epoch = position.step // job.steps_per_epoch
            rate = options.learning_rate * rate_factor(epoch, options.epochs)
            networks.set_learning_rate(rate)
            torch.manual_seed(step_seed(options.seed, position.step, fabric.global_rank))
            he, ihc = (part.to(fabric.device, non_blocking=True) for part in (batch.he, batch.ihc))
            losses = training_step(fabric, networks, he, ihc, options)
            position.step += 1
            log.add(losses, position.step, rate)

            ends_epoch = position.step % job.steps_per_epoch == 0
            if ends_epoch or position.step % options.checkpoint_every == 0:
                log.write()
                check_finite(networks, position.step)
                validated = ends_epoch and is_validated(epoch, options.epochs, options.validate_every)
                in_first_process(fabric, partial(keep, epoch + 1 if validated else None))
                log.restart_clock()
    return position


def _record(job: TrainingJob, folder: RunFolder, position: Position) -> RunRecord:
    return RunRecord(
        folder.path,
        position.step,
        position.step // job.steps_per_epoch,
        job.options.tensorboard,
        step_names=STEP_COLUMNS,
        validation_names=tuple(FIGURES),
    )


def _mean(fabric: Fabric, values: Tensor) -> Tensor:
    reduced = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return reduced


def _validate(
    job: TrainingJob, fabric: Fabric, networks: Networks, folder: RunFolder, record: RunRecord, position: Position,
    epoch: int,
) -> None:  # fmt: skip
    """Score the generator, keep the picture and, if it is the best so far, the weights."""
    options, module = job.options, networks.model
    module.eval()
    is_ready = uses_running_statistics(job, position.step)
    scores, shown = validate(
        module if is_ready else with_estimated_statistics(module, job),
        job.validation,
        fabric.device,
        batch_size=options.batch_size,
        multiple=options.size_multiple,
        workers=count_workers(options),
        pictures=options.pictures,
        autocast=fabric.autocast,
    )
    module.train()
    figures = scores["whole"].figures()
    record.validation(epoch, position.step, figures)
    if shown:
        grid = picture_grid([images for _, images in shown], captions=[pair.name for pair, _ in shown])
        record.picture(epoch, grid)
    best = Best(epoch, options.best_by, figures[options.best_by])
    if is_better(options.best_by, best.value, position.best.value if position.best else math.nan):
        save_best(folder.best, module, best)
        position.best = best
