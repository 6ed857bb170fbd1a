"""What callers of `translate` easily give in place of its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_slides import write_slide

import wsi2ihc
from wsi2ihc.translation import pipeline


@pytest.mark.parametrize("translate", [wsi2ihc.translate, pipeline.translate], ids=["public", "one pass"])
def test_other_arguments_are_refused_with_what_is_expected(translate: Any, tmp_path: Path) -> None:
    path, output = tmp_path / "slide.tif", tmp_path / "out.ome.tiff"
    write_slide(path, np.full((64, 64, 3), 200, np.uint8), tile=64)
    generator = wsi2ihc.load_generator("identity")
    for given in (path, str(path)):
        with pytest.raises(TypeError, match=r"takes an open slide, not a path: wsi2ihc\.open_slide\('.*slide\.tif'\)"):
            translate(given, generator, output)
    with wsi2ihc.open_slide(path) as slide:
        with pytest.raises(TypeError, match=r"takes a generator, not 'identity': wsi2ihc\.load_generator"):
            translate(slide, "identity", output)
        with pytest.raises(TypeError, match="not as a dict"):
            translate(slide, generator, output, {"mpp": 0.5})
    assert not output.exists()


def test_a_region_is_not_a_tuple() -> None:
    with pytest.raises(TypeError, match=r"a region is a wsi2ihc\.geometry\.Region\(x, y, width, height\), not \(0, 0"):
        wsi2ihc.TranslateOptions(region=(0, 0, 100, 100))  # type: ignore[arg-type]
