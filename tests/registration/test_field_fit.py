"""Local fields from scattered displacements."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wsi2ihc.registration import deformation
from wsi2ihc.registration.deformation import STIFFNESSES, Displacements, choose_stiffness, fit_field
from wsi2ihc.registration.transform import LocalField, Transform, to_moving

SIDE_UM, PITCH_UM = 3000.0, 100.0
EXTENT = (0.0, 0.0, SIDE_UM, SIDE_UM)


def bent(points: np.ndarray) -> np.ndarray:
    x, y = points.T / 700
    return 20 * np.stack([np.sin(x + y), np.cos(1.3 * y - x)], axis=-1)


def displaced(noise_um: float, astray: float = 0.0, truth=bent) -> Displacements:
    random = np.random.default_rng(5)
    line = np.arange(PITCH_UM / 2, SIDE_UM, PITCH_UM)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    moved = truth(points) + random.normal(0, noise_um, points.shape)
    wild = random.uniform(size=len(points)) < astray
    moved[wild] = random.uniform(-60, 60, (int(wild.sum()), 2))
    return Displacements(points, moved, np.zeros_like(points), np.ones(len(points)), PITCH_UM, PITCH_UM)


def errors(field: LocalField, truth=bent) -> np.ndarray:
    points = np.random.default_rng(6).uniform(100, SIDE_UM - 100, (500, 2))
    displacement = to_moving(Transform(np.eye(2, 3), field), points) - points
    return np.hypot(*(displacement - truth(points)).T)


def anything(_: LocalField) -> bool:
    return True


@pytest.mark.parametrize(("noise_um", "astray", "bar_um"), [(0.1, 0.0, 0.5), (3.0, 0.0, 1.6), (1.0, 0.2, 1.0)])
def test_a_smooth_field_is_found(noise_um: float, astray: float, bar_um: float) -> None:
    fitted = fit_field(displaced(noise_um, astray), EXTENT, 150.0, 0.2, anything)
    assert fitted.field is not None
    assert np.median(errors(fitted.field)) < bar_um, "less than the noise of one block"


def test_the_left_out_error_is_honest() -> None:
    fitted = fit_field(displaced(3.0), EXTENT, 150.0, 0.2, anything)
    # the median length of noise of 3 µm along both axes is 3.5 µm, and what is predicted is off as well
    assert 3.2 < fitted.error_um < 5.0


def test_noise_warrants_no_field_that_bends() -> None:
    def still(points: np.ndarray) -> np.ndarray:
        return np.zeros_like(points)

    fitted = fit_field(displaced(5.0, truth=still), EXTENT, 150.0, 0.2, anything)
    assert fitted.field is None or errors(fitted.field, still).max() < 1.0


def test_more_noise_is_met_with_more_stiffness() -> None:
    chosen = [choose_stiffness(displaced(noise), 150.0, 0.2) for noise in (0.1, 8.0)]
    assert chosen[0] is not None
    assert chosen[1] is not None
    assert chosen[0][0] < chosen[1][0]


def test_a_known_field_is_kept_without_better_measurements() -> None:
    found = displaced(2.0)
    known = dataclasses.replace(found, previous_um=bent(found.points_um))
    fitted = fit_field(known, EXTENT, 400.0, 0.2, anything)
    assert fitted.field is None
    assert fitted.error_um == pytest.approx(np.median(np.hypot(*(known.previous_um - known.measured_um).T)))


def test_an_impossible_field_is_made_stiffer() -> None:
    asked: list[LocalField] = []

    def third(field: LocalField) -> bool:
        asked.append(field)
        return len(asked) == 3

    soft = fit_field(displaced(0.1), EXTENT, 150.0, 0.2, anything)
    stiff = fit_field(displaced(0.1), EXTENT, 150.0, 0.2, third)
    assert STIFFNESSES.index(stiff.stiffness) == STIFFNESSES.index(soft.stiffness) + 2
    assert fit_field(displaced(0.1), EXTENT, 150.0, 0.2, lambda _: False).field is None


def test_many_blocks_are_sampled_for_their_stiffness() -> None:
    line = np.arange(20, 6000, 60.0)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    noise = np.random.default_rng(1).normal(0, 0.5, points.shape)
    many = Displacements(points, bent(points) + noise, np.zeros_like(points), np.ones(len(points)), 60.0, 60.0)
    choice = choose_stiffness(many, 120.0, 0.2)
    assert choice is not None
    assert choice[1] < 1.2


def test_blocks_of_one_fold_validate_no_field() -> None:
    one_cell = np.stack(np.meshgrid(np.arange(5, 200, 40.0), np.arange(5, 200, 40.0)), axis=-1).reshape(-1, 2)
    count = len(one_cell)
    found = Displacements(one_cell, bent(one_cell), np.zeros((count, 2)), np.ones(count), 40.0, PITCH_UM)
    assert choose_stiffness(found, 150.0, 0.2) is None
    assert fit_field(found, (0, 0, 200, 200), 150.0, 0.2, anything).error_um > 1


def test_stiffness_of_many_blocks_far_apart() -> None:
    line = np.arange(0, 50_000, 1000.0)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    found = Displacements(points, bent(points), np.zeros_like(points), np.ones(len(points)), 40.0, 80.0)
    choose_stiffness(found, 400.0, 0.2)  # no square has enough blocks


def test_stiffness_is_chosen_on_the_fullest_squares() -> None:
    line = np.arange(0, 96.0)
    points = np.stack(np.meshgrid(line, np.arange(0, 24.0)), axis=-1).reshape(-1, 2)
    weights = np.ones(len(points))
    weights[np.flatnonzero(points[:, 0] < 48)[::8]] = 0  # two squares with equally few blocks, then two full ones
    found = Displacements(points, np.zeros_like(points), np.zeros_like(points), weights, 1.0, 1.0)
    chosen = [float(points[square, 0].min()) for square in deformation._squares(found)]
    assert chosen == [0, 48, 72]
