"""Small slides with tissue and glass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_slides import halves, write_slide

from wsi2ihc.arrays import RGBImage
from wsi2ihc.demo import synthetic_tissue

GLASS = (243, 241, 240)


def on_glass(tissue: RGBImage, width: int, height: int, x: int, y: int) -> RGBImage:
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:] = GLASS
    picture[y : y + tissue.shape[0], x : x + tissue.shape[1]] = tissue
    return picture


@pytest.fixture(scope="session")
def picture() -> RGBImage:
    """1500×1100 px, tissue in the middle 900×700."""
    return on_glass(synthetic_tissue(900, 700, seed=3), 1500, 1100, 301, 203)


@pytest.fixture(scope="session")
def slide_file(picture: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as a slide whose pixels come back exactly."""
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    return write_slide(path, halves(picture, 2), style="aperio", compression="deflate", tile=256, mpp=0.5)
