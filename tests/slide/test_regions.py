from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_slides import halves, texture, write_slide
from PIL import Image

from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import Slide, WorkingGrid, open_slide, overview_grid, read_overview, read_region, working_grid
from wsi2ihc.slide import grid as grid_module
from wsi2ihc.slide.readers.tiffslide_reader import TiffSlideReader

FILL = (240, 235, 230)


@pytest.fixture(scope="module", params=["openslide", "tiffslide", "bounded"])
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    path = write_slide(
        tmp_path_factory.mktemp("regions") / "a.tif", halves(texture(603, 450), 2), tile=128, missing={(0, 1, 2)}
    )
    with TiffSlideReader(path, None) if request.param == "tiffslide" else open_slide(path) as slide:
        assert slide.info.reader == ("tiffslide" if request.param == "tiffslide" else "openslide")
        if request.param == "bounded":
            slide._info = replace(slide.info, bounds=Region(37, 11, 500, 401))
        yield slide


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_window_is_part_of_the_whole(slide: Slide, data: st.DataObject) -> None:
    grid = working_grid(slide.info, data.draw(st.floats(0.15, 20.0), label="mpp"))
    frame = Region(-7, -5, grid.size.width + 13, grid.size.height + 11)
    whole = read_region(slide, grid, frame, FILL)
    for _ in range(4):
        x = data.draw(st.integers(frame.x, frame.right))
        y = data.draw(st.integers(frame.y, frame.bottom))
        window = Region(x, y, data.draw(st.integers(0, frame.right - x)), data.draw(st.integers(0, frame.bottom - y)))
        rows, columns = window.slices_in(frame)
        np.testing.assert_array_equal(read_region(slide, grid, window, FILL), whole[rows, columns])


def test_cutting_into_blocks_changes_nothing(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    for mpp in (0.9137, 0.31, 4.7):
        grid = working_grid(slide.info, mpp)
        region = Region(-3, -3, grid.size.width + 6, grid.size.height + 6)
        monkeypatch.setattr(grid_module, "_BLOCK_PX", 3072)
        whole = read_region(slide, grid, region, FILL)
        monkeypatch.setattr(grid_module, "_BLOCK_PX", 100)
        np.testing.assert_array_equal(read_region(slide, grid, region, FILL), whole)


def test_far_from_the_origin_too(tmp_path: Path) -> None:
    image = texture(9000, 40)
    with open_slide(write_slide(tmp_path / "wide.tif", image, compression="deflate")) as slide:
        grid = working_grid(slide.info, 0.6137)
        whole = read_region(slide, grid, Region(0, 0, grid.size.width, grid.size.height))
        for x in (1, 2503, 5000, 7301):
            np.testing.assert_array_equal(read_region(slide, grid, Region(x, 3, 21, 17)), whole[3:20, x : x + 21])


def test_a_grid_that_is_a_level_has_its_pixels(slide: Slide) -> None:
    grid = working_grid(slide.info, 0.51)
    assert grid.is_level
    region = Region(-4, 20, 90, 70)
    expected = slide.read_level(0, region.shifted(int(grid.origin[0]), int(grid.origin[1])), FILL)
    np.testing.assert_array_equal(read_region(slide, grid, region, FILL), expected)


def test_whole_factor_equals_one_resize_of_the_whole(slide: Slide) -> None:
    """Away from the border, the result is what resizing the whole image at once would give."""
    size = slide.info.size
    grid = WorkingGrid(0, (3.0, 3.0), (0.0, 0.0), Size(201, 150), (1.5, 1.5), (3.0, 3.0), (0.0, 0.0))
    image = Image.fromarray(slide.read_level(0, Region(0, 0, size.width, size.height), FILL))
    across = image.resize((201, size.height), Image.Resampling.HAMMING)
    expected = np.asarray(across.resize((201, 150), Image.Resampling.HAMMING))
    pixels = read_region(slide, grid, Region(0, 0, 201, 150), FILL)
    np.testing.assert_array_equal(pixels[1:-1, 1:-1], expected[1:-1, 1:-1])


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    with open_slide(write_slide(tmp_path / "s.tif", stripes, compression="deflate")) as slide:
        grid = working_grid(slide.info, 1.85)
        pixels = read_region(slide, grid, Region(5, 5, 90, 90))
        assert pixels.min() > 100
        assert pixels.max() < 155


def test_places_are_kept(tmp_path: Path) -> None:
    """A bright square comes out where it was, on grids of any step."""
    image = np.zeros((600, 800, 3), np.uint8)
    image[300:360, 400:500] = 255
    with open_slide(write_slide(tmp_path / "p.tif", halves(image, 3), compression="deflate"), mpp=0.5) as slide:
        for mpp in (0.3, 0.5, 0.7321, 1.0, 1.9, 3.3):
            grid = working_grid(slide.info, mpp)
            weight = read_region(slide, grid, Region(0, 0, grid.size.width, grid.size.height), (0, 0, 0))[..., 0] / 255
            total = weight.sum()
            center_x = ((np.arange(weight.shape[1]) + 0.5) * weight.sum(0)).sum() / total * grid.downsample[0]
            center_y = ((np.arange(weight.shape[0]) + 0.5) * weight.sum(1)).sum() / total * grid.downsample[1]
            # Rounding to whole gray levels moves the center of a soft edge by a fraction of a px.
            assert (center_x, center_y) == pytest.approx((450, 330), abs=0.05 * max(grid.downsample))
            assert total * grid.downsample[0] * grid.downsample[1] == pytest.approx(6000, rel=0.01)


def test_outside_the_slide_is_fill(slide: Slide) -> None:
    for mpp in (0.3, 0.5, 1.3):
        grid = working_grid(slide.info, mpp)
        for region in (Region(-50, -50, 20, 20), Region(10**6, 0, 20, 20)):
            assert (read_region(slide, grid, region, FILL) == FILL).all()
            assert (read_region(slide, grid, region) == slide.info.background).all()
        assert read_region(slide, grid, Region(3, 3, 0, 8)).shape == (8, 0, 3)


def test_overview_equals_the_region(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "_BLOCK_PX", 150)
    for downsample in (1, 2, 5.3, 20):
        grid = overview_grid(slide.info, downsample)
        whole = read_region(slide, grid, Region(0, 0, grid.size.width, grid.size.height), FILL)
        np.testing.assert_array_equal(read_overview(slide, grid, FILL), whole)
        np.testing.assert_array_equal(read_overview(slide, grid, FILL, workers=3), whole)


def test_overview_of_a_huge_slide_that_is_nearly_empty(tmp_path: Path) -> None:
    """2.6 Gpx, one tile: soon done, in little memory."""
    path = tmp_path / "empty.tif"
    _write_mostly_missing(path, 51_200, (100, 7))
    with open_slide(path) as slide:
        slide._info = replace(slide.info, bounds=Region(0, 0, 51_200, 51_200))
        grid = overview_grid(slide.info, 64)
        tracemalloc.start()
        started = time.process_time()
        overview = read_overview(slide, grid, FILL)
        assert time.process_time() - started < 3
        assert tracemalloc.get_traced_memory()[1] < 300e6
        tracemalloc.stop()
    assert overview.shape == (800, 800, 3)
    there = (overview != FILL).any(axis=-1)
    rows, columns = np.nonzero(there)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (399, 404, 27, 32)


def _write_mostly_missing(path: Path, side_px: int, there: tuple[int, int]) -> None:
    import imagecodecs
    import tifffile

    tile = imagecodecs.jpeg8_encode(
        texture(256, 256), level=80, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
    )
    count = side_px // 256
    tiles = (tile if divmod(index, count) == there else b"" for index in range(count * count))
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            tiles, shape=(side_px, side_px, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="jpeg",
            subsampling=(2, 2), metadata=None,
        )  # fmt: skip
