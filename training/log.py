"""Losses on their way from the device to the tables and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsi2ihc.errors import TrainingError
from wsi2ihc.progress import Progress, ProgressCallback

from .history import RunRecord
from .options import TrainOptions
from .step import LOSSES

STEP_COLUMNS = (*LOSSES, "learning_rate", "images_per_s")


@dataclass(slots=True)
class LossLog:
    """Collects the losses of some steps on the device, and writes their mean as one row.

    A GPU is asked for them once per row; asking at every step would make it wait. So a loss that is not finite is
    found at the end of the row, and the step that it belongs to is named.

    options:          of the run
    steps_per_epoch:  of the run
    steps:            of the whole run
    record:           where rows go; None in all processes but the first
    progress:         called after every step
    mean:             takes the mean of a tensor over all processes
    """

    options: TrainOptions
    steps_per_epoch: int
    steps: int
    record: RunRecord | None
    progress: ProgressCallback
    mean: Callable[[Tensor], Tensor]
    _held: list[Tensor] = field(default_factory=list)
    _step: int = 0
    _rate: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _note: str = ""

    def add(self, losses: Tensor, step: int, rate: float) -> None:
        """Take the losses (5) of a step, of which the first is step 1, and the learning rate that it had."""
        self._held.append(losses)
        self._step, self._rate = step, rate
        if len(self._held) >= self.options.log_every:
            self.write()
        self.progress(Progress("training", step, self.steps, "step", f"{self._epoch(step)}{self._note}"))

    def write(self) -> None:
        """Write a row of what is held.

        Raises
        ------
        TrainingError
            If a loss is not finite.
        """
        if not self._held:
            return
        values = self.mean(torch.stack(self._held)).cpu()
        self._check_finite(values)
        means = dict(zip(LOSSES, values.double().mean(0).tolist(), strict=True))
        images_per_s = len(self._held) * self.options.batch_size / (time.monotonic() - self._since)
        self._note = "".join(f", {name} {value:.3g}" for name, value in means.items())
        self._note += f", {images_per_s:.3g} images/s"
        if self.record:
            epoch = 1 + (self._step - 1) // self.steps_per_epoch
            row = {**means, "learning_rate": self._rate, "images_per_s": images_per_s}
            self.record.step(self._step, epoch, row)
        self._held.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to measure the rate anew, after something that is no training."""
        self._since = time.monotonic()

    def _epoch(self, step: int) -> str:
        return f"epoch {1 + (step - 1) // self.steps_per_epoch} of {self.options.epochs}"

    def _check_finite(self, values: Tensor) -> None:
        # the variance of a single image is NaN by right, where it is only reported
        needed = [name != "variance" or self.options.variance_weight > 0 for name in LOSSES]
        bad = ~torch.isfinite(values) & torch.tensor(needed)
        if not bool(bad.any()):
            return
        row, column = (int(one) for one in bad.nonzero()[0])
        step = self._step - len(self._held) + 1 + row
        raise TrainingError(f"the {LOSSES[column]} loss is not finite at step {step} ({self._epoch(step)}); the last "
                            "good checkpoint is kept; lower --learning-rate, or use --precision fp32")  # fmt: skip
