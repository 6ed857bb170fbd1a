"""Fixtures of slide pairs; each test module has its own copy, and may add files beside them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_slide_pairs import row, without_workers, write_manifest, write_pairs


@pytest.fixture(scope="session")
def written_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write slide pairs once."""
    return write_pairs(tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def slides(written_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of slide pairs."""
    return shutil.copytree(written_slides, tmp_path_factory.mktemp("slides") / "slides")


@pytest.fixture(scope="module")
def manifest(slides: Path) -> Path:
    """Return the manifest of three slide pairs."""
    return write_manifest(slides / "manifest.csv", [row(number) for number in range(3)])


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Process the slide pairs of a whole module without workers."""
    with without_workers():
        yield
