"""Outliers of alignment."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.training.inspection.misalignment import LEAST_PAIRS, find_misaligned
from wsi2ihc.training.pairing.agreement import Agreement

RANDOM = np.random.default_rng(0)
GOOD = [Agreement(float(value), 1.0, 9) for value in np.tanh(RANDOM.normal(1.5, 0.25, 60))]


def test_outliers_are_found_the_worst_first() -> None:
    bad = [Agreement(0.3, 2.0, 9), Agreement(0.95, 14.0, 9), Agreement(-0.1, 15.0, 4), Agreement(None, 12.0, 3)]
    found = find_misaligned([*GOOD, *bad])
    assert [(one.number, one.reason) for one in found.misaligned] == [
        (62, "large residual, low correlation"),
        (60, "low correlation"),
        (61, "large residual"),
        (63, "large residual"),
    ]
    assert found.median_correlation == pytest.approx(np.tanh(1.5), abs=0.02)
    assert found.median_residual_um == 1.0
    assert found.least_correlation is not None
    assert 0.3 < found.least_correlation < min(one.correlation or 1 for one in GOOD)


def test_a_data_set_that_agrees_has_none() -> None:
    assert find_misaligned(GOOD).misaligned == ()
    same = [Agreement(0.97, 0.1, 9)] * 30 + [Agreement(0.96, 0.1, 9)]
    assert find_misaligned(same).misaligned == ()
    perfect = [Agreement(1.0, 0.0, 9)] * 30
    assert find_misaligned(perfect).misaligned == ()


def test_serial_sections_agree_less_and_are_not_all_outliers() -> None:
    wide = [Agreement(float(value), 4.0, 9) for value in np.tanh(RANDOM.normal(0.35, 0.15, 100))]
    assert find_misaligned(wide).misaligned == ()
    assert [one.number for one in find_misaligned([*wide, Agreement(-0.5, 4.0, 9)]).misaligned] == [100]


def test_few_pairs_and_empty_ones() -> None:
    few = find_misaligned([*GOOD[: LEAST_PAIRS - 2], Agreement(-0.5, None, 0)])
    assert (few.misaligned, few.least_correlation) == ((), None)
    empty = find_misaligned([Agreement(None, None, 0)])
    assert (empty.median_correlation, empty.median_residual_um, empty.unknown) == (None, None, 1)
