"""Limits, reasons and what is said of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from wsi2ihc.errors import OptionError
from wsi2ihc.training.pairs.quality import LIMIT_OF, REASONS, Limits, PatchMetrics, rejection_reason
from wsi2ihc.training.pairs.report import summarize_rejections

GOOD = PatchMetrics(
    tissue_he=0.9, tissue_ihc=0.8, valid=1.0, correlation=0.5, residual_um=2.0, sharpness_he=1.0, sharpness_ihc=0.8,
    folds=0.01, pen=0.0, stained=0.4,
)  # fmt: skip

FAULTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tissue", {"tissue_he": 0.1}, {"min_tissue": 0}),
    ("tissue", {"tissue_ihc": 0.1}, {"min_tissue": 0}),
    ("outside", {"valid": 0.999}, {"min_valid": 0}),
    ("residual", {"residual_um": 10.5}, {"max_residual_um": 0}),
    ("correlation", {"correlation": 0.01}, {"min_correlation": -1}),
    ("blur", {"sharpness_he": 0.2}, {"min_sharpness": 0}),
    ("blur", {"sharpness_ihc": 0.2}, {"min_sharpness": 0}),
    ("fold", {"folds": 0.3}, {"max_folds": 1}),
    ("pen", {"pen": 0.06}, {"max_pen": 1}),
]


def test_a_good_patch_is_kept() -> None:
    assert rejection_reason(GOOD, Limits()) == ""


@pytest.mark.parametrize(("reason", "fault", "off"), FAULTS)
def test_each_fault_has_its_reason_and_each_limit_can_be_switched_off(
    reason: str, fault: dict[str, Any], off: dict[str, Any]
) -> None:
    metrics = dataclasses.replace(GOOD, **fault)
    assert rejection_reason(metrics, Limits()) == reason
    assert rejection_reason(metrics, Limits(**off)) == ""


def test_the_first_reason_is_told() -> None:
    metrics = GOOD
    for reason, fault, _ in reversed(FAULTS):
        if "tissue_ihc" in fault:  # is not told beside "outside"
            continue
        metrics = dataclasses.replace(metrics, **fault)
        assert rejection_reason(metrics, Limits()) == reason


def test_what_could_not_be_measured_fails_nothing() -> None:
    assert rejection_reason(PatchMetrics(tissue_he=1, tissue_ihc=1, valid=1), Limits()) == ""


def test_a_transform_that_nobody_has_proved_needs_something_that_speaks_for_it() -> None:
    unknown = PatchMetrics(tissue_he=1, tissue_ihc=1, valid=1)
    assert rejection_reason(unknown, Limits(), verified=False) == "correlation"
    assert rejection_reason(unknown, Limits(min_correlation=-1), verified=False) == ""
    assert rejection_reason(dataclasses.replace(unknown, correlation=0.2), Limits(), verified=False) == ""
    assert rejection_reason(dataclasses.replace(unknown, residual_um=2.0), Limits(), verified=False) == ""
    assert rejection_reason(GOOD, Limits(), verified=False) == ""


def test_outside_of_the_ihc_is_not_told_as_a_lack_of_tissue() -> None:
    assert rejection_reason(PatchMetrics(tissue_he=1, tissue_ihc=0, valid=0), Limits()) == "outside"
    assert rejection_reason(PatchMetrics(tissue_he=0, tissue_ihc=0, valid=0), Limits()) == "tissue"


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_tissue", -0.1), ("min_tissue", 1.1), ("max_residual_um", -1), ("min_correlation", math.nan),
     ("max_pen", "5"), ("min_valid", True), ("max_folds", None)],
)  # fmt: skip
def test_impossible_limits(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^--{name.replace('_', '-')} must be a number"):
        Limits(**{name: value})


def test_every_limit_has_a_help_text_and_belongs_to_a_reason() -> None:
    assert {name for name, _ in LIMIT_OF.values()} == {one.name for one in dataclasses.fields(Limits)}
    assert tuple(LIMIT_OF) == REASONS
    assert all(one.metadata["help"].endswith(".") for one in dataclasses.fields(Limits))


def outcomes(level: str | None, kept: int, **rejected: int) -> list[tuple[str | None, str]]:
    return [(level, "")] * kept + [(level, reason) for reason, count in rejected.items() for _ in range(count)]


def test_counts() -> None:
    tally = summarize_rejections(outcomes("1+", 5, pen=1, blur=2) + outcomes(None, 3, tissue=4))
    assert dict(tally.counts) == {"kept": 8, "tissue": 4, "blur": 2, "pen": 1}
    assert list(tally.counts) == ["kept", "tissue", "blur", "pen"]
    assert dict(tally.by_level["1+"]) == {"kept": 5, "blur": 2, "pen": 1}
    assert dict(tally.by_level[""]) == {"kept": 3, "tissue": 4}
    assert tally.warnings == ()


def test_a_level_that_loses_far_more_is_named() -> None:
    tally = summarize_rejections(
        outcomes("3+", 60, correlation=40) + outcomes("0", 190, correlation=10) + outcomes("1+", 195, correlation=5)
    )
    (warning,) = tally.warnings
    assert "HER2 3+ loses 40% of its 100 patches to 'correlation'" in warning
    assert "3.8%" in warning
    assert "lower --min-correlation" in warning
    (fold,) = summarize_rejections(outcomes("3+", 60, fold=40) + outcomes("0", 200)).warnings
    assert "raise --max-folds" in fold


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ((60, 40), (120, 60)),  # less than twice as much
        ((9, 10), (200, 2)),  # too few
        ((27, 3), (190, 8)),  # not clear
        ((100, 0), (50, 50)),  # less
    ],
)
def test_differences_that_say_little(own: tuple[int, int], others: tuple[int, int]) -> None:
    levels = outcomes("3+", own[0], blur=own[1]) + outcomes("0", others[0], blur=others[1])
    assert not [warning for warning in summarize_rejections(levels).warnings if warning.startswith("HER2 3+")]


def test_slides_without_a_level_are_not_compared() -> None:
    assert summarize_rejections(outcomes(None, 10, blur=90) + outcomes("0", 200)).warnings == ()
    assert summarize_rejections([]).counts == {"kept": 0}
