"""What changes from step to step, as functions of the step's number: nothing here has a state to be saved."""

from __future__ import annotations

import numpy as np


def rate_factor(epoch: int, epochs: int) -> float:
    """The learning rate of an epoch (from 0), as a share of the initial one.

    Constant for the first half, then falling in equal steps. The published schedule is zero in its last epoch, which
    then trains nothing; this one would reach zero in the epoch after the last.
    """
    constant = epochs - epochs // 2
    return 1.0 - max(0, epoch + 1 - constant) / (epochs // 2 + 1)


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of all that is drawn at a step (dropout) in one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)


def is_validated(epoch: int, epochs: int, every: int) -> bool:
    """Whether an epoch (from 0) is followed by a validation; the last one always is."""
    return (epoch + 1) % every == 0 or epoch + 1 == epochs
