"""Train a generator: setup, loop, validation, checkpoints, export.

`train` is the entry point. It starts the processes, prepares the run folder, runs the loop (`fit`), exports the model
and plots the curves.
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


@dataclass(slots=True)
class LossLog:
    """Log that collects losses on the device and writes their mean as one row per ``log_every`` steps.

    Losses are copied from a GPU once per row, since copying at every step would stall it. So a loss that is not finite
    is only detected at the end of a row; the error names its step.
    """

    options: TrainOptions
    steps_per_epoch: int
    steps: int
    record: RunRecord | None  # where rows are written; None except in the first process
    progress: ProgressCallback  # called after every step
    mean: Callable[[Tensor], Tensor]  # returns the mean of a tensor over all processes
    _losses: list[Tensor] = field(default_factory=list)
    _step: int = 0
    _rate: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _note: str = ""

    def add(self, losses: Tensor, step: int, rate: float) -> None:
        """Add the losses (5,) of a step (counted from 1), and its learning rate."""
        self._losses.append(losses)
        self._step, self._rate = step, rate
        if len(self._losses) >= self.options.log_every:
            self.write()
        self.progress(Progress("training", step, self.steps, "step", f"{self._epoch(step)}{self._note}"))

    def write(self) -> None:
        """Write a row with the means of the collected losses.

        Raises
        ------
        TrainingError
            If a loss is not finite.
        """
        if not self._losses:
            return
        values = self.mean(torch.stack(self._losses)).cpu()
        self._check_finite(values)
        means = dict(zip(LOSSES, values.double().mean(0).tolist(), strict=True))
        images_per_s = len(self._losses) * self.options.batch_size / (time.monotonic() - self._since)
        self._note = "".join(f", {name} {value:.3g}" for name, value in means.items())
        self._note += f", {images_per_s:.3g} images/s"
        if self.record:
            epoch = 1 + (self._step - 1) // self.steps_per_epoch
            row = {**means, "learning_rate": self._rate, "images_per_s": images_per_s}
            self.record.step(self._step, epoch, row)
        self._losses.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the measurement of the rate, after work other than training."""
        self._since = time.monotonic()

    def _epoch(self, step: int) -> str:
        return f"epoch {1 + (step - 1) // self.steps_per_epoch} of {self.options.epochs}"

    def _check_finite(self, values: Tensor) -> None:
        # the variance of a single image is NaN, which is correct where it is only reported
        must_be_finite = [name != "variance" or self.options.variance_weight > 0 for name in LOSSES]
        bad = ~torch.isfinite(values) & torch.tensor(must_be_finite)
        if not bool(bad.any()):
            return
        row, column = (int(one) for one in bad.nonzero()[0])
        step = self._step - len(self._losses) + 1 + row
        raise TrainingError(f"the {LOSSES[column]} loss is not finite at step {step} ({self._epoch(step)}); the last "
                            "good checkpoint is kept; lower --learning-rate, or use --precision fp32")  # fmt: skip


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
        record = stack.enter_context(_record(job, folder, state)) if fabric.is_global_zero else None
        log = LossLog(options, job.steps_per_epoch, job.steps, record, progress, lambda x: _mean(fabric, x))

        def save(epoch: int | None) -> None:
            """Validate after this epoch, if any, and save the state; called in the first process."""
            if epoch is not None and record is not None:
                statistics = "" if uses_running_statistics(job, state.step) else " with re-estimated statistics"
                progress(Progress(f"validating epoch {epoch}{statistics}"))
                _validate(job, fabric, networks, folder, record, state, epoch)
            state.seconds = time.monotonic() - start
            save_state(folder.last, networks, fabric, state, options, fingerprint)

        for batch in batches:
            epoch = state.step // job.steps_per_epoch
            rate = options.learning_rate * rate_factor(epoch, options.epochs)
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
                validated = ends_epoch and is_validated(epoch, options.epochs, options.validate_every)
                in_first_process(fabric, partial(save, epoch + 1 if validated else None))
                log.restart_clock()
    return state


def _record(job: TrainingJob, folder: RunFolder, state: TrainingState) -> RunRecord:
    epochs, tensorboard = state.step // job.steps_per_epoch, job.options.tensorboard
    names = {"step_names": STEP_COLUMNS, "validation_names": tuple(VALIDATION_METRICS)}
    return RunRecord(folder.path, state.step, epochs, tensorboard, **names)


def _mean(fabric: Fabric, values: Tensor) -> Tensor:
    reduced = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return reduced


def _validate(
    job: TrainingJob, fabric: Fabric, networks: Networks, folder: RunFolder, record: RunRecord, state: TrainingState,
    epoch: int,
) -> None:  # fmt: skip
    """Score the generator, write the sample image, and save the weights if they are the best so far."""
    options, module = job.options, networks.model
    module.eval()
    is_ready = uses_running_statistics(job, state.step)
    scores, samples = validate(
        module if is_ready else with_estimated_statistics(module, job),
        job.validation,
        fabric.device,
        batch_size=options.batch_size,
        multiple=options.size_multiple,
        workers=count_workers(options),
        samples=options.samples,
        autocast=fabric.autocast,
    )
    module.train()
    metrics = scores["full_image"].compute()
    record.validation(epoch, state.step, metrics)
    if samples:
        grid = image_grid_figure([images for _, images in samples], captions=[pair.name for pair, _ in samples])
        record.samples(epoch, grid)
    best = BestEpoch(epoch, options.best_by, metrics[options.best_by])
    if is_better(options.best_by, best.value, state.best.value if state.best else math.nan):
        save_best(folder.best, module, best)
        state.best = best


def train(
    job: TrainingJob, out: str | Path, *, resume: bool = False, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """Train a generator, and write ``model.safetensors`` to the folder ``out``.

    With several processes each of them calls this; the first one writes.

    Parameters
    ----------
    out
        The run's folder; new, or with ``resume`` one that holds a checkpoint.
    resume
        Resume exactly from the last checkpoint.

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
    with ExitStack() as stack, clear_torch_errors(), _end_together(fabric):
        in_first_process(fabric, lambda: _begin(job, folder, resume, stack))
        state = fit(job, fabric, folder, resume=resume, progress=progress)
        summary: dict[str, Any] = {}
        in_first_process(fabric, lambda: summary.update(export_model(job, fabric, folder, state, progress)))
    if fabric.is_global_zero:
        try:
            draw_curves([folder.path], folder.curves)
        except Wsi2IhcError as error:  # for example without matplotlib
            _log.warning("the curves are not plotted: %s", error)
    return summary


def _check(job: TrainingJob, folder: RunFolder, resume: bool) -> None:
    """Check once, before anything is written, what would fail later in each process."""
    if folder.path.resolve().is_relative_to(job.data.folder.resolve()):
        raise OutputError(f"--out {folder.path} lies inside the dataset, and its images would be mistaken for patches; "
                          "choose another folder")  # fmt: skip
    if not resume:
        folder.check_new()
        return
    folder.check_resumable()
    check_same_run(read_state(folder.last), job.options, job.data.fingerprint(), folder.last)


def _begin(job: TrainingJob, folder: RunFolder, resume: bool, stack: ExitStack) -> None:
    _check(job, folder, resume)
    stack.enter_context(folder.locked())  # makes the folder
    if not resume:
        folder.check_new()  # another training process may have started since
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
def clear_torch_errors() -> Iterator[None]:
    """Replace torch's out-of-memory and lost-peer errors by errors with one-line messages."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, Wsi2IhcError):
            raise
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
