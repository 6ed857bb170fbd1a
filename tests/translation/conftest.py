"""Small slides with tissue and glass."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_slides import tissue_on_glass, write_exact

from wsi2ihc.arrays import RGBImage


@pytest.fixture(scope="session")
def picture() -> RGBImage:
    """1500×1100 px, tissue in the middle 900×700."""
    return tissue_on_glass(1500, 1100, (301, 203, 900, 700))


@pytest.fixture(scope="session")
def slide_file(picture: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as a slide whose pixels come back exactly."""
    return write_exact(tmp_path_factory.mktemp("slides") / "tissue.svs", picture)
