"""Fixtures of slide pairs; each test module has its own copy, and may add files beside them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import pytest
from make_slide_pairs import row, write_manifest, write_pairs

from wsi2ihc import concurrency
from wsi2ihc.concurrency import Finished, Work
from wsi2ihc.text import describe_error
from wsi2ihc.training.pairs import build
from wsi2ihc.training.pairs.pair_checks import SlideJob


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
    """Process slide pairs in the process of the test, since a worker takes seconds to import what it needs."""

    def run(work: Work, jobs: Sequence[SlideJob], names: Sequence[str], at_once: int) -> Iterator[tuple[int, object]]:
        assert len(jobs) == len(names)
        assert at_once >= 1
        for number, job in enumerate(jobs):
            messages: list[object] = []
            try:
                work(pickle.loads(pickle.dumps(job)), 2, messages.append)
            except Exception as error:
                messages.append(Finished(describe_error(error), concurrency._is_fatal(error)))
            else:
                messages.append(Finished())
            yield from ((number, message) for message in messages)

    threads = cv2.getNumThreads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "run_in_processes", run)
        yield
    cv2.setNumThreads(threads)
