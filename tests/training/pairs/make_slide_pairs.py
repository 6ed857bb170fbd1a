"""Small pairs of slides as files, and manifests of them."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import pytest
from make_slides import halves, write_slide

from wsi2ihc import concurrency
from wsi2ihc.concurrency import Finished, Work
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.ihc_pair import restain

LEVELS = ("0", "2+", "3+")
SIZE = (600, 560)
"""Width and height in px of 0.5 µm: 2 × 2 patches of 128 px at 1 µm per px."""

SMALL = ("--patch-size", "128", "--mpp", "1", "--validation", "0.3", "--test", "0.3")
"""Options for them."""


def write_pairs(folder: Path, count: int = 3) -> Path:
    """Slides ``he0.tif``, ``ihc0.tif`` and so on, restained, so that the identity is right."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        he = synthetic_tissue(*SIZE, seed=number)
        ihc = restain(he, number, float(number))
        write_slide(folder / f"he{number}.tif", halves(he, 2))
        write_slide(folder / f"ihc{number}.tif", halves(ihc, 2))
    return folder


def row(number: int, **changes: str) -> dict[str, str]:
    """A row of the manifest for the pair of this number, in a manifest beside the slides."""
    row = {
        "patient_id": f"P{number}",
        "slide_id": f"S{number}",
        "he_path": f"he{number}.tif",
        "ihc_path": f"ihc{number}.tif",
        "her2": LEVELS[number % len(LEVELS)],
        "transform": "identity",
        "landmarks": "",
        "split": "",
        "ihc_mpp": "",
    }
    return row | changes


def write_manifest(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Rows as a CSV file."""
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """All files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def without_workers() -> Iterator[None]:
    """Process slide pairs in the process of the test, since a worker takes seconds to import what it needs."""
    from wsi2ihc.text import describe_error
    from wsi2ihc.training.pairs import build

    def run(work: Work, jobs: Sequence[object], names: Sequence[str], at_once: int) -> Iterator[tuple[int, object]]:
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
