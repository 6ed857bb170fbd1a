"""Windows cover the tissue once, lie on the lattice, and do little redundant work."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2ihc.errors import OptionError
from wsi2ihc.geometry import BoolImage, Region, Size
from wsi2ihc.translation.windows import Plan, TissueGrid, WindowLayout, plan_windows


def tissue(pixels: BoolImage, step: float = 16.0) -> TissueGrid:
    return TissueGrid(pixels, (0.0, 0.0), (step, step))


def kept(plan: Plan) -> np.ndarray:
    """How often each px of the extent is kept."""
    count = np.zeros((plan.extent.height, plan.extent.width), dtype=int)
    for window in plan.windows:
        count[window.core.slices_in(plan.extent)] += 1
    return count


layouts = st.builds(
    WindowLayout,
    halo_px=st.sampled_from([0, 4, 84, 88]),
    overlap_px=st.sampled_from([0, 0, 8, 64]),
    stride_px=st.sampled_from([1, 2, 4]),
    multiple_px=st.sampled_from([4, 16, 32]),
)
extents = st.builds(Region, st.integers(0, 100), st.integers(0, 100), st.integers(1, 700), st.integers(1, 700))


@settings(deadline=None)
@given(
    extents, layouts, st.integers(0, 2**32 - 1), st.sampled_from([None, Size(64, 128), Size(100, 36), Size(256, 256)])
)
def test_every_window_obeys_the_layout_and_all_tissue_is_kept_once(
    extent: Region, layout: WindowLayout, seed: int, core_size: Size | None
) -> None:
    pixels = np.random.default_rng(seed).random((50, 50)) < 0.1
    plan = plan_windows(extent, tissue(pixels), layout, core_size)
    count = kept(plan)
    assert count.max(initial=0) <= 1
    full = np.kron(pixels, np.ones((16, 16), dtype=bool))[extent.y : extent.bottom, extent.x : extent.right]
    assert (count[full] == 1).all()
    for index, window in enumerate(plan.windows):
        assert window.index == index
        assert extent.contains(window.core)
        assert window.output_region.contains(window.core)
        assert window.region.x % layout.stride_px == 0
        assert window.region.y % layout.stride_px == 0
        assert window.region.width % layout.multiple_px == 0
        assert window.region.height % layout.multiple_px == 0
        assert window.region.area_px <= layout.max_window_px
    assert [(w.row, w.column) for w in plan.windows] == sorted((w.row, w.column) for w in plan.windows)


def test_background_is_not_translated() -> None:
    pixels = np.zeros((100, 100), dtype=bool)
    pixels[10:20, 30:35] = True
    plan = plan_windows(Region(0, 0, 1600, 1600), tissue(pixels), WindowLayout())
    assert plan.kept_px == 128 * 192  # 80 × 160 px of tissue, rounded outwards by steps of 64
    assert plan.tissue_px == 50 * 256
    assert not plan_windows(Region(0, 0, 100, 100), tissue(pixels), WindowLayout()).windows


def test_a_region_is_planned_on_the_lattice_of_the_whole() -> None:
    everything = tissue(np.ones((200, 200), dtype=bool))
    plan = plan_windows(Region(1001, 703, 555, 333), everything, WindowLayout(halo_px=84, stride_px=4, multiple_px=16))
    assert all(window.region.x % 4 == 0 and window.region.y % 4 == 0 for window in plan.windows)
    assert (kept(plan) == 1).all()


@pytest.mark.parametrize(("width", "height"), [(2220, 2967), (4443, 3567), (40_000, 30_000)])
def test_redundant_work_of_a_full_slide_is_small(width: int, height: int) -> None:
    pixels = np.ones((-(-height // 16), -(-width // 16)), dtype=bool)
    layout = WindowLayout(halo_px=84, stride_px=4, multiple_px=16, max_window_px=2_600_000)
    plan = plan_windows(Region(0, 0, width, height), tissue(pixels), layout)
    assert plan.kept_px == width * height
    assert plan.window_px / plan.kept_px <= 1.5


def test_overlapping_windows_share_what_was_asked_for() -> None:
    pixels = np.ones((64, 64), dtype=bool)
    layout = WindowLayout(overlap_px=64, stride_px=4, multiple_px=4)
    plan = plan_windows(Region(0, 0, 1024, 1024), tissue(pixels), layout, Size(256, 256))
    first, second = plan.windows[:2]
    assert first.region.right - second.region.x == 64
    assert (kept(plan) == 1).all()


def test_occupied_tiles_are_those_that_cores_touch() -> None:
    pixels = np.zeros((64, 64), dtype=bool)
    pixels[40, 50] = True
    plan = plan_windows(Region(0, 0, 1024, 1024), tissue(pixels), WindowLayout())
    occupied = plan.occupied_tiles(256)
    assert occupied.shape == (4, 4)
    assert np.argwhere(occupied).tolist() == [[2, 3]]


def test_a_memory_bound_that_no_window_meets_is_an_error() -> None:
    with pytest.raises(OptionError, match="max-memory"):
        plan_windows(
            Region(0, 0, 1000, 1000),
            tissue(np.ones((64, 64), dtype=bool)),
            WindowLayout(halo_px=84, stride_px=4, max_window_px=10_000),
        )


def test_core_sizes_that_are_not_multiples_of_the_stride_are_refused() -> None:
    with pytest.raises(OptionError, match="stride"):
        plan_windows(
            Region(0, 0, 100, 100), tissue(np.ones((9, 9), dtype=bool)), WindowLayout(stride_px=4), Size(30, 32)
        )


def test_a_small_extent_with_a_large_overlap_is_one_window() -> None:
    layout = WindowLayout(overlap_px=1024, stride_px=256, multiple_px=256)
    plan = plan_windows(Region(0, 0, 16, 16), tissue(np.ones((1, 1), dtype=bool)), layout)
    assert len(plan.windows) == 1
    assert plan.windows[0].output_region.contains(plan.windows[0].core)


def test_cells_too_small_for_their_overlap_are_an_error() -> None:
    with pytest.raises(OptionError, match="overlap"):
        plan_windows(
            Region(0, 0, 900, 900),
            tissue(np.ones((64, 64), dtype=bool)),
            WindowLayout(overlap_px=512, stride_px=4),
            Size(128, 128),
        )
