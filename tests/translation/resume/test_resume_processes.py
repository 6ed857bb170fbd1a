"""Several real processes on one output, killed at any moment."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from band_processes import context, run, start, started_bands
from make_slides import write_slide

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.geometry import RGBImage

BANDS = 8
COMMON = (
    *("--model", "counterstain", "--compression", "deflate", "--tile-size", "64"),
    *("--band-height", "128", "--tissue", "none", "--workers", "1"),
)
SLOWLY = (*COMMON, "--core-size", "16")
"""Tiny windows, for a slow translation."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks and processes")


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 400×1000 px."""
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    return write_slide(path, synthetic_tissue(400, 1000, seed=5), compression="deflate", tile=256, mpp=0.5)


@pytest.fixture(scope="module")
def whole(slide_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of an uninterrupted run in one pass."""
    folder = tmp_path_factory.mktemp("whole")
    out = folder / "out.ome.tiff"
    assert run([slide_file, out, *COMMON], folder / "log") == 0
    return out


def done_bands(out: Path) -> dict[str, int]:
    """Return the modification time of each done marker."""
    folder = out.with_name(f".{out.name}.bands") / "done"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} if folder.is_dir() else {}


def wait_for_bands(out: Path, is_alive: Callable[[], bool], count: int = 1) -> None:
    """Wait until bands are done by a process that is alive."""
    until = time.monotonic() + 120
    while len(done_bands(out)) < count:
        assert is_alive()
        assert time.monotonic() < until
        time.sleep(0.001)


def remove(out: Path) -> None:
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    out.with_name(f"{out.name}.json").unlink()


def pixels(out: Path) -> RGBImage:
    return np.moveaxis(np.asarray(zarr.open_array(out / "0", mode="r")), 0, 2) if out.is_dir() else tifffile.imread(out)


def assert_same(one: Path, other: Path) -> None:
    np.testing.assert_array_equal(pixels(one), pixels(other))


def files_in(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "log" not in path.name)


@pytest.mark.parametrize("suffix", ["tiff", "zarr"])
def test_killed_at_ten_random_moments(slide_file: Path, whole: Path, tmp_path: Path, suffix: str) -> None:
    out, moments = tmp_path / f"out.ome.{suffix}", random.Random(6)
    arguments = [slide_file, out, *SLOWLY, "--resume", "-v"]
    started = time.monotonic()
    assert run(arguments, tmp_path / "log") == 0
    usual_s = time.monotonic() - started
    assert started_bands(tmp_path / "log") == list(range(BANDS))
    files = files_in(out)
    remove(out)
    kills, number, ever_started = 0, 0, set[int]()
    while kills < 10:
        number += 1
        log, before = tmp_path / f"log{number}", done_bands(out)
        process = start(arguments, log)
        process.join(moments.uniform(0.02, 0.8) * usual_s)
        if process.exitcode is not None:  # it finished too early: start again
            assert process.exitcode == 0, log.read_text()
            assert_same(out, whole)
            assert files_in(out) == files
            remove(out)
            ever_started.clear()
            continue
        process.kill()
        process.join()
        kills += 1
        bands = started_bands(log) if log.exists() else []
        assert len(ever_started & set(bands)) <= 1  # the band in progress when a run was killed
        assert not {f"{band:04d}.json" for band in bands} & before.keys()
        ever_started |= set(bands)
        if not out.exists():
            assert before.items() <= done_bands(out).items()
    assert run(arguments, tmp_path / "last") == 0
    assert_same(out, whole)
    assert files_in(out) == files
    assert visible(tmp_path) == ["last", f"out.ome.{suffix}", f"out.ome.{suffix}.json"]


def test_four_processes_on_one_slide(slide_file: Path, whole: Path, tmp_path: Path) -> None:
    out, logs = tmp_path / "out.ome.tiff", [tmp_path / f"log{number}" for number in range(4)]
    gates = tmp_path / "gates"
    gates.mkdir()
    first = start([slide_file, out, *SLOWLY, "--resume"], tmp_path / "first.log")  # creates the checkpoint
    wait_for_bands(out, first.is_alive)
    first.kill()
    first.join()
    before = done_bands(out)
    processes = [start([slide_file, out, *SLOWLY, "--resume", "-v", "--json"], log, gates / "go") for log in logs]
    until = time.monotonic() + 120
    while len(list(gates.iterdir())) < len(processes) and time.monotonic() < until:
        time.sleep(0.01)
    (gates / "go").touch()
    for process in processes:
        process.join(120)
    failed = [log.read_text() for log, process in zip(logs, processes, strict=True) if process.exitcode]
    assert not failed, "\n".join(failed)
    assert_same(out, whole)
    bands = [started_bands(log) for log in logs]
    assert {f"{band:04d}.json" for one in bands for band in one}.isdisjoint(before)
    assert sorted(band for one in bands for band in one) == list(range(len(before), BANDS))
    assert sum(bool(one) for one in bands) > 1
    assert all('"fingerprint"' in log.read_text() for log in logs)  # each prints the report
    assert visible(tmp_path) == ["gates", "out.ome.tiff", "out.ome.tiff.json"]


def test_a_band_of_a_killed_process_is_translated_by_another(slide_file: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    arguments = [slide_file, out, *SLOWLY, "--resume", "-v"]
    one, other = (start(arguments, tmp_path / f"log{number}") for number in range(2))
    wait_for_bands(out, lambda: one.is_alive() and other.is_alive())
    one.kill()
    one.join()
    other.join(120)
    assert other.exitcode == 0, (tmp_path / "log1").read_text()
    assert_same(out, whole)
    both = started_bands(tmp_path / "log0") + started_bands(tmp_path / "log1")
    assert set(both) == set(range(BANDS))
    assert len(both) <= BANDS + 1


@pytest.mark.parametrize(
    ("module", "name", "suffix"),
    [
        ("wsi2ihc.atomic_files", "_publish", "tiff"),
        ("wsi2ihc.translation.resume", "write_extras", "tiff"),
        ("wsi2ihc.translation.resume", "remove_checkpoint", "tiff"),
        ("wsi2ihc.translation.checkpoint_folder", "remove_tree", "tiff"),
        ("wsi2ihc.translation.resume", "publish_folder", "zarr"),
        ("wsi2ihc.translation.resume", "write_extras", "zarr"),
        ("wsi2ihc.translation.resume", "sync_tree", "tiff"),
    ],
)
def test_killed_between_two_steps(
    slide_file: Path, whole: Path, tmp_path: Path, module: str, name: str, suffix: str
) -> None:
    out, log = tmp_path / f"out.ome.{suffix}", tmp_path / "log"
    arguments = [str(one) for one in (slide_file, out, *COMMON, "--resume")]
    process = context().Process(target=_killed_at, args=(module, name, arguments))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    assert run(arguments, log) == 0, log.read_text()
    assert visible(tmp_path) == [f"out.ome.{suffix}", f"out.ome.{suffix}.json"]
    assert_same(out, whole)


def _killed_at(module: str, name: str, arguments: list[str]) -> None:
    """Run the command up to the call of a function."""
    import importlib
    import os

    from wsi2ihc.cli.main import main

    setattr(importlib.import_module(module), name, lambda *_, **__: os._exit(9))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main(["translate", *arguments])


def test_an_interrupted_run_reports_the_bands_that_are_kept(slide_file: Path, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.ome.tiff", tmp_path / "log"
    process = start([slide_file, out, *SLOWLY, "--resume"], log)
    wait_for_bands(out, process.is_alive)
    process.terminate()
    process.join(120)
    assert process.exitcode == 143
    assert f"{len(done_bands(out))} finished bands are kept" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert visible(tmp_path) == [".out.ome.tiff.bands"]
    assert run([slide_file, out, *COMMON, "--core-size", "32", "--resume"], tmp_path / "log of another") == 1
    assert "are kept" not in (tmp_path / "log of another").read_text()


def test_a_killed_command_resumes_when_repeated(slide_file: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    command = [sys.executable, "-m", "wsi2ihc.cli.main", "translate", slide_file, out, *SLOWLY, "--resume", "-v"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_bands(out, lambda: process.poll() is None, 2)
    process.kill()
    _, first = process.communicate()
    done = done_bands(out)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stderr.count("started") == BANDS - len(done)
    assert first.count("started") <= len(done) + 1
    assert_same(out, whole)


def test_one_pass_keeps_the_checkpoint_folder_until_it_is_complete(
    slide_file: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.ome.tiff"
    arguments = [slide_file, out, *SLOWLY]
    process = start([*arguments, "--resume"], tmp_path / "log")
    wait_for_bands(out, process.is_alive)
    process.kill()
    process.join()
    assert run([*arguments[:2], "--tile-size", "500"], tmp_path / "log1") == 1
    assert done_bands(out)
    assert run(arguments, tmp_path / "log2") == 0
    assert "--resume" in (tmp_path / "log2").read_text()
    assert_same(out, whole)
    assert visible(tmp_path) == ["out.ome.tiff", "out.ome.tiff.json"]
