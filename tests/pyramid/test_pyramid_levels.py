"""Level sizes and which tiles of the lower levels are occupied."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2ihc.errors import OptionError
from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.pyramid.levels import level_sizes, plan_levels, tile_grid


@pytest.mark.parametrize(
    ("size", "count"),
    [(Size(1, 1), 1), (Size(511, 1), 1), (Size(512, 512), 1), (Size(513, 1), 2), (Size(1025, 700), 3)],
)
def test_the_smallest_level_is_the_first_that_fits_into_one_tile(size: Size, count: int) -> None:
    assert len(level_sizes(size, 512)) == count


@settings(deadline=None)
@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_each_level_is_half_of_the_one_before_rounded_up(width: int, height: int) -> None:
    sizes = level_sizes(Size(width, height), 512)
    for number, size in enumerate(sizes):
        assert size == Size(-(-width // 2**number), -(-height // 2**number))
    assert max(sizes[-1].width, sizes[-1].height) <= 512


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_tile_is_occupied_where_any_of_its_four_children_is(columns: int, rows: int, random) -> None:
    occupied = np.array([[random.random() < 0.2 for _ in range(columns)] for _ in range(rows)])
    levels = plan_levels(Size(columns * 16 - 3, rows * 16 - 5), 16, occupied)
    for upper, lower in pairwise(levels):
        assert lower.occupied.shape == tile_grid(lower.size, 16)
        for row in range(lower.rows):
            for column in range(lower.columns):
                children = upper.occupied[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert lower.occupied[row, column] == children.any()


def test_occupied_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        plan_levels(Size(1000, 1000), 512, np.ones((2, 3), bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_px": 500}, "--tile-size 500"),
        ({"tile_px": 0}, "--tile-size 0"),
        ({"tile_px": 8192}, "--tile-size 8192"),
        ({"compression": "zstd"}, "--compression"),
        ({"quality": 0}, "--quality 0"),
        ({"quality": 101}, "--quality 101"),
        ({"subsampling": "411"}, "--subsampling"),
    ],
)
def test_unusable_options_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PyramidOptions(**options)
