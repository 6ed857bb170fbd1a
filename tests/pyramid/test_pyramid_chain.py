"""OpenSlide sees every level of a pyramid, however tifffile links the SubIFDs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from pyramid_synthetic import smooth_image, write

from wsi2ihc.errors import OutputError
from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import PyramidOptions, validate
from wsi2ihc.pyramid.ome_tiff import OFFSET, _directory, chain_levels

LEVELS = [Size(640, 384), Size(320, 192), Size(160, 96), Size(80, 48)]


def link_subifds(file: Path, following: Sequence[int] | None) -> None:
    """Link the SubIFDs in a chain, as older versions of tifffile do, or not at all, as newer ones do."""
    with tifffile.TiffFile(file) as tiff:
        offsets = [page.offset for page in tiff.pages.first.pages or ()]
    targets = [*offsets[1:], 0] if following is None else following
    with file.open("r+b") as raw:
        for offset, target in zip(offsets, targets, strict=True):
            _, link = _directory(raw, offset)
            raw.seek(link)
            raw.write(OFFSET.pack(target))


def plain(path: Path) -> Path:
    """A pyramid whose levels are SubIFDs, not chained."""
    image, options = np.zeros((384, 640, 3), np.uint8), {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True, byteorder="<") as tiff:
        tiff.write(image, subifds=3, **options)
        for number in (1, 2, 3):
            tiff.write(image[:: 2**number, :: 2**number], subfiletype=1, **options)
    return path


@pytest.mark.parametrize("layout", ["chain", "tree"])
def test_all_levels_are_linked_whatever_the_layout_of_the_subifds(tmp_path: Path, layout: str) -> None:
    file = plain(tmp_path / "plain.ome.tiff")
    link_subifds(file, None if layout == "chain" else [0, 0, 0])
    chain_levels(file)
    with openslide.OpenSlide(file) as slide:
        assert [Size(*size) for size in slide.level_dimensions] == LEVELS
    with tifffile.TiffFile(file) as tiff:
        assert [level.shape for level in tiff.series[0].levels] == [(s.height, s.width, 3) for s in LEVELS]
    validate(file, LEVELS, openslide_compatible=True)


@pytest.mark.parametrize("openslide_compatible", [True, False])
def test_reading_back_notices_levels_that_openslide_does_not_see(tmp_path: Path, openslide_compatible: bool) -> None:
    file = plain(tmp_path / "plain.ome.tiff")
    chain_levels(file)
    link_subifds(file, [0, 0, 0])
    if openslide_compatible:
        with pytest.raises(OutputError, match="OpenSlide sees 2 levels instead of 4"):
            validate(file, LEVELS, openslide_compatible=True)
    else:
        validate(file, LEVELS)


@pytest.mark.parametrize("side", [100, 200, 300])
def test_one_two_and_three_levels(tmp_path: Path, side: int) -> None:
    file = tmp_path / "out.ome.tiff"
    report = write(file, smooth_image(Size(side, side)), PyramidOptions(128, openslide_compatible=True))
    validate(file, report.levels, openslide_compatible=True)
