"""HER2 levels from numbers: cutoffs, predictions and kappa."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from wsi2ihc.training.metrics.her2 import LEVELS, fit_cutoffs, predict_levels, quadratic_kappa


def plain_kappa(confusion: np.ndarray) -> float:
    """Cohen's formula, term by term."""
    total, count = confusion.sum(), len(confusion)
    observed = expected = 0.0
    for i, j in itertools.product(range(count), repeat=2):
        weight = (i - j) ** 2 / (count - 1) ** 2
        observed += weight * confusion[i, j] / total
        expected += weight * confusion[i].sum() * confusion[:, j].sum() / total**2
    return 1 - observed / expected


def test_kappa_is_cohens_formula() -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (4, 4))
    assert quadratic_kappa(confusion) == pytest.approx(plain_kappa(confusion))
    assert quadratic_kappa(np.diag([3, 2, 4, 1])) == 1
    assert np.isnan(quadratic_kappa(np.diag([3, 0, 0, 0])))
    assert np.isnan(quadratic_kappa(np.zeros((4, 4), int)))


def test_separable_levels_are_separated_half_way() -> None:
    values = [0.01, 0.02, 0.10, 0.12, 0.30, 0.34, 0.80, 0.90]
    levels = ["0", "0", "1+", "1+", "2+", "2+", "3+", "3+"]
    assert fit_cutoffs(values, levels) == pytest.approx((0.06, 0.21, 0.57))


def test_no_other_cutoffs_agree_better() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 14)
    values = truth * 0.2 + rng.normal(0, 0.15, 14)
    labels = [LEVELS[level] for level in truth]
    cutoffs = fit_cutoffs(values.tolist(), labels)
    assert cutoffs is not None

    def kappa(of: tuple[float, ...]) -> float:
        predictions = np.searchsorted(of, values, side="right")
        confusion = np.zeros((4, 4), int)
        np.add.at(confusion, (truth, predictions), 1)
        return quadratic_kappa(confusion)

    ordered = np.sort(values)
    candidates = (ordered[1:] + ordered[:-1]) / 2
    best = max(kappa(of) for of in itertools.combinations_with_replacement(candidates, 3))
    assert kappa(cutoffs) == pytest.approx(best)


@pytest.mark.parametrize(
    ("levels", "value", "predicted"),
    [(("0", "3+"), 0.9, "3+"), (("0", "3+"), 0.1, "0"), (("1+", "2+"), 0.0, "1+"), (("1+", "2+"), 1.0, "2+"),
     (("2+", "3+"), 0.0, "2+")],
)  # fmt: skip
def test_untrained_level_is_never_predicted(levels: tuple[str, str], value: float, predicted: str) -> None:
    cutoffs = fit_cutoffs([0.2, 0.3, 0.7, 0.8], [levels[0], levels[0], levels[1], levels[1]])
    assert cutoffs is not None
    predictions = predict_levels({"s": value}, {"s": "0"}, "stained area", cutoffs)
    assert LEVELS[int(predictions.confusion[0].argmax())] == predicted


def test_one_level_or_one_value_gives_no_cutoffs() -> None:
    assert fit_cutoffs([0.1, 0.2], ["1+", "1+"]) is None
    assert fit_cutoffs([0.1, 0.1], ["1+", "2+"]) is None
    assert fit_cutoffs([], []) is None


def test_missed_are_positives_predicted_negative() -> None:
    labels = {"a": "3+", "b": "3+", "c": "3+", "d": "0"}
    values = {"a": 0.05, "b": 0.15, "c": 0.9, "d": 0.9, "unlabeled": 0.5}
    predictions = predict_levels(values, labels, "H-score", (0.1, 0.2, 0.5))
    assert (predictions.missed, predictions.correct, predictions.slides) == (2, 1, 4)
