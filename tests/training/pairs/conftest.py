"""Fixtures of slide pairs, made once for each test module, which may add files beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_slide_pairs import row, write_manifest, write_pairs


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of slide pairs."""
    return write_pairs(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def manifest(slides: Path) -> Path:
    """Return the manifest of three slide pairs."""
    return write_manifest(slides / "manifest.csv", [row(number) for number in range(3)])
