"""What is in the file, read back with tifffile: pixels of every level against plain NumPy, tags, shared blank tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pyramid_synthetic import (
    FILL,
    MPP,
    PATCHES,
    blank_out,
    cut,
    expected_levels,
    grid_of,
    patch_image,
    smooth_image,
    write,
)

from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import PyramidOptions, Tile, ome_xml, read_level, read_overview, validate, write_pyramid
from wsi2ihc.pyramid.ome_xml import ImageDescription

SIZES = [
    Size(1, 1), Size(63, 64), Size(64, 64), Size(65, 64), Size(127, 129), Size(128, 256), Size(300, 77), Size(1000, 1),
]  # fmt: skip
LOSSLESS = PyramidOptions(tile_px=64, compression="deflate")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lossless_levels_equal_the_cascade_of_pixels(tmp_path: Path, size: Size) -> None:
    image = smooth_image(size)
    report = write(tmp_path / "a.ome.tiff", image, LOSSLESS)
    expected = expected_levels(image, 64)
    assert [(level.height, level.width) for level in report.levels] == [level.shape[:2] for level in expected]
    for number, level in enumerate(expected):
        np.testing.assert_array_equal(read_level(tmp_path / "a.ome.tiff", number), level)
    validate(tmp_path / "a.ome.tiff", report.levels)


@pytest.mark.parametrize("size", [Size(511, 513), Size(512, 512), Size(513, 511), Size(1300, 700)], ids=str)
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_jpeg_levels_are_close_to_the_cascade_of_pixels(tmp_path: Path, size: Size, subsampling: str) -> None:
    image = smooth_image(size)
    report = write(tmp_path / "a.ome.tiff", image, PyramidOptions(quality=90, subsampling=subsampling))
    for number, level in enumerate(expected_levels(image, 512)):
        difference = np.abs(read_level(tmp_path / "a.ome.tiff", number).astype(int) - level)
        assert difference.mean() < 1.8  # measured: 1.1 to 1.6, most of it the noise that JPEG takes out
    assert report.file_bytes == (tmp_path / "a.ome.tiff").stat().st_size


def test_lower_levels_are_not_made_from_encoded_ones(tmp_path: Path) -> None:
    """At quality 10 a level made of the decoded level above would be far from the level made of the pixels."""
    image = smooth_image(Size(512, 512))
    write(tmp_path / "a.ome.tiff", image, PyramidOptions(tile_px=256, quality=10))
    expected = expected_levels(image, 256)[1]
    # the same pixels, encoded once at the same quality by another path: level 0 of a file of their own
    write(tmp_path / "b.ome.tiff", expected, PyramidOptions(tile_px=256, quality=10))
    np.testing.assert_array_equal(read_level(tmp_path / "a.ome.tiff", 1), read_level(tmp_path / "b.ome.tiff", 0))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_blank_tiles_are_the_fill_color_at_every_level(tmp_path: Path, share: float, threads: int) -> None:
    image = smooth_image(Size(1111, 777))
    occupied = np.random.default_rng(5).random(grid_of(image, 64)) < share
    report = write(tmp_path / "a.ome.tiff", image, LOSSLESS, occupied, threads=threads)
    for number, level in enumerate(expected_levels(blank_out(image, occupied, 64), 64)):
        np.testing.assert_array_equal(read_level(tmp_path / "a.ome.tiff", number), level)
    validate(tmp_path / "a.ome.tiff", report.levels)
    assert report.tiles == sum(-(-s.width // 64) * -(-s.height // 64) for s in report.levels)
    assert report.blank_tiles >= (~occupied).sum()


def test_each_run_of_blank_tiles_shares_one_encoded_tile(tmp_path: Path) -> None:
    occupied = np.zeros((4, 8), bool)
    occupied[1, 3] = occupied[2, 0] = True  # three runs: 11 tiles, 4 tiles, 15 tiles
    write(tmp_path / "a.ome.tiff", smooth_image(Size(512, 256)), PyramidOptions(tile_px=64), occupied)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as tiff:
        page = tiff.pages.first
        blank = ~occupied.ravel()
        offsets, lengths = np.array(page.dataoffsets), np.array(page.databytecounts)
        contents = set()
        for offset, length in {*zip(offsets[blank], lengths[blank], strict=True)}:
            tiff.filehandle.seek(int(offset))
            contents.add(tiff.filehandle.read(int(length)))
    assert lengths.min() > 0
    assert len(set(offsets[blank])) == 3
    assert len(contents) == 1
    assert len(set(offsets)) == 5


def test_an_empty_slide_of_200000_px_costs_little_time_and_space(tmp_path: Path) -> None:
    """204,166 tiles; measured: 0.16 s, 2.5 MB of file, most of it the index."""
    size = Size(200_000, 200_000)
    with ThreadPoolExecutor(2) as executor:
        report = write_pyramid(
            tmp_path / "a.ome.tiff", [], np.zeros((391, 391), bool), size, MPP, FILL, PyramidOptions(),
            ome_xml=ome_xml(ImageDescription("empty", size, MPP)), icc_profile=None, executor=executor,
        )  # fmt: skip
    assert report.blank_tiles == report.tiles == 204_166
    assert report.file_bytes < 4_000_000
    validate(tmp_path / "a.ome.tiff", report.levels)
    overview = read_overview(tmp_path / "a.ome.tiff", 300)
    np.testing.assert_allclose(overview, np.broadcast_to(FILL, (300, 300, 3)), atol=2)


def test_few_tiles_on_a_huge_slide(tmp_path: Path) -> None:
    size = Size(100_000, 99_000)
    occupied = np.zeros((194, 196), bool)
    places = [(0, 0), (0, 195), (100, 50), (101, 50), (193, 195)]
    for row, column in places:
        occupied[row, column] = True
    tiles = [Tile(column, row, np.full((512, 512, 3), (90, 60, 40), np.uint8)) for row, column in places]
    with ThreadPoolExecutor(2) as executor:
        report = write_pyramid(
            tmp_path / "a.ome.tiff", tiles, occupied, size, MPP, FILL, PyramidOptions(compression="deflate"),
            ome_xml=ome_xml(ImageDescription("sparse", size, MPP)), icc_profile=None, executor=executor,
        )  # fmt: skip
    assert len(report.levels) == 9
    smallest = read_level(tmp_path / "a.ome.tiff", 8)
    brown = (smallest != np.array(FILL)).any(-1)
    # each tile is 2×2 px at 1/256; the last ones at the edges are cut by the image
    assert brown[0:2, 0:2].all()
    assert brown[200:204, 100:102].all()
    assert brown.sum() == 2 * 2 + 2 * 1 + 4 * 2 + 1 * 1


def test_tags_of_every_level(tmp_path: Path) -> None:
    profile = bytes(range(200)) * 3
    report = write(tmp_path / "a.ome.tiff", smooth_image(Size(1500, 900)), icc_profile=profile)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        assert len(tiff.pages) == 1
        pages = [tiff.pages.first, *tiff.pages.first.pages]
        assert len(pages) == len(report.levels) == 3
        for number, page in enumerate(pages):
            assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
            assert page.compression == tifffile.COMPRESSION.JPEG
            assert page.tags["YCbCrSubSampling"].value == (2, 1)
            assert page.tags["NewSubfileType"].value == 1 if number else "NewSubfileType" not in page.tags
            assert page.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
            numerator, denominator = page.tags["XResolution"].value
            assert numerator / denominator == pytest.approx(40_000 / 2**number, rel=1e-6)
            numerator, denominator = page.tags["YResolution"].value
            assert numerator / denominator == pytest.approx(10_000 / 0.2501 / 2**number, rel=1e-6)
            assert page.tags["InterColorProfile"].value == profile
            assert page.tags["Software"].value.startswith("wsi2ihc ")
        assert pages[0].description.startswith("<?xml")


def test_a_single_level_has_no_subifds_tag(tmp_path: Path) -> None:
    report = write(tmp_path / "a.ome.tiff", smooth_image(Size(512, 512)))
    assert len(report.levels) == 1
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as tiff:
        assert "SubIFDs" not in tiff.pages.first.tags


def test_whole_color_is_not_tagged_as_1_1(tmp_path: Path) -> None:
    """Bio-Formats converts 4:4:4 tagged (1, 1) twice, and libtiff warns where the tag is missing."""
    write(tmp_path / "a.ome.tiff", patch_image(), PyramidOptions(subsampling="444"))
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as tiff:
        assert tiff.pages.first.tags["YCbCrSubSampling"].value == (2, 2)
    image = read_level(tmp_path / "a.ome.tiff", 0)
    for column, color in enumerate(PATCHES.values()):
        np.testing.assert_allclose(image[64, column * 128 + 64], color, atol=2)


@pytest.mark.parametrize("seed", range(5))
def test_tiles_may_come_in_any_order_within_a_few_rows(tmp_path: Path, seed: int) -> None:
    image = smooth_image(Size(64 * 7 - 9, 64 * 9 - 1))
    occupied = np.random.default_rng(seed).random((9, 7)) < 0.8
    tiles = list(cut(image, 64, occupied))
    write(tmp_path / "in-order.ome.tiff", image, PyramidOptions(tile_px=64), occupied, tiles=list(tiles))
    np.random.default_rng(seed).shuffle(tiles)
    seen: list[int] = []
    write(
        tmp_path / "shuffled.ome.tiff", image, PyramidOptions(tile_px=64), occupied,
        tiles=tiles, threads=4, on_progress=seen.append, max_pending=3,
    )  # fmt: skip
    for number in range(4):
        np.testing.assert_array_equal(
            read_level(tmp_path / "shuffled.ome.tiff", number), read_level(tmp_path / "in-order.ome.tiff", number)
        )
    assert seen == list(range(1, occupied.sum() + 1))


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.ome.tiff", smooth_image(Size(900, 900)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.ome.tiff"]


def test_a_description_that_is_not_ascii_is_refused(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="ASCII"):
        write_pyramid(
            tmp_path / "a.ome.tiff", [], np.zeros((1, 1), bool), Size(5, 5), MPP, FILL, PyramidOptions(),
            ome_xml="µm", icc_profile=None, executor=executor,
        )  # fmt: skip


@pytest.mark.parametrize("max_px", [1, 50, 199, 200, 201, 5000])
def test_overview_has_the_wanted_size_and_the_image_in_it(tmp_path: Path, max_px: int) -> None:
    image = smooth_image(Size(800, 501))
    write(tmp_path / "a.ome.tiff", image, LOSSLESS)
    overview = read_overview(tmp_path / "a.ome.tiff", max_px)
    assert max(overview.shape[:2]) == min(max_px, 800)
    assert abs(overview.shape[0] / overview.shape[1] - 501 / 800) <= 1 / max_px
    if max_px == 200:
        np.testing.assert_array_equal(overview, expected_levels(image, 64)[2])
