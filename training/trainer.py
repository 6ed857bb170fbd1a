"""Train a generator: setup, loop, validation, checkpoints, export.

`train` is the entry point. It starts or joins the training processes, which all run the same program and so all call
it. The first process prepares the run folder, all run the loop (`fit`), and the first one exports the model and plots
the curves.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsi2ihc.concurrency import Progress, ProgressCallback, silent
from wsi2ihc.errors import DeviceMemoryError, OutputError, TrainingError, Wsi2IhcError

from .checkpoint import (
    BestEpoch,
    RunFolder,
    TrainingState,
    check_finite,
    check_same_run,
    load_state,
    read_state,
    save_best,
    save_state,
)
from .data.loader import training_batches
from .export import export_model
from .fabric import count_workers, end_other_processes, in_first_process, start_fabric
from .history import RunRecord
from .image_grid import image_grid_figure
from .metrics.validation_scores import VALIDATION_METRICS, is_better
from .options import TrainOptions
from .train_step import LOSSES, Networks, build_networks, is_validated, rate_factor, step_seed, training_step
from .training_curves import draw_curves
from .training_setup import TrainingJob, describe_data
from .validation import uses_running_statistics, validate, with_estimated_statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEP_COLUMNS = (*LOSSES, "learning_rate", "images_per_s")

_log = logging.getLogger(__name__)

_LOST_PEER = ("closed by peer", "reset by peer", "ncclRemoteError", "Broken pipe")
"""Parts of the messages of gloo and NCCL if another process has ended."""


@dataclass(slots=True)
class LossLog:
    """Log that collects losses on the device and writes their means as one row.

    Rows end every ``log_every`` steps, at checkpoints and at the end of each epoch. Losses are copied from a GPU once
    per row, since copying at every step would stall it. So a loss that is not finite is only detected at the end of a
    row; the error names its step.
    """

    options: TrainOptions
    steps_per_epoch: int
    steps: int
    record: RunRecord | None  # where rows are written; None except in the first process
    progress: ProgressCallback  # called after every step
    mean_over_processes: Callable[[Tensor], Tensor]
    _losses: list[Tensor] = field(default_factory=list)
    _step: int = 0
    _rate: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _note: str = ""

    def add(self, losses: Tensor, step: int, rate: float) -> None:
        """Add the losses of a step (counted from 1), in the order of `LOSSES`, and its learning rate."""
        self._losses.append(losses)
        self._step, self._rate = step, rate
        if len(self._losses) >= self.options.log_every:
            self.write()
        self.progress(Progress("training", step, self.steps, "step", f"{self._describe_epoch(step)}{self._note}"))

    def write(self) -> None:
        """Write a row with the means of the collected losses.

        Raises
        ------
        TrainingError
            If a loss is not finite.
        """
        if not self._losses:
            return
        values = self.mean_over_processes(torch.stack(self._losses)).cpu()  # (steps, losses)
        self._check_losses(values)
        means = dict(zip(LOSSES, values.double().mean(0).tolist(), strict=True))
        images = len(self._losses) * self.options.batch_size  # of all processes
        images_per_s = images / (time.monotonic() - self._since)
        self._note = "".join(f", {name} {value:.3g}" for name, value in means.items())
        self._note += f", {images_per_s:.3g} images/s"
        if self.record:
            row = {**means, "learning_rate": self._rate, "images_per_s": images_per_s}
            self.record.step(self._step, self._epoch(self._step), row)
        self._losses.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the measurement of the images per second, after work other than training."""
        self._since = time.monotonic()

    def _epoch(self, step: int) -> int:
        """Return the epoch of a step; both count from 1."""
        return 1 + (step - 1) // self.steps_per_epoch

    def _describe_epoch(self, step: int) -> str:
        return f"epoch {self._epoch(step)} of {self.options.epochs}"

    def _check_losses(self, values: Tensor) -> None:
        # the variance loss of a batch of one image is NaN, which does no harm unless it is part of the total
        must_be_finite = [name != "variance" or self.options.variance_weight > 0 for name in LOSSES]
        bad = ~torch.isfinite(values) & torch.tensor(must_be_finite)
        if not bool(bad.any()):
            return
        row, column = (int(index) for index in bad.nonzero()[0])
        step = self._step - len(self._losses) + 1 + row
        where = f"step {step} ({self._describe_epoch(step)})"
        raise TrainingError(f"the {LOSSES[column]} loss is not finite at {where}; the last good checkpoint is kept; "
                            "lower --learning-rate, or use --precision fp32")  # fmt: skip


def fit(
    job: TrainingJob, fabric: Fabric, folder: RunFolder, *, resume: bool, progress: ProgressCallback
) -> TrainingState:
    """Train until the last step, from the first one or from the last checkpoint.

    The batches, the learning rate and the random numbers of a step depend only on its number and the seed, so the final
    weights do not depend on interruptions.
    """
    options, fingerprint = job.options, job.data.fingerprint()
    networks = build_networks(options, fabric)
    state = load_state(folder.last, networks, fabric, options, fingerprint) if resume else TrainingState()
    batches = training_batches(
        job.train,
        crop_px=options.crop_size,
        augmentation=options.augmentation,
        stain_jitter=options.stain_jitter,
        batch_size=options.batch_size // fabric.world_size,
        seed=options.seed,
        process=fabric.global_rank,
        processes=fabric.world_size,
        first_step=state.step,
        last_step=job.steps,
        workers=count_workers(options),
        pin=fabric.device.type == "cuda",
    )
    start = time.monotonic() - state.seconds
    with ExitStack() as stack:
        record = None
        if fabric.is_global_zero:
            record = RunRecord(
                folder.path, state.step, state.step // job.steps_per_epoch, options.tensorboard,
                step_names=STEP_COLUMNS, validation_names=tuple(VALIDATION_METRICS),
            )  # fmt: skip
            stack.enter_context(record)
        log = LossLog(options, job.steps_per_epoch, job.steps, record, progress, partial(_mean_over_processes, fabric))

        def validate_and_save(epoch: int | None) -> None:
            """Validate after this epoch (from 1), if any, and save the state; called in the first process."""
            if epoch is not None:
                assert record is not None
                _validate(job, fabric, networks, folder, record, state, epoch, progress)
            state.seconds = time.monotonic() - start
            save_state(folder.last, networks, fabric, state, options, fingerprint)

        for batch in batches:
            epochs_done = state.step // job.steps_per_epoch  # also the index of this epoch, from 0
            rate = options.learning_rate * rate_factor(epochs_done, options.epochs)
            networks.set_learning_rate(rate)
            torch.manual_seed(step_seed(options.seed, state.step, fabric.global_rank))
            he, ihc = (part.to(fabric.device, non_blocking=True) for part in (batch.he, batch.ihc))
            losses = training_step(fabric, networks, he, ihc, options)
            state.step += 1
            log.add(losses, state.step, rate)

            ends_epoch = state.step % job.steps_per_epoch == 0
            if ends_epoch or state.step % options.checkpoint_every == 0:
                log.write()
                check_finite(networks, state.step)
                validates = ends_epoch and is_validated(epochs_done, options.epochs, options.validate_every)
                in_first_process(fabric, partial(validate_and_save, epochs_done + 1 if validates else None))
                log.restart_clock()
    return state


def _mean_over_processes(fabric: Fabric, values: Tensor) -> Tensor:
    reduced = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return reduced


def _validate(
    job: TrainingJob, fabric: Fabric, networks: Networks, folder: RunFolder, record: RunRecord, state: TrainingState,
    epoch: int, progress: ProgressCallback,
) -> None:  # fmt: skip
    """Score the generator, write the sample image, and save the weights if they are the best so far."""
    options, module = job.options, networks.model
    is_running = uses_running_statistics(job, state.step)
    progress(Progress(f"validating epoch {epoch}{'' if is_running else ' with re-estimated statistics'}"))
    module.eval()
    scores, samples = validate(
        module if is_running else with_estimated_statistics(module, job),  # of batch norm
        job.validation,
        fabric.device,
        batch_size=options.batch_size,
        multiple=options.size_multiple,
        workers=count_workers(options),
        samples=options.samples,
        autocast=fabric.autocast,
    )
    module.train()
    metrics = scores["full_image"].compute()  # the only view that `validate` scores by default
    record.validation(epoch, state.step, metrics)
    if samples:
        grid = image_grid_figure([images for _, images in samples], captions=[pair.name for pair, _ in samples])
        record.samples(epoch, grid)
    best = BestEpoch(epoch, options.best_by, metrics[options.best_by])
    previous = state.best.value if state.best else math.nan  # which every value is better than
    if is_better(options.best_by, best.value, previous):
        save_best(folder.best, module, best)
        state.best = best


def train(
    job: TrainingJob, out: str | Path, *, resume: bool = False, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """Train a generator, and write ``model.safetensors`` to the folder ``out``.

    With several processes each of them calls this; the first one writes.

    Parameters
    ----------
    job
        Options and data.
    out
        Folder of the run; new, or with ``resume`` one that holds a checkpoint.
    resume
        Start from the last checkpoint; the result is that of an uninterrupted run.
    progress
        Called after every step, and when a validation begins.

    Returns
    -------
    dict
        The content of ``summary.json``; empty except in the first process.

    Raises
    ------
    Wsi2IhcError
        With a one-line message. Existing checkpoints are kept.
    """
    folder = RunFolder(Path(out))
    fabric = start_fabric(job.options)
    with ExitStack() as stack, explain_torch_errors(), _end_together(fabric):
        in_first_process(fabric, lambda: _begin(job, folder, resume, stack))
        state = fit(job, fabric, folder, resume=resume, progress=progress)
        summary = in_first_process(fabric, lambda: export_model(job, fabric, folder, state, progress)) or {}
    if fabric.is_global_zero:
        try:
            draw_curves([folder.path], folder.curves)
        except Wsi2IhcError as error:  # for example without matplotlib
            _log.warning("the curves are not plotted: %s", error)
    return summary


def _check_folder(job: TrainingJob, folder: RunFolder, resume: bool) -> None:
    """Check once, before anything is written, what would fail later in each process."""
    if folder.path.resolve().is_relative_to(job.data.folder.resolve()):
        raise OutputError(f"--out {folder.path} lies inside the dataset, and the images of the run would be mistaken "
                          "for patches; choose another folder")  # fmt: skip
    if not resume:
        folder.check_new()
        return
    folder.check_resumable()
    check_same_run(read_state(folder.last), job.options, job.data.fingerprint(), folder.last)


def _begin(job: TrainingJob, folder: RunFolder, resume: bool, stack: ExitStack) -> None:
    """Prepare the folder of the run, and lock it until ``stack`` is closed; called in the first process."""
    _check_folder(job, folder, resume)
    stack.enter_context(folder.locked())  # makes the folder
    if not resume:
        folder.check_new()  # again: another run may have started here before the folder was locked
    folder.begin(job.options, describe_data(job))


@contextlib.contextmanager
def _end_together(fabric: Fabric) -> Iterator[None]:
    """End the other training processes if this one is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        end_other_processes(fabric)
        raise


@contextlib.contextmanager
def explain_torch_errors() -> Iterator[None]:
    """Replace torch's out-of-memory and lost-peer errors by errors with one-line messages."""
    try:
        yield
    except Wsi2IhcError:  # some are a MemoryError or RuntimeError as well
        raise
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise DeviceMemoryError("out of memory while training; lower --batch-size, --crop-size or --ngf (wsi2ihc "
                                    "train --dry-run estimates what is needed)") from error  # fmt: skip
        if any(message in str(error) for message in _LOST_PEER):
            raise TrainingError(
                "another training process has failed and reports the reason; the last checkpoint is kept"
            ) from error
        raise


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text
