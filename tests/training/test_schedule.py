"""Learning rate, seeds and validation schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi2ihc.training.train_step import is_validated, rate_factor, step_seed


def test_rate_is_constant_then_decreases_linearly() -> None:
    assert [rate_factor(epoch, 8) for epoch in range(8)] == pytest.approx([1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert [rate_factor(epoch, 3) for epoch in range(3)] == pytest.approx([1, 1, 0.5])
    assert rate_factor(0, 1) == 1


@given(st.integers(1, 300))
def test_rate_is_never_zero(epochs: int) -> None:
    factors = [rate_factor(epoch, epochs) for epoch in range(epochs)]
    assert factors[0] == 1
    assert min(factors) > 0
    assert factors == sorted(factors, reverse=True)


def test_seeds_of_steps_differ() -> None:
    seeds = {step_seed(seed, step, process) for seed in range(3) for step in range(50) for process in range(3)}
    assert len(seeds) == 450
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_last_epoch_is_always_validated() -> None:
    assert [is_validated(epoch, 5, 2) for epoch in range(5)] == [False, True, False, True, True]
