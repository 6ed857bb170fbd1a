"""Real slides and real bad files, where the optional development data is there."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_slides import direct_levels

from wsi2ihc.errors import MissingResolutionError, OptionError, UnreadableSlideError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import open_slide, overview_grid, read_overview, read_region, to_srgb_transform, working_grid
from wsi2ihc.slide.readers.openslide_reader import OpenSlideReader
from wsi2ihc.slide.readers.tiffslide_reader import TiffSlideReader


def whole(size: Size) -> Region:
    return Region(0, 0, size.width, size.height)


def test_cmu_1_small_region(dev_data: Path) -> None:
    path = dev_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        info = slide.info
        assert (info.reader, info.vendor, info.size) == ("openslide", "aperio", Size(2220, 2967))
        assert (info.mpp, info.mpp_source, info.magnification) == ((0.499, 0.499), "slide", 20)
        assert info.quickhash == "6335ea0e6cc54c2cba64bb265d3c713a50cd84484924e3a9c109558c13521d5c"
        assert info.problems == ()
        assert direct_levels(slide) == {0}
        pixels = slide.read_level(0, whole(info.size))
    for other in (OpenSlideReader(path, None, None), TiffSlideReader(path, None), TiffSlideReader(str(path), None)):
        with other:
            np.testing.assert_array_equal(other.read_level(0, whole(info.size)), pixels)


def test_jpeg_2000_without_resolution(dev_data: Path) -> None:
    path = dev_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    with open_slide(path) as slide:
        info = slide.info
        assert (info.mpp, info.mpp_source, info.magnification) == (None, "", None)
        assert [level.downsample for level in info.levels] == [1.0, 2.0]  # OpenSlide says 2.0005
        assert direct_levels(slide) == {0, 1}
        assert info.icc_profile is not None
        with pytest.raises(MissingResolutionError, match="--mpp"):
            working_grid(info, 0.5)
        region = Region(1100, 900, 600, 500)
        pixels = slide.read_level(1, region)
    with TiffSlideReader(str(path), None) as other:
        np.testing.assert_array_equal(other.read_level(1, region), pixels)
    # Left to itself, OpenSlide interpolates here: much of the detail is smeared.
    with OpenSlideReader(path, None, None) as other:
        smeared = other.read_level(1, region)
        assert 1 < np.abs(smeared.astype(int) - pixels).mean() < 10
        np.testing.assert_array_equal(other.read_level(1, Region(1300, 1000, 80, 70)), smeared[100:170, 200:280])
    converted = to_srgb_transform(info.icc_profile)(pixels)
    assert np.abs(converted.astype(int) - pixels).max() <= 2  # the profile is sRGB


def test_nonsense_resolution(dev_data: Path) -> None:
    with open_slide(dev_data / "slides" / "boxes.tiff") as slide:
        assert slide.info.mpp is None
        assert "72 dpi" in slide.info.problems[0]
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4, 8]
        assert slide.read_level(3, Region(0, 0, 37, 31)).shape == (31, 37, 3)


@pytest.mark.parametrize("name", ["dicom_jpeg/wsm_jpeg.dcm", "dicom_jp2k/wsm_jp2k.dcm"])
def test_dicom(dev_data: Path, name: str) -> None:
    with open_slide(dev_data / "slides" / name) as slide:
        assert (slide.info.vendor, slide.info.mpp) == ("dicom", (28.969, 28.968))
        grid = working_grid(slide.info, None)
        assert read_region(slide, grid, whole(grid.size)).std() > 5
        assert working_grid(slide.info, 28.5).is_level
        with pytest.raises(OptionError, match="times coarser"):
            working_grid(slide.info, 0.5)


def test_smaller_than_a_tile(dev_data: Path) -> None:
    with open_slide(dev_data / "slides" / "small_16x16.svs") as slide:
        assert slide.info.size == Size(16, 16)
        pixels = slide.read_level(0, Region(-20, -20, 60, 60), (1, 2, 3))
        assert (pixels[:20] == (1, 2, 3)).all()
        assert (pixels[20:36, 20:36] != (1, 2, 3)).any()
        grid = overview_grid(slide.info, 16)
        assert read_overview(slide, grid).shape == (1, 1, 3)


def test_stripped_tiff_that_openslide_refuses(dev_data: Path) -> None:
    with open_slide(dev_data / "slides" / "kidney-48-5.tif") as slide:
        assert (slide.info.reader, slide.info.size) == ("tiffslide", Size(1493, 901))
        assert slide.info.quickhash.startswith("sha256:")
        pixels = slide.read_level(0, whole(slide.info.size))
    np.testing.assert_array_equal(pixels, tifffile.imread(dev_data / "slides" / "kidney-48-5.tif"))


@pytest.mark.parametrize("seen_by", [open_slide, lambda path: TiffSlideReader(str(path), None)])
def test_one_tile_of_32705(dev_data: Path, seen_by) -> None:
    with seen_by(dev_data / "bad" / "sparse_54007x39429_one_tile.svs") as slide:
        assert slide.info.size == Size(54_007, 39_429)
        assert slide.info.mpp is None
        assert any("32,704 of 32,705" in problem for problem in slide.info.problems)
        assert (slide.read_level(0, Region(20_000, 20_000, 500, 500), (9, 8, 7)) == (9, 8, 7)).all()
        corner = slide.read_level(0, Region(200, 200, 100, 100), (9, 8, 7))
        assert (corner[56:] == (9, 8, 7)).all()
        assert (corner[:56, :56] != (9, 8, 7)).any()
        slide._info = replace(slide.info, bounds=whole(slide.info.size))
        tracemalloc.start()
        started = time.process_time()
        overview = read_overview(slide, overview_grid(slide.info, 40), (9, 8, 7))
        assert time.process_time() - started < 3
        assert tracemalloc.get_traced_memory()[1] < 200e6
        tracemalloc.stop()
        assert overview.shape == (986, 1351, 3)
        assert (overview != (9, 8, 7)).any(axis=-1).sum() <= 8 * 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken.svs", "not a slide in a format"),
        ("unopenable.tiff", "compressed with TIFF compression 52479, which is not read"),
        ("unreadable.svs", "its pixels cannot"),
        ("uint16_1ch_aperio.tif", "not 8-bit RGB"),
        ("pathml-small_dicom.dcm", "image flavor"),
    ],
)
def test_bad_files(dev_data: Path, name: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableSlideError, match=reason) as caught:
        open_slide(dev_data / "bad" / name)
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert str(dev_data) not in text
    assert "\n" not in text
    assert capfd.readouterr().err == ""
