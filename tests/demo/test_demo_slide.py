"""The demo slide's file, as other readers see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import tiffslide

from wsi2ihc.concurrency import Progress
from wsi2ihc.demo import make_demo_slide
from wsi2ihc.demo.render import paint, synthetic_structures
from wsi2ihc.errors import OptionError, OutputError
from wsi2ihc.geometry import Region, Size

SIZE = (1500, 1100)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "he.tiff"
    make_demo_slide(path, size=SIZE, seed=2)
    return path


def test_openslide_reads_it_as_an_aperio_file(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert opened.properties["aperio.MPP"] == "0.5000"
        assert float(opened.properties["openslide.mpp-x"]) == 0.5
        assert float(opened.properties["openslide.objective-power"]) == 20
        assert opened.level_dimensions == (SIZE, (375, 275), (93, 68))
        assert "wsi2ihc synthetic H&E" in opened.properties["tiff.ImageDescription"]
        assert set(opened.associated_images) == {"thumbnail"}


def test_tiffslide_sees_the_same_levels_and_pixels(slide: Path) -> None:
    with openslide.OpenSlide(slide) as one, tiffslide.TiffSlide(slide) as other:
        assert other.level_dimensions == one.level_dimensions
        assert other.properties["tiffslide.mpp-x"] == 0.5
        here = ((600, 400), 0, (300, 200))
        difference = np.asarray(one.read_region(*here).convert("RGB"), int) - np.asarray(other.read_region(*here), int)
        assert np.abs(difference).max() <= 1


def test_colors_survive_compression(slide: Path) -> None:
    painted = paint(synthetic_structures(Size(*SIZE), 2), Region(300, 300, 512, 400)).astype(int)
    with openslide.OpenSlide(slide) as opened:
        stored = np.asarray(opened.read_region((300, 300), 0, (512, 400)).convert("RGB"), int)
    assert np.abs(stored - painted).mean() < 4
    assert np.abs((stored - painted).mean(axis=(0, 1))).max() < 0.7


def test_lower_levels_show_the_same_field(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        full = np.asarray(opened.read_region((0, 0), 0, SIZE).convert("RGB"))
        for level in (1, 2):
            size = opened.level_dimensions[level]
            stored = np.asarray(opened.read_region((0, 0), level, size).convert("RGB"), int)
            whole = full[: size[1] * 4**level, : size[0] * 4**level]
            assert np.abs(stored - cv2.resize(whole, size, interpolation=cv2.INTER_AREA)).mean() < 5


def test_tiles_are_ycbcr_jpeg(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        tiled = [page for page in tiff.pages if page.is_tiled]
        assert len(tiled) == 3
        for page in tiled:
            assert page.compression == tifffile.COMPRESSION.JPEG
            assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
            assert (page.tilewidth, page.tilelength) == (256, 256)


def test_the_same_seed_gives_the_same_bytes_and_replaces_what_was_there(slide: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tiff"
    again.write_bytes(b"something else")
    make_demo_slide(again, size=SIZE, seed=2)
    assert again.read_bytes() == slide.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.tiff"]


def test_progress_ends_with_everything_done(tmp_path: Path) -> None:
    calls: list[Progress] = []
    make_demo_slide(tmp_path / "he.tiff", size=(512, 700), on_progress=calls.append)
    assert [(call.done, call.total) for call in calls] == [(512 * 512, 512 * 700), (512 * 700, 512 * 700)]


def test_a_tiny_slide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least 256 px"):
        make_demo_slide(tmp_path / "he.tiff", size=(100, 1000))


def test_a_missing_folder_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        make_demo_slide(tmp_path / "missing" / "he.tiff", size=(256, 256))


def test_a_failure_leaves_no_files(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_slide(tmp_path / "he.tiff", size=(256, 256), on_progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of peak memory")
def test_memory_stays_within_its_bound(tmp_path: Path) -> None:
    # not ru_maxrss: a child begins with the peak of the process that it was forked from
    script = (
        "import re, sys; from pathlib import Path; from wsi2ihc.demo import make_demo_slide\n"
        "make_demo_slide(Path(sys.argv[1]), size=(4000, 1500))\n"
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "he.tiff")]
    kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert kilobytes < 500_000
