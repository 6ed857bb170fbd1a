"""Arguments and options of `translate` that callers get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_slides import write_slide

import wsi2ihc
from wsi2ihc.errors import OptionError


def test_arguments_of_wrong_types_are_refused_with_the_expected_ones(tmp_path: Path) -> None:
    path, output = tmp_path / "slide.tif", tmp_path / "out.ome.tiff"
    write_slide(path, np.full((64, 64, 3), 200, np.uint8), tile=64)
    generator, translate = wsi2ihc.load_model("identity"), wsi2ihc.translate
    wrong: Any
    for wrong in (path, str(path)):
        with pytest.raises(TypeError, match=r"takes an open slide, not a path: wsi2ihc\.open_slide\('.*slide\.tif'\)"):
            translate(wrong, generator, output)
    with wsi2ihc.open_slide(path) as slide:
        wrong = "identity"
        with pytest.raises(TypeError, match=r"takes a generator, not 'identity': wsi2ihc\.load_model"):
            translate(slide, wrong, output)
        wrong = {"mpp": 0.5}
        with pytest.raises(TypeError, match="not as a dict"):
            translate(slide, generator, output, wrong)
    assert not output.exists()


def test_a_region_is_not_a_tuple() -> None:
    with pytest.raises(TypeError, match=r"a region is a wsi2ihc\.geometry\.Region\(x, y, width, height\), not \(0, 0"):
        wsi2ihc.TranslateOptions(region=(0, 0, 100, 100))  # type: ignore[arg-type]


def test_a_band_is_at_least_a_small_tile_high() -> None:
    with pytest.raises(OptionError, match="--band-height 5"):
        wsi2ihc.TranslateOptions(band_px=5)
