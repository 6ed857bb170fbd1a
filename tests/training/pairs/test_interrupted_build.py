"""Builds in several processes: their number, stops, and kills at any moment."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from make_slide_pairs import SMALL, tree, without_workers

from wsi2ihc.concurrency import Progress
from wsi2ihc.training.pairs.build import build_pairs
from wsi2ihc.training.pairs.options import PairsOptions

OPTIONS = PairsOptions(patch_size=128, mpp=1.0, validation=0.3, test=0.3, workers=2)


@pytest.fixture(scope="module")
def complete(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that was made without an interruption and without workers."""
    folder = tmp_path_factory.mktemp("complete") / "data"
    with without_workers():
        build_pairs(manifest, folder, OPTIONS)
    return folder


def command(manifest: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "wsi2ihc.cli.main", "pairs", str(manifest), str(folder), *SMALL, "--workers", "2"]


def test_the_number_of_processes_does_not_show(complete: Path, manifest: Path, tmp_path: Path) -> None:
    options = PairsOptions(patch_size=128, mpp=1.0, validation=0.3, test=0.3, workers=1)
    notes: list[Progress] = []
    report = build_pairs(manifest, tmp_path / "data", options, notes.append)
    assert not report.unchanged
    assert tree(tmp_path / "data") == tree(complete)
    cutting = [note for note in notes if note.total == 3]
    assert [note.done for note in cutting] == sorted(note.done for note in cutting)
    assert cutting[-1].note.startswith("12 patches kept")


def start(manifest: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(manifest, folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # where the tests run in a shell's background, SIGINT is ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> None:
    """Wait for a moment, or for the end of the process if that comes first."""
    until = time.monotonic() + 60
    while not is_time() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.001)


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those children that have slides; multiprocessing has one of its own."""
    found = []
    for child in children(process):
        with contextlib.suppress(psutil.Error):
            found += [child] if "wsi2ihc.concurrency:_serve_job" in child.cmdline() else []
    return found


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "as it begins": lambda folder: (folder / "store.json").exists(),
    "at the first patch": lambda folder: any(folder.glob("patches/*/*/*.png")),
    "at the first record": lambda folder: any(folder.glob("patches/*/*/record.json")),
    "at the last record": lambda folder: len(list(folder.glob("patches/*/*/record.json"))) == 3,
    "at the index": lambda folder: (folder / "pairs.csv").exists(),
}


def test_killed_again_and_again_it_ends_as_if_it_were_not(manifest: Path, complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    left: list[psutil.Process] = []
    for moment in MOMENTS.values():
        with start(manifest, folder) as process:
            wait_for(process, functools.partial(moment, folder))
            left += children(process)
            process.kill()
    with start(manifest, folder) as process:  # at once: children of the last one may still be about to end
        assert process.wait(60) == 0
    assert not psutil.wait_procs(left, timeout=30)[1]
    assert tree(folder) == tree(complete)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_stops(
    manifest: Path, complete: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "data"
    with start(manifest, folder) as process:
        wait_for(process, lambda: any(folder.glob("patches/*/*/*.png")))
        left = children(process)
        if number == signal.SIGINT:  # from the keyboard it reaches all
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert not psutil.wait_procs(left, timeout=30)[1]
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    assert not (folder / "dataset.json").exists()
    if number == signal.SIGINT:
        with without_workers():
            build_pairs(manifest, folder, OPTIONS)
        assert tree(folder) == tree(complete)


def test_a_child_that_is_killed_is_one_failed_pair(manifest: Path, complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with start(manifest, folder) as process:
        wait_for(process, lambda: bool(workers(process)))
        workers(process)[0].kill()
        assert process.wait(60) == 3
        assert process.stderr is not None
        said = process.stderr.read().decode()
    lines = [line for line in said.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert "its process was killed (SIGKILL), most likely because memory ran out" in lines[0]
    assert len((folder / "pairs.csv").read_text().splitlines()) == 1 + 8
    with without_workers():
        build_pairs(manifest, folder, OPTIONS)
    assert tree(folder) == tree(complete)
