"""Correlation from sums, bootstrap weights and percentile intervals."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.training.metrics.pair_statistics import bootstrap_weights, correlation, moments_of, percentile_interval


def test_correlation_from_sums_of_parts() -> None:
    x, y = np.random.default_rng(0).normal(3, 1, (2, 400))
    y += 0.5 * x
    parts = np.stack([moments_of(x[:100], y[:100]), moments_of(x[100:], y[100:])])
    assert float(correlation(parts.sum(0))) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    expected = [np.corrcoef(x[:100], y[:100])[0, 1], np.corrcoef(x[100:], y[100:])[0, 1]]
    assert correlation(parts).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1234567, 1e6])
def test_constant_has_no_correlation(constant: float) -> None:
    x = np.random.default_rng(0).normal(size=1001)
    assert np.isnan(correlation(moments_of(x, np.full(1001, constant))))
    assert np.isnan(correlation(moments_of(np.full(1001, constant), x)))
    assert np.isnan(correlation(np.zeros(6)))


def test_bootstrap_weights_draw_units_with_replacement() -> None:
    weights = bootstrap_weights(4, seed=1, resamples=3000)
    np.testing.assert_array_equal(weights.sum(1), 4)
    np.testing.assert_array_equal(weights, np.rint(weights))
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.06)
    # (of n draws from n units, the count of a unit has the variance 1 - 1 / n)
    np.testing.assert_allclose(weights.var(0), 0.75, atol=0.08)
    np.testing.assert_array_equal(weights, bootstrap_weights(4, seed=1, resamples=3000))
    assert (weights != bootstrap_weights(4, seed=2, resamples=3000)).any()


def test_percentile_interval() -> None:
    values = np.concatenate([np.arange(101.0), [np.nan]])
    assert percentile_interval(values, 0.9) == pytest.approx((5, 95))
    assert np.isnan(percentile_interval(np.full(3, np.nan), 0.9)).all()
