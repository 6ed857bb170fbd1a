"""The mask type, and which cells of a grid overlap tissue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi2ihc.arrays import WHITE, BoolImage
from wsi2ihc.tissue import TissueMask, cell_boxes, occupied_cells


def mask_of(pixels: object, origin: tuple[float, float] = (0, 0), size: tuple[float, float] = (1, 1)) -> TissueMask:
    return TissueMask(np.array(pixels, np.bool_), origin, size, WHITE)


def overlaps(mask: TissueMask, left: float, top: float, right: float, bottom: float) -> bool:
    """Px by px, in exact arithmetic for the eighths that the tests use."""
    for row, column in zip(*np.nonzero(mask.pixels), strict=True):
        x, y = (mask.origin[axis] + index * mask.pixel_size[axis] for axis, index in ((0, column), (1, row)))
        if max(left, x) < min(right, x + mask.pixel_size[0]) and max(top, y) < min(bottom, y + mask.pixel_size[1]):
            return True
    return False


eighths = st.integers(-80, 80).map(lambda value: value / 8)
sizes = st.integers(1, 60).map(lambda value: value / 8)


@settings(deadline=None)
@given(
    arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    st.tuples(eighths, eighths),
    st.tuples(sizes, sizes),
    st.tuples(eighths, eighths),
    st.tuples(sizes, sizes),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_cell_is_occupied_if_and_only_if_a_tissue_px_overlaps_it(
    pixels: BoolImage,
    origin: tuple[float, float],
    pixel_size: tuple[float, float],
    grid_origin: tuple[float, float],
    cell: tuple[float, float],
    shape: tuple[int, int],
) -> None:
    mask = mask_of(pixels, origin, pixel_size)
    occupied = occupied_cells(mask, grid_origin, cell, shape)
    boxes = cell_boxes(grid_origin, cell, shape)
    assert occupied.shape == shape
    for row in range(shape[0]):
        for column in range(shape[1]):
            assert occupied[row, column] == overlaps(mask, *boxes[row, column])


def test_touching_edges_do_not_count_even_with_rounding_errors() -> None:
    mask = mask_of([[0, 1, 0]], size=(0.1, 0.1))
    assert occupied_cells(mask, (0, 0), (0.1, 0.1), (1, 3)).tolist() == [[False, True, False]]
    assert not mask.any_in(0, 0, 0.1, 0.1)
    assert mask.any_in(0, 0, 0.11, 0.1)


def test_cells_far_outside_are_empty() -> None:
    mask = mask_of([[1]])
    assert not occupied_cells(mask, (5, 0), (2, 2), (3, 3)).any()
    assert not occupied_cells(mask, (-100, -100), (2, 2), (3, 3)).any()
    assert not mask.any_in(0.2, 0.2, 0.2, 0.9)


def test_boxes_tile_the_plane() -> None:
    boxes = cell_boxes((10, 20), (2.5, 4), (2, 3))
    assert boxes.shape == (2, 3, 4)
    assert boxes[1, 2].tolist() == [15, 24, 17.5, 28]
    np.testing.assert_array_equal(boxes[:, :-1, 2], boxes[:, 1:, 0])
    np.testing.assert_array_equal(boxes[:-1, :, 3], boxes[1:, :, 1])


def test_share_and_emptiness() -> None:
    assert mask_of([[1, 0], [0, 0]]).share == 0.25
    assert not mask_of([[1, 0], [0, 0]]).is_empty
    assert mask_of([[0]]).is_empty


def test_a_mask_cannot_be_changed() -> None:
    pixels = np.ones((2, 2), np.bool_)
    mask = TissueMask(pixels, (0, 0), (1, 1), WHITE)
    with pytest.raises(ValueError, match="read-only"):
        mask.pixels[0, 0] = False
    pixels[0, 0] = False  # the caller's own array is left as it was
    assert pixels.flags.writeable


@pytest.mark.parametrize(
    ("pixels", "pixel_size"),
    [
        (np.ones((2, 2), np.uint8), (1.0, 1.0)),
        (np.ones((2, 2, 1), np.bool_), (1.0, 1.0)),
        (np.ones((0, 2), np.bool_), (1.0, 1.0)),
        (np.ones((2, 2), np.bool_), (1.0, 0.0)),
        (np.ones((2, 2), np.bool_), (float("nan"), 1.0)),
    ],
)
def test_what_is_no_mask_is_refused(pixels: np.ndarray, pixel_size: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="mask"):
        TissueMask(pixels, (0, 0), pixel_size, WHITE)


@pytest.mark.parametrize("cell", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_cells_without_area_are_refused(cell: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        occupied_cells(mask_of([[1]]), (0, 0), cell, (1, 1))
