"""Validation distinguishes damaged or unexpected files from valid ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile
from pyramid_synthetic import smooth_image, write

from wsi2ihc.errors import OutputError
from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import PyramidOptions, validate

LEVELS = (Size(300, 200), Size(150, 100), Size(75, 50), Size(38, 25))


@pytest.fixture
def pyramid(tmp_path: Path) -> Path:
    report = write(tmp_path / "a.ome.tiff", smooth_image(Size(300, 200)), PyramidOptions(tile_px=64))
    assert report.levels == LEVELS
    return tmp_path / "a.ome.tiff"


def overwrite_entry(file: Path, tag: str, level: int, value: list[int]) -> None:
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        page = tiff.pages.first if level == 0 else tiff.pages.first.pages[level - 1]
        page.tags[tag].overwrite(value)


def test_a_good_file_passes(pyramid: Path) -> None:
    validate(pyramid, LEVELS)


@pytest.mark.parametrize("levels", [LEVELS[:3], (*LEVELS, Size(19, 13)), (*LEVELS[:3], Size(38, 26))])
def test_other_levels_do_not(pyramid: Path, levels: tuple[Size, ...]) -> None:
    with pytest.raises(OutputError, match="level"):
        validate(pyramid, levels)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_does_not(pyramid: Path, kept: float) -> None:
    data = pyramid.read_bytes()
    pyramid.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(OutputError, match=r"a\.ome\.tiff"):
        validate(pyramid, LEVELS)


def test_a_tile_without_bytes_does_not(pyramid: Path) -> None:
    overwrite_entry(pyramid, "TileByteCounts", 1, [500, 500, 0, 500, 500, 500])
    with pytest.raises(OutputError, match="level 1 has tiles without bytes"):
        validate(pyramid, LEVELS)


def test_a_last_tile_of_nonsense_does_not(pyramid: Path) -> None:
    with tifffile.TiffFile(pyramid) as tiff:
        start = tiff.pages.first.pages[1].dataoffsets[-1]
    with pyramid.open("r+b") as file:
        file.seek(start)
        file.write(b"nonsense")
    with pytest.raises(OutputError, match="cannot be read back"):
        validate(pyramid, LEVELS)


def test_a_missing_file_does_not(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be read back"):
        validate(tmp_path / "none.ome.tiff", LEVELS)
