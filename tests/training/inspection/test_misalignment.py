"""Outliers of alignment."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.training.inspection import alignment
from wsi2ihc.training.inspection.alignment import MIN_PAIRS, AlignmentFindings
from wsi2ihc.training.pairs.quality import Agreement

RANDOM = np.random.default_rng(0)
GOOD = [Agreement(float(value), 1.0, 9) for value in np.tanh(RANDOM.normal(1.5, 0.25, 60))]


def find_misaligned(agreements: list[Agreement], chances: list[float | None] | None = None) -> AlignmentFindings:
    return alignment.find_misaligned(agreements, chances or [None] * len(agreements))


def test_outliers_are_sorted_by_correlation() -> None:
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


def test_aligned_dataset_has_no_outliers() -> None:
    assert find_misaligned(GOOD).misaligned == ()
    same = [Agreement(0.97, 0.1, 9)] * 30 + [Agreement(0.96, 0.1, 9)]
    assert find_misaligned(same).misaligned == ()
    perfect = [Agreement(1.0, 0.0, 9)] * 30
    assert find_misaligned(perfect).misaligned == ()


def test_aligned_pair_is_no_outlier_among_better_ones() -> None:
    perfect = [Agreement(float(value), 0.0, 9) for value in np.tanh(RANDOM.normal(3.5, 0.1, 90))]
    spread = [*perfect, Agreement(0.985, 1.0, 9)]
    assert find_misaligned(spread, [0.3] * 91).misaligned == ()
    assert [one.number for one in find_misaligned(spread).misaligned] == [90]  # chance is unknown
    for worse in (Agreement(0.985, 2.0, 9), Agreement(0.985, None, 0), Agreement(0.6, 1.0, 9)):
        assert [one.number for one in find_misaligned([*perfect, worse], [0.3] * 91).misaligned] == [90]


def test_serial_sections_are_not_outliers() -> None:
    wide = [Agreement(float(value), 4.0, 9) for value in np.tanh(RANDOM.normal(0.35, 0.15, 100))]
    assert find_misaligned(wide).misaligned == ()
    assert [one.number for one in find_misaligned([*wide, Agreement(-0.5, 4.0, 9)]).misaligned] == [100]


def test_few_pairs_and_empty_ones() -> None:
    few = find_misaligned([*GOOD[: MIN_PAIRS - 2], Agreement(-0.5, None, 0)])
    assert (few.misaligned, few.least_correlation) == ((), None)
    empty = find_misaligned([Agreement(None, None, 0)])
    assert (empty.median_correlation, empty.median_residual_um, empty.unknown) == (None, None, 1)


def test_pairs_no_better_than_chance_are_found() -> None:
    """Half of the pairs are wrong, so that median and deviation are not informative."""
    wrong = [Agreement(float(value), None, 0) for value in RANDOM.uniform(-0.25, 0.25, 60)]
    assert find_misaligned([*GOOD, *wrong]).misaligned == ()
    found = find_misaligned([*GOOD, *wrong], [0.3] * 120)
    assert {(one.number, one.reason, one.chance) for one in found.misaligned} == {
        (number, "no better than chance", 0.3) for number in range(60, 120)
    }
    assert (found.no_better, found.median_chance) == (60, 0.3)


def test_chance_is_specific_to_each_pair() -> None:
    same = [Agreement(0.3, 1.0, 9), Agreement(0.3, 1.0, 9), Agreement(0.3, 15.0, 9), Agreement(None, None, 0)]
    found = find_misaligned(same, [0.25, None, 0.35, 0.35])
    assert [(one.number, one.reason) for one in found.misaligned] == [(2, "large residual, no better than chance")]
    assert found.no_better == 1
