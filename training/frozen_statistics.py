"""Re-estimate the statistics of batch norm over training crops, for validation of early epochs.

Running averages start at mean 0 and variance 1, far from the statistics of new weights: until these initial values
have decayed, a network in evaluation mode outputs a uniform gray, whatever it has learned.
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
"""Number of crops, and most pixels, over which statistics are re-estimated. All are held in memory, in 200 MB."""

RUNNING_FROM_STEP = 200
"""First step whose validation uses running averages. Each step keeps 0.9 of them, so that less than a billionth of
the initial variance of 1 is left; the variance after the first convolution starts at about 0.01."""


def uses_running_statistics(job: TrainingJob, step: int) -> bool:
    """Whether validation after this step uses the generator's running statistics, not re-estimated ones."""
    return job.spec.norm != "batch" or step >= RUNNING_FROM_STEP


def with_estimated_statistics(module: nn.Module, job: TrainingJob) -> nn.Module:
    """Copy the generator, in evaluation mode, with statistics taken over training crops.

    The crops depend on the seed only, and no random numbers of torch are drawn.
    """
    options = job.options
    with torch.device("meta"):
        plain = build_network(job.spec)  # not compiled, and without synchronized norms
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
    """Number of batches over which statistics are re-estimated."""
    crops = min(STATISTICS_CROPS, STATISTICS_PX // options.crop_size**2)
    return max(2, crops // options.batch_size)
