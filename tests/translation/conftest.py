"""Small slides with tissue and background."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_slides import tissue_on_background, write_exact

from wsi2ihc.geometry import RGBImage


@pytest.fixture(scope="session")
def image() -> RGBImage:
    """1500×1100 px, tissue in the middle 900×700."""
    return tissue_on_background(1500, 1100, (301, 203, 900, 700))


@pytest.fixture(scope="session")
def slide_file(image: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a lossless slide."""
    return write_exact(tmp_path_factory.mktemp("slides") / "tissue.svs", image)
