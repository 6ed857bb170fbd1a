"""Slides are upright, and padding of levels is not part of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
from make_slides import texture

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import open_slide, overview_grid, read_overview

IMAGE = texture(700, 520)
UPRIGHT = {
    1: IMAGE,
    2: IMAGE[:, ::-1],
    3: IMAGE[::-1, ::-1],
    4: IMAGE[::-1],
    5: IMAGE.transpose(1, 0, 2),
    6: np.rot90(IMAGE, -1),
    7: IMAGE[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(IMAGE),
}
"""What TIFF 6.0 says that the stored pixels look like."""


def write_turned(path: Path, orientation: int, compression: str = "deflate", levels: Sequence[int] = (1,)) -> Path:
    args = {"compressionargs": {"level": 95}} if compression == "jpeg" else {}
    with tifffile.TiffWriter(path) as tiff:
        for factor in levels:
            tiff.write(
                np.ascontiguousarray(IMAGE[::factor, ::factor]),
                photometric="rgb", tile=(128, 128), compression=compression, metadata=None, subfiletype=int(factor > 1),
                resolution=(20_000 / factor, 10_000 / factor), resolutionunit="CENTIMETER",
                extratags=[(274, "H", 1, orientation, True)], **args,
            )  # fmt: skip
    return path


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("compression", ["deflate", "jpeg"])
    def test_slides_are_upright(self, tmp_path: Path, orientation: int, compression: str) -> None:
        path = write_turned(tmp_path / "a.tif", orientation, compression, levels=(1, 2))
        fsspec.filesystem("memory").pipe("/turned.tif", path.read_bytes())
        height, width = UPRIGHT[orientation].shape[:2]
        for address in (path, "memory://turned.tif"):
            with open_slide(address) as slide:
                info = slide.info
                assert info.size == Size(width, height)
                assert info.bounds == Region(0, 0, width, height)
                assert info.mpp == ((1.0, 0.5) if orientation >= 5 else (0.5, 1.0))
                assert any("orientation" in problem for problem in info.problems) == (orientation != 1)
                tolerance = 0 if compression == "deflate" else 12  # noise, which JPEG keeps badly
                pixels = slide.read_level(0, Region(0, 0, width, height))
                assert np.abs(pixels.astype(int) - UPRIGHT[orientation]).mean() <= tolerance
                np.testing.assert_array_equal(slide.read_level(0, Region(33, 77, 150, 90)), pixels[77:167, 33:183])
                outside = slide.read_level(0, Region(-10, -20, 50, 60), (1, 2, 3))
                np.testing.assert_array_equal(outside[20:, 10:], pixels[:40, :40])
                assert (outside[:20] == (1, 2, 3)).all()
                assert (outside[:, :10] == (1, 2, 3)).all()
                small = info.levels[1].size
                half = slide.read_level(1, Region(0, 0, small.width, small.height))
                stored = UPRIGHT[orientation]
                assert small in (Size(width // 2, height // 2), Size(-(-width // 2), -(-height // 2)))
                assert np.abs(half.astype(int) - stored[: small.height * 2 : 2, : small.width * 2 : 2]).mean() < 60

    def test_levels_that_differ_are_refused(self, tmp_path: Path) -> None:
        path = write_turned(tmp_path / "a.tif", 3, levels=(1, 2))
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages[1].tags[274].overwrite(1)
        with pytest.raises(UnreadableSlideError, match=r"differ in orientation \(TIFF tag 274: 1, 3\)"):
            open_slide(path)

    def test_a_value_without_meaning_is_upright(self, tmp_path: Path) -> None:
        with open_slide(write_turned(tmp_path / "a.tif", 9)) as slide:
            np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 700, 520)), IMAGE)

    def test_missing_tiles_of_a_turned_slide(self, tmp_path: Path) -> None:
        path = write_turned(tmp_path / "a.tif", 6)
        with tifffile.TiffFile(path, mode="r+") as tiff:
            counts = list(tiff.pages[0].databytecounts)
            counts[0] = 0
            tiff.pages[0].tags[325].overwrite(counts)
        with open_slide(path) as slide:
            # The stored top-left tile is the upright top-right one.
            assert slide.is_blank(0, Region(520 - 128, 0, 128, 128))
            assert not slide.is_blank(0, Region(0, 0, 128, 128))
            assert (slide.read_level(0, Region(520 - 128, 0, 128, 128)) == 255).all()


def blobs(width: int, height: int) -> np.ndarray:
    """A slide with two pieces of tissue, one far from the corner, and plain background."""
    image = np.full((height, width, 3), 243, np.uint8)
    tissue = texture(width, height, 2)
    ys, xs = np.mgrid[0:height, 0:width]
    for x, y, radius in ((0.2, 0.2, 0.1), (0.85, 0.85, 0.1)):
        inside = np.hypot(xs - width * x, ys - height * y) < radius * min(width, height)
        image[inside] = tissue[inside]
    return image


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def write_levels(
    path: Path,
    image: np.ndarray,
    factors: Sequence[int],
    tile: int = 128,
    *,
    pads: str = "xy",
    fill: int = 255,
    **how: Any,
) -> Path:
    """A pyramid whose lower levels are padded to whole tiles along some axes."""
    options = {"compression": "deflate", "photometric": "rgb", "metadata": None, "tile": (tile, tile), **how}
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, *factors):
            level = image if factor == 1 else reduced(image, factor)
            if factor > 1:
                right = -level.shape[1] % tile if "x" in pads else 0
                bottom = -level.shape[0] % tile if "y" in pads else 0
                level = np.pad(level, ((0, bottom), (0, right), (0, 0)), constant_values=fill)
            tiff.write(level, subfiletype=int(factor > 1), **options)
    return path


class TestPaddedLevels:
    @pytest.mark.parametrize(
        ("size", "factors", "pads"),
        [
            ((1280, 1280), (2, 4, 8, 16), "xy"),  # square: sizes alone say 3.33, 5, 10
            ((1024, 1280), (2, 4, 8, 16), "xy"),
            ((1400, 1000), (2, 4, 8), "xy"),
            ((1400, 1000), (2, 4, 8), "x"),
            ((1400, 1000), (2, 4, 8), "y"),
            ((1280, 1280), (4, 16), "xy"),
            ((1800, 1800), (3, 9), "xy"),
            ((2000, 1900), (10,), "xy"),
            ((1024, 1024), (3,), "xy"),
            ((1280, 1280), (2, 5, 10), ""),  # not padded: 256 and 128 px are whole tiles
            ((1280, 1152), (2, 3, 9), ""),
            ((1280, 1280), (2, 4, 8), ""),
            ((1024, 1024), (2, 4, 8), ""),
            ((1310, 1010), (2, 4, 8, 16), ""),
        ],
    )
    def test_true_factors(self, tmp_path: Path, size: tuple[int, int], factors: tuple[int, ...], pads: str) -> None:
        image, fill = blobs(*size), 0 if size[0] % 3 == 0 else 255
        path = write_levels(tmp_path / "a.tif", image, factors, pads=pads, fill=fill)
        fsspec.filesystem("memory").pipe("/padded.tif", path.read_bytes())
        for address in (path, "memory://padded.tif"):
            with open_slide(address) as slide:
                assert [level.downsample for level in slide.info.levels] == [1, *factors]
                for number, factor in enumerate(factors, 1):
                    expected = reduced(image, factor)
                    shown = slide.info.levels[number].size
                    assert shown.width - expected.shape[1] in (0, 1)
                    assert shown.height - expected.shape[0] in (0, 1)
                    pixels = slide.read_level(number, Region(0, 0, expected.shape[1], expected.shape[0]))
                    assert np.abs(pixels.astype(int) - expected).mean() < 1
                    beyond = slide.read_level(number, Region(shown.width, 0, 40, 40), (9, 9, 9))
                    assert (beyond == 9).all()
                overview = read_overview(slide, overview_grid(slide.info, 10))
                expected = reduced(image, 10)
                height, width = np.minimum(overview.shape, expected.shape)[:2]
                difference = np.abs(overview[:height, :width].astype(int) - expected[:height, :width])
                assert difference.mean() < 4

    def test_a_blank_slide_takes_the_regular_factors(self, tmp_path: Path) -> None:
        path = write_levels(tmp_path / "a.tif", np.full((1280, 1280, 3), 243, np.uint8), (2, 4, 8))
        with open_slide(path) as slide:
            assert [level.downsample for level in slide.info.levels] == [1, 2, 4, 8]

    def test_a_level_whose_factor_stays_open_is_left_out(self, tmp_path: Path) -> None:
        path = write_levels(tmp_path / "a.tif", np.full((1280, 1280, 3), 243, np.uint8), (7,))
        with open_slide(path) as slide:
            assert len(slide.info.levels) in (1, 2)
            if len(slide.info.levels) == 1:
                assert any("cannot be determined" in problem for problem in slide.info.problems)
