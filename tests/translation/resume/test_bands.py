"""Division of a slide into bands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from wsi2ihc.geometry import Region, Size
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.checkpoint_folder import (
    BAND_PX,
    BLENDED_BAND_PX,
    Band,
    band_height,
    core_for_bands,
    divide_into_bands,
    occupied_tiles,
)
from wsi2ihc.translation.job import TranslationJob
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.windows import TissueGrid, WindowLayout, best_core_size, plan_windows

EXACT = WindowLayout(halo_px=24, stride_px=4, multiple_px=4, max_window_px=400_000)
BLENDED = WindowLayout(overlap_px=64, stride_px=4, multiple_px=4, max_window_px=400_000)


def make_job(layout: WindowLayout, extent: Region, share: float = 1.0) -> TranslationJob:
    """Make the parts of a job that are divided."""
    pixels = np.random.default_rng(1).random((40, 50)) < share
    tissue = TissueGrid(pixels, (-3.5, 2.0), (extent.right / 50, extent.bottom / 40))
    plan = plan_windows(extent, tissue, layout)
    options = TranslateOptions(pyramid=PyramidOptions(tile_px=64))
    return cast(
        "TranslationJob",
        SimpleNamespace(layout=layout, plan=plan, options=options, prepared=SimpleNamespace(covered=tissue)),
    )


def kept(bands: tuple[Band, ...], extent: Region) -> Any:
    """Count how often each px of the extent is in a core."""
    count = np.zeros((extent.height, extent.width), dtype=np.uint8)
    for band in bands:
        for window in band.cropped_plan.windows:
            assert band.region.contains(window.core)
            count[window.core.slices_in(extent)] += 1
    return count


@pytest.mark.parametrize("layout", [EXACT, BLENDED])
@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("band_px", [128, 256, 1280])
def test_every_px_of_tissue_is_in_one_core_of_one_band(layout: WindowLayout, share: float, band_px: int) -> None:
    extent = Region(37, 50, 1211, 1001)
    job = make_job(layout, extent, share)
    bands = divide_into_bands(job, core_for_bands(job, band_px), band_px)
    assert [band.number for band in bands] == list(range(-(-extent.height // band_px)))
    assert [row for band in bands for row in band.rows] == list(range(16))
    count = kept(bands, extent)
    assert count.max() <= 1
    expected = np.zeros_like(count)
    for window in job.plan.windows:
        expected[window.core.slices_in(extent)] = 1
    if layout.overlap_px or share == 1.0:
        np.testing.assert_array_equal(count, expected)
    for y in range(extent.y, extent.bottom, 61):
        for x in range(extent.x, extent.right, 61):
            if job.prepared.covered.area_in(Region(x, y, 1, 1)) > 0:
                assert count[y - extent.y, x - extent.x] == 1
    occupied = occupied_tiles(bands, 64)
    assert occupied.shape == (16, 19)
    for row, column in np.ndindex(occupied.shape):
        assert occupied[row, column] == count[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64].any()


def test_blended_bands_have_all_windows_that_overlap_them() -> None:
    extent = Region(0, 0, 1000, 1000)
    job = make_job(BLENDED, extent)
    for band in divide_into_bands(job, job.plan.core_size, 192):
        inside = {window.index for window in band.plan.windows}
        assert inside == {w.index for w in job.plan.windows if not w.output_region.intersection(band.region).is_empty}
        assert {window.index for window in band.cropped_plan.windows} <= inside
        assert {window.region for window in band.plan.windows} <= {window.region for window in job.plan.windows}


def test_exact_bands_share_the_core_size_with_the_least_work() -> None:
    extent = Region(0, 0, 3000, 5000)
    job = make_job(EXACT, extent)
    core_size = core_for_bands(job, 1024)
    bands = divide_into_bands(job, core_size, 1024)
    assert {band.plan.core_size for band in bands} == {core_size}
    work = sum(band.plan.window_px for band in bands)
    others = [divide_into_bands(job, Size(side, side), 1024) for side in (256, 512)]
    assert all(work <= sum(band.plan.window_px for band in other) for other in others)
    assert best_core_size([extent], job.prepared.covered, EXACT) == job.plan.core_size


@pytest.mark.parametrize(("layout", "band_px", "most"), [(EXACT, BAND_PX, 1.08), (BLENDED, BLENDED_BAND_PX, 1.2)])
def test_bands_repeat_little_work(layout: WindowLayout, band_px: int, most: float) -> None:
    extent = Region(0, 0, 20_000, 30_000)
    job = make_job(layout, extent)
    bands = divide_into_bands(job, core_for_bands(job, band_px), band_px)
    assert sum(band.plan.window_px for band in bands) < most * job.plan.window_px


def test_band_heights_are_whole_tiles() -> None:
    assert band_height(TranslateOptions(), 0, 512) == BAND_PX
    assert band_height(TranslateOptions(), 64, 512) == BLENDED_BAND_PX
    assert band_height(TranslateOptions(band_px=1000), 0, 384) == 1152
