from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi2ihc.errors import MissingResolutionError, OptionError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import Level, SlideInfo, overview_grid, working_grid

SIZE = Size(10_000, 8_000)


def slide_info(
    size: Size = SIZE,
    downsamples: tuple[float, ...] = (1.0, 4.0, 16.0),
    mpp: tuple[float, float] | None = (0.25, 0.25),
    bounds: Region | None = None,
) -> SlideInfo:
    levels = tuple(Level(Size(int(size.width / d), int(size.height / d)), d) for d in downsamples)
    return SlideInfo(
        name="a.svs", reader="openslide", vendor="aperio", levels=levels, mpp=mpp, mpp_source="slide",
        magnification=40.0, bounds=bounds or Region(0, 0, size.width, size.height), background=(255, 255, 255),
        icc_profile=None, quickhash="0",
    )  # fmt: skip


def test_without_a_resolution_level_0_is_taken_as_it_is() -> None:
    grid = working_grid(slide_info(mpp=(0.5, 0.25)), None)
    assert (grid.level, grid.step, grid.origin, grid.size) == (0, (1.0, 1.0), (0.0, 0.0), Size(10_000, 8_000))
    assert grid.mpp == (0.5, 0.25)
    assert grid.is_level


def test_without_a_known_resolution_the_grid_has_none() -> None:
    grid = working_grid(slide_info(mpp=None), None)
    assert all(math.isnan(value) for value in grid.mpp)
    with pytest.raises(MissingResolutionError, match="--mpp"):
        working_grid(slide_info(mpp=None), 0.5)


@pytest.mark.parametrize(
    ("mpp", "level", "step"),
    [
        (0.25, 0, 1.0), (0.26, 0, 1.0), (0.24, 0, 1.0),  # within 5 %: as it is
        (0.5, 0, 2.0), (0.46, 0, 1.8398), (0.95, 0, 3.7998),
        (1.0, 1, 1.0), (0.96, 1, 1.0), (1.04, 1, 1.0), (1.2, 1, 1.2002),
        (2.0, 1, 2.0), (3.9, 2, 1.0), (8.0, 2, 2.0),
        (0.125, 0, 0.5), (0.0625, 0, 0.25),  # enlarged
    ],
)  # fmt: skip
def test_best_level(mpp: float, level: int, step: float) -> None:
    grid = working_grid(slide_info(), mpp)
    assert grid.level == level
    assert grid.step == pytest.approx((step, step), abs=1e-4)
    assert grid.mpp == pytest.approx((mpp, mpp), rel=0.05 if step == 1 else 1e-3)
    assert grid.is_level == (step == 1)


def test_pixels_become_square_when_resampled() -> None:
    grid = working_grid(slide_info(mpp=(0.25, 0.5), downsamples=(1.0,)), 1.0)
    assert grid.step == (4.0, 2.0)
    assert grid.mpp == (1.0, 1.0)
    assert grid.size == Size(2500, 4000)


def test_a_level_is_not_taken_as_it_is_if_one_axis_differs() -> None:
    grid = working_grid(slide_info(mpp=(0.5, 0.6), downsamples=(1.0,)), 0.5)
    assert grid.step == pytest.approx((1.0, 0.8333), abs=1e-3)


@pytest.mark.parametrize("mpp", [0.059, 0.02])
def test_absurd_enlargement_is_refused(mpp: float) -> None:
    with pytest.raises(OptionError, match="times coarser"):
        working_grid(slide_info(), mpp)


@pytest.mark.parametrize("mpp", [0.0, -1.0, math.nan, 1e9])
def test_absurd_model_resolution_is_refused(mpp: float) -> None:
    with pytest.raises(OptionError, match="a resolution must be"):
        working_grid(slide_info(), mpp)


def test_a_level_of_another_shape_is_not_used() -> None:
    info = slide_info()
    levels = (info.levels[0], Level(Size(2000, 2400), 4.1667), info.levels[2])
    assert working_grid(replace(info, levels=levels), 1.0).level == 0


def test_levels_whose_downsample_is_no_integer() -> None:
    info = slide_info(Size(100_002, 80_002), downsamples=(1.0, 4.00017, 16.0004))
    grid = working_grid(info, 1.0)
    assert (grid.level, grid.step) == (1, (1.0, 1.0))
    assert grid.mpp == pytest.approx((1.0000425, 1.0000425))
    grid = working_grid(info, 2.0)
    assert grid.level == 1
    assert grid.mpp == pytest.approx((2.0, 2.0), rel=5e-4)


def test_bounds_are_covered() -> None:
    info = slide_info(bounds=Region(1001, 503, 4000, 3001))
    grid = working_grid(info, None)
    assert (grid.origin, grid.size, grid.level0_origin) == ((1001, 503), Size(4000, 3001), (1001, 503))
    grid = working_grid(info, 1.0)
    assert (grid.origin, grid.size) == ((250, 125), Size(1001, 751))
    assert grid.level0_origin == (1000, 500)


infos = st.builds(
    lambda width, height, more, mpp_x, ratio, x, y: slide_info(
        Size(width, height),
        (1.0, *more),
        (mpp_x, mpp_x * ratio),
        Region(x, y, width - x, height - y),
    ),
    st.integers(600, 200_000), st.integers(600, 200_000),
    st.sampled_from([(), (4.0,), (2.0, 4.0, 8.0), (4.00017, 16.0021)]),
    st.floats(0.1, 2.0), st.sampled_from([1.0, 1.0, 0.5, 1.03, 2.0]),
    st.integers(0, 500), st.integers(0, 500),
)  # fmt: skip


@given(infos, st.floats(0.3, 8.0))
def test_grid_properties(info: SlideInfo, enlargement: float) -> None:
    grid = working_grid(info, enlargement * max(info.mpp))
    level = info.levels[grid.level]
    for axis in (0, 1):
        # On the lattice that makes sample positions exact.
        assert (grid.step[axis] * 1024).is_integer()
        assert (grid.origin[axis] * 1024).is_integer()
        assert grid.downsample[axis] == pytest.approx(grid.step[axis] * level.downsample)
        assert grid.level0_origin[axis] == pytest.approx(grid.origin[axis] * level.downsample)
        assert grid.mpp[axis] == pytest.approx(info.mpp[axis] * grid.downsample[axis])
    # The bounds are covered, with less than one px to spare beyond the origin's rounding.
    bounds, size = info.bounds, grid.size
    spans = ((bounds.x, bounds.right, size.width), (bounds.y, bounds.bottom, size.height))
    for axis, (start, stop, count) in enumerate(spans):
        assert grid.level0_origin[axis] <= start + 1e-3
        assert start - grid.level0_origin[axis] < level.downsample + 1e-3
        end = grid.level0_origin[axis] + count * grid.downsample[axis]
        assert stop - 1e-2 <= end < stop + grid.downsample[axis] + 1e-2
    assert grid.is_level or grid.mpp[0] == pytest.approx(grid.mpp[1], rel=4e-3)


@given(infos, st.floats(0.3, 8.0), st.data())
def test_regions_come_back_from_level_0(info: SlideInfo, enlargement: float, data: st.DataObject) -> None:
    grid = working_grid(info, enlargement * max(info.mpp))
    x, y = data.draw(st.integers(0, grid.size.width - 1)), data.draw(st.integers(0, grid.size.height - 1))
    region = Region(
        x, y, data.draw(st.integers(1, grid.size.width - x)), data.draw(st.integers(1, grid.size.height - y))
    )
    spans = zip(grid.level0_origin, grid.downsample, ((x, region.right), (y, region.bottom)), strict=True)
    (left, right), (top, bottom) = (
        (math.floor(origin + start * scale), math.ceil(origin + stop * scale)) for origin, scale, (start, stop) in spans
    )
    there = Region(left, top, right - left, bottom - top)
    assert grid.region_from_level0(there).contains(region)
    # Outward rounding costs less than a level-0 px each side.
    slack_px = math.ceil(1 / min(grid.downsample)) + 1
    assert region.grown(slack_px).contains(grid.region_from_level0(there))


def test_region_from_level_0() -> None:
    grid = working_grid(slide_info(bounds=Region(1000, 500, 4000, 3000)), 0.5)
    assert grid.region_from_level0(Region(1000, 500, 200, 100)) == Region(0, 0, 100, 50)
    assert grid.region_from_level0(Region(1001, 501, 1, 1)) == Region(0, 0, 1, 1)
    assert grid.region_from_level0(Region(1001, 501, 2, 2)) == Region(0, 0, 2, 2)
    assert grid.region_from_level0(Region(0, 0, 10_000, 8_000)) == Region(0, 0, 2000, 1500)
    assert grid.region_from_level0(Region(0, 0, 900, 400)).is_empty


def test_overview_grid() -> None:
    grid = overview_grid(slide_info(), 32)
    assert (grid.level, grid.step, grid.size) == (2, (2.0, 2.0), Size(313, 250))
    assert grid.mpp == (8.0, 8.0)
    assert overview_grid(slide_info(), 16).is_level
    # Square in µm along both axes, where the slide's px are not.
    grid = overview_grid(slide_info(mpp=(0.25, 0.5)), 8)
    assert grid.mpp == (2.0, 2.0)
    # Nothing is known of µm, so as many px each way.
    grid = overview_grid(slide_info(mpp=None), 32)
    assert grid.downsample == (32.0, 32.0)


@pytest.mark.parametrize("downsample", [0.5, 0, -1, math.nan, math.inf, 1e6])
def test_overview_of_no_size(downsample: float) -> None:
    with pytest.raises(OptionError):
        overview_grid(slide_info(downsamples=(1.0,)), downsample)
