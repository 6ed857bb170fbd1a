"""Batch norm's statistics, taken over training crops instead of averaged while the weights changed.

Running averages begin at mean 0 and variance 1, which are far from those of fresh weights: until they have forgotten
that, a network in evaluation mode answers with a uniform gray, whatever it has learned.
"""

from __future__ import annotations

import torch
from torch import nn

from wsi2ihc.generator.checkpoint import build_network
from wsi2ihc.generator.pixels import to_network
from wsi2ihc.generator.statistics import estimate_statistics

from .data.patches import training_batches
from .job import TrainingJob
from .machine import count_workers
from .options import TrainOptions

STATISTICS_CROPS = 256
STATISTICS_PX = 1 << 24
"""Over how many crops, and pixels at most, statistics are re-estimated. They are held at once, in 200 MB."""

RUNNING_FROM_STEP = 200
"""From this step on, running averages are used in validation. Each step keeps 0.9 of them, so that of their initial
variance of 1 a billionth is left; the variance after the first convolution begins at about 0.01."""


def uses_running_statistics(job: TrainingJob, step: int) -> bool:
    """Whether the generator is validated as it is after this step, and not with statistics of its own."""
    return job.spec.norm != "batch" or step >= RUNNING_FROM_STEP


def with_estimated_statistics(module: nn.Module, job: TrainingJob) -> nn.Module:
    """A copy of the generator, in evaluation mode, with statistics taken over training crops.

    The same crops each time: they follow from the seed. Random numbers of torch are not drawn.
    """
    options = job.options
    with torch.device("meta"):
        plain = build_network(job.spec)  # neither compiled nor with norms of several processes
    plain.load_state_dict(module.state_dict(), assign=True)
    batches = training_batches(
        job.train,
        crop_px=options.crop_size,
        augmentation=options.augmentation,
        stain_jitter=options.stain_jitter,
        batch_size=options.batch_size,
        seed=options.seed,
        last_step=statistics_steps(options),
        workers=count_workers(options),
    )
    return estimate_statistics(plain, [to_network(batch.he) for batch in batches]).module


def statistics_steps(options: TrainOptions) -> int:
    """Over how many batches statistics are re-estimated."""
    crops = min(STATISTICS_CROPS, STATISTICS_PX // options.crop_size**2)
    return max(2, crops // options.batch_size)
