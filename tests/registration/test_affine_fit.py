"""Affine maps from matches of which many are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.registration.affine import fit_affine, is_possible

MATRIX = np.array([[0.97, 0.05, 120.0], [-0.04, 1.02, -60.0]])


def matches(wrong: float, count: int = 200, noise_um: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    points = random.uniform(0, 5000, (count, 2))
    found = points @ MATRIX[:, :2].T + MATRIX[:, 2] + random.normal(0, noise_um, (count, 2))
    astray = np.arange(count) < wrong * count
    found[astray] += random.uniform(-200, 200, (int(astray.sum()), 2))
    return points, found


@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.6])
def test_the_map_is_found_among_wrong_matches(wrong: float) -> None:
    points, found = matches(wrong)
    fit = fit_affine(points, found, np.ones(len(points)), 10.0)
    assert fit is not None
    matrix, agree = fit
    corners = np.array([[0, 0, 1], [5000, 0, 1], [0, 5000, 1], [5000, 5000, 1]])
    assert np.hypot(*(corners @ (matrix - MATRIX).T).T).max() < 1.5
    assert agree.mean() == pytest.approx(1 - wrong, abs=0.03)


def test_too_few_matches_are_no_map() -> None:
    points, found = matches(0.0, count=5)
    assert fit_affine(points, found, np.ones(5), 10.0) is None


def test_matches_on_one_point_are_no_map() -> None:
    points = np.full((20, 2), 7.0)
    assert fit_affine(points, points, np.ones(20), 10.0) is None


@pytest.mark.parametrize(
    "linear",
    [np.diag([0.8, 0.8]), np.diag([1.25, 1.25]), np.diag([1.15, 0.9]), np.array([[1, 0.3], [0, 1]])],
    ids=["shrunk", "swollen", "squeezed", "sheared"],
)
def test_impossible_maps_are_refused(linear: np.ndarray) -> None:
    assert not is_possible(np.column_stack([linear, [0, 0]]))
    points, _ = matches(0.0)
    assert fit_affine(points, points @ linear.T, np.ones(len(points)), 10.0) is None


def test_turns_and_mirrors_are_possible() -> None:
    turn = 0.97 * np.array([[0.6, -0.8], [0.8, 0.6]])
    assert is_possible(np.column_stack([turn, [5, 5]]))
    assert is_possible(np.column_stack([turn @ np.diag([-1, 1]), [5, 5]]))
