"""Places on two slides: there, back, and on grids."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2ihc.errors import MissingResolutionError, TransformError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.registration.transform import (
    LocalField,
    Transform,
    affine,
    frame_of,
    identity,
    jacobian_range,
    moving_grid,
    to_fixed,
    to_moving,
)
from wsi2ihc.slide import Level, SlideInfo

LEAST_DETERMINANT = 0.2


@st.composite
def transforms(draw: st.DrawFn, with_field: bool | None = None) -> Transform:
    """A turn, a scale, perhaps a mirror, and a field that does not fold."""
    angle, scale = draw(st.floats(-np.pi, np.pi)), draw(st.floats(0.9, 1.1))
    mirror = draw(st.sampled_from([-1.0, 1.0]))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirror, 1.0])
    shift = [[draw(st.floats(-5000, 5000))], [draw(st.floats(-5000, 5000))]]
    matrix = np.hstack([turn, shift])
    if not (draw(st.booleans()) if with_field is None else with_field):
        return Transform(matrix)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9)), 2
    spacing_um = draw(st.floats(20, 400))
    origin_um = draw(st.floats(-500, 500)), draw(st.floats(-500, 500))
    # Control points a tenth of their spacing off, at most, cannot make neighbors pass each other.
    coefficients = rng.uniform(-0.1, 0.1, shape) * spacing_um
    return Transform(matrix, LocalField(origin_um, spacing_um, coefficients))


def kernel(t: float) -> float:
    """The cubic B-spline, as textbooks have it."""
    t = abs(t)
    if t < 1:
        return 2 / 3 - t**2 + t**3 / 2
    return (2 - t) ** 3 / 6 if t < 2 else 0.0


def by_definition(transform: Transform, x: float, y: float) -> list[float]:
    """One position, by the formula of `LocalField`, over a lattice that goes on."""
    moved = transform.matrix[:, :2] @ (x, y) + transform.matrix[:, 2]
    field = transform.field
    if field is not None:
        rows, columns = field.coefficients.shape[:2]
        place_x, place_y = ((value - start) / field.spacing_um
                            for value, start in zip((x, y), field.origin_um, strict=True))  # fmt: skip
        for i in range(int(place_y) - 3, int(place_y) + 5):
            for j in range(int(place_x) - 3, int(place_x) + 5):
                nearest = field.coefficients[min(max(i, 0), rows - 1), min(max(j, 0), columns - 1)]
                moved = moved + kernel(place_x - j) * kernel(place_y - i) * nearest
    return moved.tolist()


places = st.floats(-4000, 4000)


@settings(deadline=None, max_examples=50)
@given(transforms(), places, places)
def test_a_point_by_definition(transform: Transform, x: float, y: float) -> None:
    assert to_moving(transform, [[x, y]])[0] == pytest.approx(by_definition(transform, x, y), abs=1e-8)


@settings(deadline=None, max_examples=100)
@given(transforms(), st.integers(0, 2**32))
def test_there_and_back(transform: Transform, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-3000, 3000, (50, 2))
    np.testing.assert_allclose(to_fixed(transform, to_moving(transform, points)), points, atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=50)
@given(transforms(), st.integers(1, 40), st.integers(1, 40), st.floats(-2000, 2000), st.floats(0.1, 60))
def test_a_grid_equals_its_points(transform: Transform, width: int, height: int, start: float, step: float) -> None:
    x, y = start + step * np.arange(width), step * np.arange(height) - start / 2
    grid = moving_grid(transform, x, y)
    assert grid.shape == (height, width, 2)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(grid.reshape(-1, 2), to_moving(transform, points), atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=50)
@given(transforms(with_field=True), st.data())
def test_any_window_of_a_grid_is_part_of_a_larger_one(transform: Transform, data: st.DataObject) -> None:
    x, y = (np.arange(300) + 0.5) * 1.7 - 99, (np.arange(200) + 0.5) * 1.7 + 13
    whole = moving_grid(transform, x, y)
    left, top = data.draw(st.integers(0, 299)), data.draw(st.integers(0, 199))
    columns = slice(left, data.draw(st.integers(left + 1, 300)))
    rows = slice(top, data.draw(st.integers(top + 1, 200)))
    np.testing.assert_array_equal(moving_grid(transform, x[columns], y[rows]), whole[rows, columns])


def test_large_grids_are_added_up_in_pieces_of_one_kind() -> None:
    field = LocalField((0.0, 0.0), 150.0, np.random.default_rng(0).normal(0, 9, (5, 6, 2)))
    transform = Transform(np.eye(2, 3), field)
    x = np.arange(20_000) * 0.05
    whole = moving_grid(transform, x, np.arange(3.0))  # wider than one piece
    np.testing.assert_array_equal(moving_grid(transform, x[7:9], np.arange(3.0)), whole[:, 7:9])


def test_an_empty_grid_and_no_points() -> None:
    field = LocalField((0.0, 0.0), 100.0, np.ones((2, 2, 2)))
    for transform in (identity(), Transform(np.eye(2, 3), field)):
        assert moving_grid(transform, [], [1.0]).shape == (1, 0, 2)
        assert to_moving(transform, np.empty((0, 2))).shape == (0, 2)
        assert to_fixed(transform, np.empty((0, 2))).shape == (0, 2)


def test_far_from_the_lattice_the_field_is_constant() -> None:
    coefficients = np.random.default_rng(3).normal(0, 5, (4, 5, 2))
    transform = Transform(np.eye(2, 3), LocalField((0.0, 0.0), 50.0, coefficients))
    corner = moving_grid(transform, [1e5, 2e5], [1e5])[0] - [[1e5, 1e5], [2e5, 1e5]]
    np.testing.assert_allclose(corner, [coefficients[-1, -1]] * 2, atol=1e-9)
    (before,) = to_moving(transform, [(-1e5, 75.0)]) - (-1e5, 75.0)
    (at_the_edge,) = to_moving(transform, [(-100.0, 75.0)]) - (-100.0, 75.0)  # two intervals out
    np.testing.assert_allclose(before, at_the_edge, atol=1e-9)
    assert np.isfinite(to_moving(transform, [(1e300, -1e300)])).all()


def test_a_fold_has_no_inverse_and_is_seen() -> None:
    coefficients = np.zeros((9, 9, 2))
    coefficients[4, 4] = (400, 0)
    folded = Transform(np.eye(2, 3), LocalField((0.0, 0.0), 50.0, coefficients))
    least, greatest = jacobian_range(folded)
    assert least < 0 < 1 < greatest
    found = to_fixed(folded, to_moving(folded, np.random.default_rng(0).uniform(0, 400, (200, 2))))
    again = to_moving(folded, found[np.isfinite(found).all(axis=1)])
    assert len(again) > 100  # what is found is right, be it another of several places
    targets = to_moving(folded, np.random.default_rng(0).uniform(0, 400, (200, 2)))[np.isfinite(found).all(axis=1)]
    np.testing.assert_allclose(again, targets, atol=1e-3)


@settings(deadline=None, max_examples=25)
@given(transforms(with_field=True), places, places)
def test_determinants_are_those_of_small_steps(transform: Transform, x: float, y: float) -> None:
    least, greatest = jacobian_range(transform, points_per_interval=16)
    h = 1e-4
    right, down, here = to_moving(transform, [[x + h, y], [x, y + h], [x, y]])
    determinant = np.linalg.det(np.stack([right - here, down - here])) / h**2 / np.linalg.det(transform.matrix[:, :2])
    assert least - 0.05 <= determinant <= greatest + 0.05
    assert LEAST_DETERMINANT < least <= greatest


def test_determinant_of_a_known_stretch() -> None:
    """Coefficients that grow evenly make an even stretch between them (B-splines reproduce lines)."""
    coefficients = np.zeros((12, 12, 2))
    coefficients[..., 0] = np.arange(12) * 100 * 0.25
    least, greatest = jacobian_range(
        Transform(np.array([[0, -2, 1], [2, 0, 1.0]]), LocalField((0, 0), 100, coefficients))
    )
    assert (least, greatest) == pytest.approx((1.0, 1.0))  # the stretch runs along the turned axis: a shear
    least, greatest = jacobian_range(Transform(np.eye(2, 3), LocalField((0, 0), 100, coefficients)))
    assert greatest == pytest.approx(1.25)
    assert 1.0 <= least < 1.2
    assert jacobian_range(identity()) == (1.0, 1.0)


BAD_MATRICES: list[Any] = [
    np.zeros((2, 3)), np.ones((2, 3)), np.eye(3)[:, :2], [[1, 0, np.nan], [0, 1, 0]], [[1, 0, 0], [0, np.inf, 0]],
    [[1, 0, 0], [0, 1e-5, 0]], "matrix", [[1, 0], [0, 1, 2]], np.diag([1, 1, 2.0]), None,
]  # fmt: skip


@pytest.mark.parametrize("matrix", BAD_MATRICES)
def test_matrices_that_are_none(matrix: Any) -> None:
    with pytest.raises(TransformError) as caught:
        affine(matrix)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": np.zeros((3, 3))}, {"coefficients": np.zeros((3, 3, 3))},
        {"coefficients": np.zeros((0, 3, 2))},
        {"coefficients": np.full((3, 3, 2), np.nan)}, {"spacing_um": 0}, {"spacing_um": np.inf},
        {"spacing_um": np.nan}, {"origin_um": (np.nan, 0.0)},
    ],
)  # fmt: skip
def test_fields_that_are_none(changes: dict[str, Any]) -> None:
    good = LocalField((0.0, 0.0), 10.0, np.zeros((3, 3, 2)))
    with pytest.raises(TransformError):
        dataclasses.replace(good, **changes)


def test_numbers_cannot_be_changed_afterwards() -> None:
    matrix = np.eye(2, 3)
    transform = Transform(matrix)
    matrix[0, 0] = 7
    assert transform.matrix[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        transform.matrix[0, 0] = 2
    np.testing.assert_array_equal(affine(np.eye(3)).matrix, np.eye(2, 3))


def test_points_have_two_coordinates() -> None:
    for way in (to_moving, to_fixed):
        with pytest.raises(ValueError, match="points are"):
            way(identity(), [1.0, 2.0])


def test_frame_of_a_slide() -> None:
    size = Size(30, 20)
    info = SlideInfo(
        name="a.svs", reader="openslide", vendor="aperio", levels=(Level(size, 1.0),), mpp=(0.5, 0.25),
        mpp_source="slide", bounds=Region(0, 0, 30, 20), quickhash="abc",
    )  # fmt: skip
    frame = frame_of(info)
    assert (frame.name, frame.size, frame.mpp, frame.quickhash) == ("a.svs", size, (0.5, 0.25), "abc")
    with pytest.raises(MissingResolutionError, match=r"a\.svs"):
        frame_of(dataclasses.replace(info, mpp=None))
