"""What goes wrong while a pyramid is written: the first failure comes out, at once, and leaves nothing running."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyramid_synthetic import FILL, MPP, cut, smooth_image, write

from wsi2ihc.errors import OutputError, UnreadableSlideError
from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import PyramidOptions, Tile, downsample, write_pyramid
from wsi2ihc.pyramid.encode import TileSpool

pytestmark = pytest.mark.timeout(120)  # a deadlock fails instead of hanging

OPTIONS = PyramidOptions(tile_px=64)
IMAGE = smooth_image(Size(64 * 12, 64 * 10))
ALL = np.ones((10, 12), bool)


def tiles_of_image() -> list[Tile]:
    return list(cut(IMAGE, 64, ALL))


def test_a_missing_tile_is_an_error(tmp_path: Path) -> None:
    tiles = tiles_of_image()
    del tiles[37]
    with pytest.raises(ValueError, match=r"tile \(1, 3\) is occupied and has not come"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=tiles)


def test_a_tile_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    tiles = tiles_of_image()
    tiles.insert(20, tiles[3])
    with pytest.raises(ValueError, match=r"tile \(3, 0\) comes a second time"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=tiles)


def test_a_tile_after_the_last_is_an_error(tmp_path: Path) -> None:
    tiles = tiles_of_image()
    with pytest.raises(ValueError, match="after all occupied tiles"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=[*tiles, tiles[3]])


def test_a_tile_that_was_declared_blank_is_an_error(tmp_path: Path) -> None:
    occupied = ALL.copy()
    occupied[2, 5] = False
    with pytest.raises(ValueError, match=r"tile \(5, 2\) comes, but was declared blank"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, occupied, tiles=tiles_of_image())


@pytest.mark.parametrize(("column", "row"), [(12, 0), (0, 10), (-1, 0), (0, -1)])
def test_a_tile_outside_the_grid_is_an_error(tmp_path: Path, column: int, row: int) -> None:
    unexpected = Tile(column, row, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="outside the grid"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=[unexpected])


@pytest.mark.parametrize("pixels", [np.zeros((64, 63, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_a_tile_of_another_shape_or_type_is_an_error(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="is not uint8 RGB"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=[Tile(0, 0, pixels)])


def test_tiles_too_far_out_of_order_are_an_error(tmp_path: Path) -> None:
    """Bounded disorder is what bounds memory: 16384 px are 256 rows of these tiles."""
    occupied = np.ones((300, 1), bool)
    image = np.zeros((300 * 64, 64, 3), np.uint8)
    tiles = list(cut(image, 64, occupied))
    tiles.append(tiles.pop(0))
    with pytest.raises(ValueError, match=r"tile \(0, 257\) comes too early"):
        write(tmp_path / "a.ome.tiff", image, OPTIONS, occupied, tiles=tiles)


@pytest.mark.parametrize("failure", [UnreadableSlideError("damaged"), OSError(errno.ENOSPC, "no"), RuntimeError()])
@pytest.mark.parametrize("good", [0, 57, 120], ids=["at the start", "half way", "after the last tile"])
def test_a_failing_source_comes_out_as_it_is(tmp_path: Path, failure: Exception, good: int) -> None:
    closed = threading.Event()

    def tiles() -> Iterator[Tile]:
        try:
            yield from tiles_of_image()[:good]
            raise failure
        finally:
            closed.set()

    with pytest.raises(type(failure)) as caught:
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=tiles())
    assert caught.value is failure
    assert closed.is_set()


def test_a_failing_encoder_stops_the_source_and_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RuntimeError("no such color")
    pulled = []
    halve = downsample.halve_into

    def failing(pixels: np.ndarray, target: np.ndarray) -> None:
        if len(pulled) > 30:
            raise failure
        halve(pixels, target)

    def tiles() -> Iterator[Tile]:
        for tile in tiles_of_image():
            pulled.append(tile)
            time.sleep(0.002)
            yield tile

    monkeypatch.setattr(downsample, "halve_into", failing)
    source = tiles()
    with pytest.raises(RuntimeError) as caught:
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=source, max_pending=4)
    assert caught.value is failure
    assert 30 < len(pulled) < 50
    assert source.gi_frame is None  # closed


def test_the_first_failure_is_the_one_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fails while the source is busy; that the source fails too, later, is of no interest."""
    job_failed = threading.Event()

    def failing(pixels: np.ndarray, target: np.ndarray) -> None:
        try:
            raise RuntimeError("first")
        finally:
            job_failed.set()

    def tiles() -> Iterator[Tile]:
        yield tiles_of_image()[0]
        assert job_failed.wait(10)
        time.sleep(0.05)
        raise RuntimeError("second")

    monkeypatch.setattr(downsample, "halve_into", failing)
    with pytest.raises(RuntimeError, match="first"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=tiles())


def test_the_source_is_left_alone_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the writer waits for an earlier tile, whose job is slow and does not fail."""
    failed, released, pulled = threading.Event(), threading.Event(), []

    def halve(pixels: np.ndarray, target: np.ndarray) -> None:
        if pixels[0, 0, 0] == 0:
            released.wait(0.5)
        else:
            failed.set()
            raise RuntimeError("the second job")

    def tiles() -> Iterator[Tile]:
        yield Tile(0, 0, np.full((64, 64, 3), 0, np.uint8))
        yield Tile(1, 0, np.full((64, 64, 3), 1, np.uint8))
        assert failed.wait(10)
        time.sleep(0.02)
        for column in range(2, 12):
            pulled.append(column)
            yield Tile(column, 0, np.full((64, 64, 3), 0, np.uint8))

    monkeypatch.setattr(downsample, "halve_into", halve)
    with pytest.raises(RuntimeError, match="the second job"):
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS, ALL, tiles=tiles())
    released.set()
    assert pulled in ([], [2])  # at most the pull that was under way when the job failed


def test_no_job_runs_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor belongs to the caller, who keeps using it: the sink must have left it when it raises."""
    running = []

    def slow(pixels: np.ndarray, target: np.ndarray) -> None:
        running.append(1)
        time.sleep(0.05)
        running.pop()

    def tiles() -> Iterator[Tile]:
        yield from tiles_of_image()[:8]
        raise KeyboardInterrupt

    monkeypatch.setattr(downsample, "halve_into", slow)
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(KeyboardInterrupt):
            write_with(executor, tmp_path / "a.ome.tiff", tiles())
        assert not running
        time.sleep(0.1)
        assert not running


def write_with(executor: ThreadPoolExecutor, file: Path, tiles: Iterator[Tile]) -> None:
    write_pyramid(file, tiles, ALL, Size(768, 640), MPP, FILL, OPTIONS, ome_xml="", icc_profile=None, executor=executor)


def test_an_executor_shut_down_in_mid_run_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downsample, "halve_into", lambda *_: time.sleep(0.02))
    executor = ThreadPoolExecutor(1)

    def tiles() -> Iterator[Tile]:
        yield from tiles_of_image()[:8]
        executor.shutdown(wait=False, cancel_futures=True)
        yield from tiles_of_image()[8:]

    with pytest.raises((CancelledError, RuntimeError)):
        write_with(executor, tmp_path / "a.ome.tiff", tiles())


def test_a_full_disk_under_the_spool_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, calls = TileSpool.put, []

    def full(spool: TileSpool, level: int, index: int, data: bytes) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(spool, level, index, data)

    monkeypatch.setattr(TileSpool, "put", full)
    with pytest.raises(OutputError, match="disk full") as caught:
        write(tmp_path / "a.ome.tiff", IMAGE, OPTIONS)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_vanished_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write a\.ome\.tiff"):
        write(tmp_path / "gone" / "a.ome.tiff", IMAGE, OPTIONS)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this process may mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a tmpfs here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True, capture_output=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("side", [400, 600, 1500])
def test_a_really_full_disk_is_reported(tiny_disk: Path, side: int) -> None:
    """At some sizes the spool fills the disk, at some the file itself, at some only its last level."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    with pytest.raises(OutputError, match="disk full"):
        write(tiny_disk / "a.ome.tiff", noise, PyramidOptions(tile_px=64, compression="deflate"))


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        def tiles() -> Iterator[Tile]:
            for row in range(rows):
                for column in range(8):
                    yield Tile(column, row, np.full((256, 256, 3), (row * 7 + column) % 256, np.uint8))

        # the shape is all that counts of an image of which one row is repeated
        image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (rows * 256, 8 * 256, 3))
        tracemalloc.start()
        try:
            write(tmp_path / "a.ome.tiff", image, PyramidOptions(tile_px=256), tiles=tiles(), max_pending=4)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    tile_bytes = 256 * 256 * 3
    peak(2)
    low, high = peak(20), peak(160)
    # one more level or two of unfinished parents (1 tile wide each), and 300 bytes of index a tile
    assert high - low < 3 * tile_bytes + 300 * 8 * 140 * 4 / 3
    # raw tiles: 4 under way, 1 just pulled, 1 blank; parents: a row of 4, 2, 1, 1, 1, …; the rest is encoded bytes
    assert high < 22 * tile_bytes
