"""What is never gone on with, what is damaged, and what is in nobody's way: one clear line, and nothing lost."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from make_slides import halves, write_slide
from PIL import Image

import wsi2ihc
from wsi2ihc.arrays import RGBImage
from wsi2ihc.bands import assemble, check_store, complete, missing_bands, open_store, translate_band
from wsi2ihc.bands.opening import prepare
from wsi2ihc.bands.places import store_path
from wsi2ihc.bands.record import read_record
from wsi2ihc.errors import OptionError, OutputBusyError, OutputError, OutputExistsError
from wsi2ihc.generator.model import Generator
from wsi2ihc.geometry import Region, Size
from wsi2ihc.locks import locked
from wsi2ihc.plan import Layout
from wsi2ihc.pyramid import PyramidOptions, shards
from wsi2ihc.pyramid.levels import Level
from wsi2ihc.slide import Slide
from wsi2ihc.translation import pipeline
from wsi2ihc.translation.identity import identity
from wsi2ihc.translation.options import TranslateOptions

IDENTITY = wsi2ihc.load_generator("identity")


@pytest.fixture
def options(make_options: Callable[..., TranslateOptions]) -> TranslateOptions:
    return make_options(tissue="none", resume=True)


@pytest.fixture
def out(slide: Slide, options: TranslateOptions, tmp_path: Path) -> Path:
    """An output of which two bands are done."""
    path = tmp_path / "out.ome.tiff"
    with open_store(slide, IDENTITY, path, options) as store:
        assert len(store.bands) == 4
        assert [translate_band(store, number) for number in (0, 2)] == [True, True]
    return path


def inodes(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in (store_path(out) / "done").iterdir()}


def finish(slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage) -> None:
    wsi2ihc.translate(slide, IDENTITY, out, options)
    np.testing.assert_array_equal(tifffile.imread(out), picture)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.ome.tiff", "out.ome.tiff.json"]


def test_what_is_done_is_not_done_again(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, caplog: pytest.LogCaptureFixture
) -> None:
    before = inodes(out)
    assert sorted(before) == ["0000.json", "0002.json"]
    caplog.set_level("INFO", "wsi2ihc")
    with open_store(slide, IDENTITY, out, options) as store:
        assert missing_bands(store) == [1, 3]
        assert translate_band(store, 0)
    assert inodes(out) == before
    finish(slide, out, replace(options, workers=3, max_memory_bytes=2 << 30, batch_size=2), picture)
    assert [record.message.split(": ")[1] for record in caplog.records if "begun" in record.message] == [
        "band 1 begun",
        "band 3 begun",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region": Region(0, 0, 400, 400)}, "--region (None, now 400×400 at (0, 0))"),
        ({"tissue": "auto"}, "--tissue (none, now auto)"),
        ({"core_px": 128, "icc": "srgb"}, "--core-size (0, now 128); --icc (keep, now srgb)"),
        ({"blend": "overlap", "overlap_px": 32}, "--blend (auto, now overlap); --overlap (0, now 32)"),
        ({"pyramid": PyramidOptions(tile_px=128)}, "--tile-size (64, now 128)"),
    ],
)
def test_other_options_are_refused_and_told(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, changes: dict[str, object], words: str
) -> None:
    before = inodes(out)
    changed = replace(options, **changes)  # type: ignore[arg-type]
    assert check_store(slide, IDENTITY, out, options) == 2
    with pytest.raises(OutputError, match="begun otherwise"):
        check_store(slide, IDENTITY, out, changed)
    assert check_store(slide, IDENTITY, out, replace(changed, overwrite=True)) == 2
    with pytest.raises(OutputError, match="begun otherwise") as refused:
        wsi2ihc.translate(slide, IDENTITY, out, changed)
    assert words in str(refused.value)
    assert "--overwrite" in str(refused.value)
    assert inodes(out) == before
    finish(slide, out, options, picture)


def test_another_slide_or_model_is_refused_and_begun_anew_if_asked(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Path(shutil.copy(slide.path, tmp_path_factory.mktemp("other") / "other.svs"))
    with wsi2ihc.open_slide(other) as another, pytest.raises(OutputError, match=r"source name \(tissue.svs, now other"):
        wsi2ihc.translate(another, IDENTITY, out, options)
    with wsi2ihc.open_slide(slide.path, mpp=0.25) as finer, pytest.raises(OutputError, match="--mpp"):
        wsi2ihc.translate(finer, IDENTITY, out, options)
    changed = replace(IDENTITY, version="identity 2")
    with pytest.raises(OutputError, match=r"model version \(identity 1, now identity 2\)"):
        wsi2ihc.translate(slide, changed, out, options)
    with open_store(slide, IDENTITY, out, options), pytest.raises(OutputBusyError, match="another run"):
        wsi2ihc.translate(slide, changed, out, replace(options, overwrite=True))
    report = wsi2ihc.translate(slide, changed, out, replace(options, overwrite=True))
    assert report.model["version"] == "identity 2"
    np.testing.assert_array_equal(tifffile.imread(out), picture)


def test_a_slide_that_was_copied_anew_is_another_slide(
    options: TranslateOptions, picture: RGBImage, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """OpenSlide's hash is of the lowest level, which stays as it is here."""
    path, out = tmp_path_factory.mktemp("copied") / "tissue.svs", tmp_path / "out.ome.tiff"
    pyramid = halves(picture, 2)

    def copied(pixels: RGBImage, second: int) -> Slide:
        write_slide(path, [pixels, *pyramid[1:]], style="aperio", compression="deflate", tile=256, mpp=0.5)
        os.utime(path, (second, second))
        return wsi2ihc.open_slide(path)

    with copied(picture, 1_000_000_000) as before, open_store(before, IDENTITY, out, options) as store:
        assert translate_band(store, 0)
    with wsi2ihc.open_slide(path) as again, open_store(again, IDENTITY, out, options) as store:
        assert missing_bands(store) == [1, 2, 3]
    with copied(255 - picture, 2_000_000_000) as now:
        assert now.info.quickhash == before.info.quickhash
        told = r"source changed at \(2001-09-09T01:46:40Z, now 2033-05-18T03:33:20Z\)"
        with pytest.raises(OutputError, match=told):
            wsi2ihc.translate(now, IDENTITY, out, options)
        report = wsi2ihc.translate(now, IDENTITY, out, replace(options, overwrite=True))
    np.testing.assert_array_equal(tifffile.imread(out), 255 - picture)
    assert "2033" not in json.dumps(report.source)
    with copied(picture, 1_000_000_000) as back, pytest.raises(OutputExistsError):
        wsi2ihc.translate(back, IDENTITY, out, options)


def test_a_mask_file_is_known_by_its_content(
    slide: Slide,
    make_options: Callable[..., TranslateOptions],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import cv2

    mask, out = tmp_path_factory.mktemp("mask") / "mask.png", tmp_path / "out.ome.tiff"
    options = make_options(tissue=mask, resume=True)
    drawn = np.zeros((43, 46), dtype=np.uint8)
    drawn[10:30, 10:30] = 255
    cv2.imwrite(str(mask), drawn)
    with open_store(slide, IDENTITY, out, options) as store:
        assert translate_band(store, 1)
    drawn[5:10] = 255
    cv2.imwrite(str(mask), drawn)
    with pytest.raises(OutputError, match="--tissue"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    mask.unlink()
    with pytest.raises(wsi2ihc.errors.MaskError, match=r"mask\.png"):
        wsi2ihc.translate(slide, IDENTITY, out, options)


def shard_of(out: Path, row: int) -> Path:
    return store_path(out) / "image.ome.zarr" / "0" / "c" / "0" / str(row) / "0"


@pytest.mark.parametrize(
    "damage", ["marker", "truncated", "removed", "other band's sums", "no shards", "shards as a list", "one shard less"]
)
def test_a_damaged_band_is_done_again(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, damage: str
) -> None:
    marker = store_path(out) / "done" / "0002.json"
    if damage == "marker":
        marker.write_bytes(marker.read_bytes()[:40])
    elif damage == "truncated":
        os.truncate(shard_of(out, 4), 1000)
    elif damage == "removed":
        shard_of(out, 5).unlink()
    else:
        facts = json.loads(marker.read_text())
        changes = {
            "other band's sums": {"seams": [1]},
            "no shards": {"shards": {}},
            "shards as a list": {"shards": []},
            "one shard less": {"shards": dict(list(facts["shards"].items())[:1])},
        }
        marker.write_text(json.dumps(facts | changes[damage]))
    with open_store(slide, IDENTITY, out, options) as store:
        assert missing_bands(store) == [1, 2, 3]
    finish(slide, out, options, picture)


def test_a_shard_that_cannot_be_decoded_is_found_when_it_is_read(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(shard_of(out, 5).read_bytes())
    content[len(content) // 2] ^= 1
    shard_of(out, 5).write_bytes(content)
    with open_store(slide, IDENTITY, out, options) as store:
        assert missing_bands(store) == [1, 3]
    finish(slide, out, options, picture)
    assert "band 2 is done again" in caplog.text


def test_a_disk_that_damages_a_band_twice_is_not_tried_for_ever(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = shards._read_shard

    def failing(array: object, level: object, place: tuple[int, int]) -> object:
        if place == (3, 0):
            raise shards.DamagedShardError(*place, "rust")
        return read(array, level, place)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_read_shard", failing)
        with open_store(slide, IDENTITY, out, options) as store:
            assert [translate_band(store, number) for number in (1, 3)] == [True, True]
            with locked(store.folder / "locks", "", "0001"):
                assert assemble(store) is None
                assert missing_bands(store) == []  # whoever has the band is at it
            assert assemble(store) is None
            assert missing_bands(store) == [1]
        with pytest.raises(OutputError, match=r"band 1: shard \(3, 0\) cannot be read back \(rust\), a second time"):
            wsi2ihc.translate(slide, IDENTITY, out, options)  # as if in another process
        assert len([name for name in inodes(out) if name.endswith(".json")]) == 4
        assert not out.exists()
    finish(slide, out, options, picture)  # on a mended disk


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


def make_larger(path: Path) -> None:
    path.write_text(path.read_text().replace("430", "494"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
    "larger": make_larger,
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *(("plan.json", damage) for damage in ("removed", "empty", "cut", "a list")),
        *(("mask.npz", damage) for damage in ("removed", "empty", "cut", "flipped")),
        *((folder, "removed") for folder in ("in-use", "done", "locks", "image.ome.zarr", "image.ome.zarr/0")),
        *(("image.ome.zarr/0/zarr.json", damage) for damage in ("removed", "empty", "cut", "larger", "a list")),
    ],
)
def test_a_damaged_store_is_said_to_be_so(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, part: str, damage: str
) -> None:
    DAMAGES[damage](store_path(out) / part)
    with pytest.raises(OutputError, match=r"\.out\.ome\.tiff\.bands: .* is damaged .*--overwrite"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    finish(slide, out, replace(options, overwrite=True), picture)


@pytest.mark.parametrize(
    ("fact", "value"), [("fill", [0, 0, 0]), ("cell", [64, 64]), ("band_px", 1), ("size", [1, 1]), ("statistics", True)]
)
def test_a_plan_that_changed_on_disk_is_not_continued(
    slide: Slide, out: Path, options: TranslateOptions, fact: str, value: object
) -> None:
    path = store_path(out) / "plan.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts[fact] != value
    path.write_text(json.dumps(facts | {fact: value}), encoding="utf-8")
    with pytest.raises(OutputError, match=r"\.out\.ome\.tiff\.bands: .* is damaged .*--overwrite"):
        wsi2ihc.translate(slide, IDENTITY, out, options)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_only_the_band_in_work(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inodes(out)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", full)
        with pytest.raises(OutputError, match="disk full"):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert inodes(out) == before
    with monkeypatch.context() as patch:
        patch.setattr("wsi2ihc.pyramid.writer.TiffWriter", full)
        with pytest.raises(OutputError, match=r"disk full: no room in .* for .*out\.ome\.tiff"):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert len(inodes(out)) == 4
    finish(slide, out, options, picture)


def test_making_a_store_fails_cleanly(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi2ihc.bands.opening.write_record", full)
    with pytest.raises(OutputError, match="disk full"):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_written(slide: Slide, options: TranslateOptions, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)


def test_an_output_that_is_there_is_done_only_if_it_is_what_is_asked_for(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage
) -> None:
    finish(slide, out, options, picture)
    before = out.stat().st_ino
    wsi2ihc.translate(slide, IDENTITY, out, options)
    assert out.stat().st_ino == before
    for other in (
        replace(options, pyramid=replace(options.pyramid, compression="jpeg")),
        replace(options, tissue="auto"),
        replace(options, resume=False),
    ):
        with pytest.raises(OutputExistsError):
            wsi2ihc.translate(slide, IDENTITY, out, other)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(OutputExistsError):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    wsi2ihc.translate(slide, IDENTITY, out, replace(options, overwrite=True))
    np.testing.assert_array_equal(tifffile.imread(out), picture)


def test_a_file_that_appears_meanwhile_is_kept(slide: Slide, out: Path, options: TranslateOptions) -> None:
    with open_store(slide, IDENTITY, out, options) as store:
        for number in missing_bands(store):
            translate_band(store, number)
        out.write_text("mine")
        with pytest.raises(OutputExistsError):
            assemble(store)
    assert out.read_text() == "mine"
    assert len(inodes(out)) == 4


def test_a_band_that_somebody_has_is_left_to_them(slide: Slide, out: Path, options: TranslateOptions) -> None:
    with open_store(slide, IDENTITY, out, options) as store:
        with locked(store.folder / "locks", "", "0001"):
            assert not translate_band(store, 1)
        assert translate_band(store, 1)
        assert translate_band(store, 3)
        with locked(store.folder / "locks", "", "assembling"):
            assert assemble(store) is None
        assert assemble(store) is not None
        with pytest.raises(OutputError):
            translate_band(store, 1)
        assert complete(store) is None


def test_a_store_of_ones_own_is_nobody_elses(slide: Slide, options: TranslateOptions, tmp_path: Path) -> None:
    zarr_output = tmp_path / "out.ome.zarr"
    with open_store(slide, IDENTITY, zarr_output, replace(options, resume=False)) as own:
        assert own.folder.name.endswith(".partial")
        with pytest.raises(OutputBusyError, match="another run is writing"):
            wsi2ihc.translate(slide, IDENTITY, zarr_output, replace(options, resume=False))
        assert own.folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_under_a_name_of_its_own_is_removed(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage
) -> None:
    leftover = out.with_name(".out.ome.tiff.bands.0123abcd.partial")
    shutil.copytree(store_path(out), leftover)
    finish(slide, out, options, picture)


def test_a_store_that_cannot_be_removed_at_once_is_removed_later(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OutputError("a file in it is open")

    monkeypatch.setattr("wsi2ihc.bands.assembling.remove_store", refused)
    with open_store(slide, IDENTITY, out, options) as store:
        assert complete(store) is not None
        assert store.folder.is_dir()
    finish(slide, out, options, picture)


def test_one_pass_alone_neither_resumes_nor_writes_zarr(
    slide: Slide, options: TranslateOptions, tmp_path: Path
) -> None:
    generator: Generator = IDENTITY
    with pytest.raises(OptionError, match=r"wsi2ihc\.bands"):
        pipeline.translate(slide, generator, tmp_path / "out.ome.tiff", options)
    with pytest.raises(OptionError, match=r"wsi2ihc\.bands"):
        pipeline.translate(slide, generator, tmp_path / "out.ome.zarr")
    with pytest.raises(OptionError, match="--band-height 5"):
        TranslateOptions(band_px=5)


def test_one_makes_a_store_while_others_wait_and_those_prepare_at_the_same_time(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, are_alone = tmp_path / "out.ome.tiff", []

    def watched(*given: Any, **named: Any) -> object:
        try:
            with locked(tmp_path, "", f"{store_path(out).name}.lock"):
                are_alone.append(False)
        except OutputBusyError:
            are_alone.append(True)
        return prepare(*given, **named)

    monkeypatch.setattr("wsi2ihc.bands.opening.prepare", watched)
    for _ in range(2):
        with open_store(slide, IDENTITY, out, options):
            pass
    assert are_alone == [True, False]


def test_what_a_store_has_settled_otherwise_is_told(
    slide: Slide,
    out: Path,
    options: TranslateOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for height in (128, 0, 100):  # as it is, as it comes, and rounded up to it
        with open_store(slide, IDENTITY, out, replace(options, band_px=height)):
            pass
    assert not caplog.messages
    monkeypatch.setattr("wsi2ihc.bands.opening.choose_layout", lambda *_: Layout(max_window_px=1_000_000))
    with open_store(slide, IDENTITY, out, replace(options, band_px=512)) as store:
        assert store.bands[0].region.height == 128
    height, memory = caplog.messages
    assert height == ".out.ome.tiff.bands: begun with --band-height 128, and goes on so"
    assert ".out.ome.tiff.bands: begun with more memory, in windows of up to 2.60 Mpx" in memory
    assert "afford 1.00" in memory
    assert "--max-memory" in memory


def test_as_many_shards_at_once_as_threads_can_use(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Level(Size(100_000, 512), 512, np.ones((1, 196), bool))
    assert [shards.shards_ahead(wide, workers) for workers in (1, 8, 32)] == [2, 2, 8]
    write, seen = shards.write_tiles, []

    def watched(*given: Any) -> None:
        seen.append(given[-1])
        write(*given)

    monkeypatch.setattr("wsi2ihc.bands.working.write_tiles", watched)
    with open_store(slide, IDENTITY, tmp_path / "out.ome.tiff", replace(options, workers=7)) as store:
        translate_band(store, 0)
        assert seen == [shards.shards_ahead(store.levels[0], 7)]


def test_a_band_whose_shards_are_taken_away_is_not_marked(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*given: Any) -> None:
        shards.write_tiles(*given)
        shard_of(out, 3).unlink()

    with monkeypatch.context() as patch:
        patch.setattr("wsi2ihc.bands.working.write_tiles", lost)
        with open_store(slide, IDENTITY, out, options) as store:
            with pytest.raises(OutputError, match="band 1 is not as it was written"):
                translate_band(store, 1)
            assert missing_bands(store) == [1, 3]
    finish(slide, out, options, picture)


def test_a_shard_that_vanishes_while_it_is_looked_at_is_missing(
    slide: Slide, out: Path, options: TranslateOptions
) -> None:
    shard_of(out, 4).unlink()
    shard_of(out, 4).symlink_to("nothing")  # it is listed, and not there
    with open_store(slide, IDENTITY, out, options) as store:
        assert missing_bands(store) == [1, 2, 3]


def test_black_is_not_missing(options: TranslateOptions, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "black.svs", halves(np.zeros((430, 460, 3), np.uint8), 2), compression="deflate",
                       tile=256, mpp=0.5, style="aperio")  # fmt: skip
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(path) as slide, open_store(slide, IDENTITY, out, options) as store:
        assert translate_band(store, 2)
        marker = json.loads((store.folder / "done" / "0002.json").read_text())
        assert sorted(marker["shards"]) == ["0/c/0/4/0", "0/c/0/5/0"]
        shard_of(out, 5).unlink()
        store.known.clear()
        assert missing_bands(store) == [0, 1, 2, 3]


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)


@pytest.mark.usefixtures("_no_locks")
@pytest.mark.parametrize("suffix", ["tiff", "zarr"])
def test_without_locks_no_store_is_shared(slide: Slide, options: TranslateOptions, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out.ome.{suffix}"
    with pytest.raises(OutputError, match=r"has no locks.*without --resume"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    assert not list(tmp_path.iterdir())
    wsi2ihc.translate(slide, IDENTITY, out, replace(options, resume=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.json"]


def test_without_locks_nobody_removes_what_may_be_in_use(
    slide: Slide,
    options: TranslateOptions,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_one_pass, out = replace(options, resume=False), tmp_path / "out.ome.tiff"
    with open_store(slide, IDENTITY, out, options) as shared:
        translate_band(shared, 0)
        request.getfixturevalue("_no_locks")
        wsi2ihc.translate(slide, IDENTITY, out, in_one_pass)
        assert missing_bands(shared) == [1, 2, 3]
        assert shared.folder.is_dir()
    with open_store(slide, IDENTITY, tmp_path / "out.ome.zarr", in_one_pass) as own:
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.zarr", in_one_pass)
        assert own.folder.is_dir()
    assert "cannot tell whether a run uses it" in caplog.text


def test_a_store_of_ones_own_that_is_gone_is_an_error(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi2ihc.bands.running.complete", lambda *_, **__: None)
    with pytest.raises(OutputError, match="run again"):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.zarr", replace(options, resume=False))


class Killed(BaseException):
    """As good as a kill for what lies on the disk."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def published(slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose run was killed as soon as it was published."""
    with monkeypatch.context() as patch:
        patch.setattr("wsi2ihc.bands.assembling.write_extras", killed)
        with pytest.raises(Killed):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert out.exists()
    return out


def test_what_was_published_is_taken_for_done_only_if_it_is_stored_as_asked(
    slide: Slide, published: Path, options: TranslateOptions, picture: RGBImage
) -> None:
    before = published.stat().st_ino
    jpeg = replace(options, pyramid=replace(options.pyramid, compression="jpeg"))
    with pytest.raises(OutputExistsError):
        wsi2ihc.translate(slide, IDENTITY, published, jpeg)
    finish(slide, published, options, picture)
    assert published.stat().st_ino == before


def test_what_was_published_is_stored_otherwise_if_it_is_asked_for(
    slide: Slide, published: Path, options: TranslateOptions
) -> None:
    jpeg = replace(options, pyramid=replace(options.pyramid, compression="jpeg"), overwrite=True)
    report = wsi2ihc.translate(slide, IDENTITY, published, jpeg)
    assert report.options["pyramid"]["compression"] == "jpeg"
    with tifffile.TiffFile(published) as tiff:
        assert tiff.pages.first.compression == tifffile.COMPRESSION.JPEG
    assert sorted(path.name for path in published.parent.iterdir()) == ["out.ome.tiff", "out.ome.tiff.json"]


@pytest.mark.parametrize("suffix", ["tiff", "zarr"])
@pytest.mark.parametrize(
    "moment", ["opening.check_outputs", "opening.read_record", "opening.divide", "running.missing_bands"]
)
def test_who_joins_while_the_output_is_published_takes_the_last_steps(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, suffix: str
) -> None:
    """The image of an OME-Zarr leaves the store then, and what was found a moment ago is not so any more."""
    out, forgotten = tmp_path / f"out.ome.{suffix}", []
    monkeypatch.setattr("wsi2ihc.bands.working.forget_band", lambda *given: forgotten.append(given))
    with open_store(slide, IDENTITY, out, options) as first:
        for number in range(len(first.bands)):
            translate_band(first, number)
        forgotten.clear()
        looks = getattr(importlib.import_module(f"wsi2ihc.bands.{moment.split('.')[0]}"), moment.split(".")[1])

        def publish_first(*given: Any) -> object:
            monkeypatch.setattr(f"wsi2ihc.bands.{moment}", looks)
            with monkeypatch.context() as patch:
                patch.setattr("wsi2ihc.bands.assembling.write_extras", killed)
                with pytest.raises(Killed):
                    assemble(first)
            return looks(*given)

        monkeypatch.setattr(f"wsi2ihc.bands.{moment}", publish_first)
        report = wsi2ihc.translate(slide, IDENTITY, out, options)
    assert report.output_name == out.name
    assert not forgotten
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.json"]


def test_a_preview_is_drawn_of_what_is_complete_already(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage
) -> None:
    preview = out.with_name("both.png")
    finish(slide, out, options, picture)
    for _ in range(2):
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, preview=preview))
        drawn = preview.stat().st_ino
        np.testing.assert_array_equal(np.asarray(Image.open(preview))[:, :460], picture)
    assert preview.stat().st_ino == drawn
    with pytest.raises(OutputError, match=r"\.png"):
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, preview=out.with_name("both.gif")))


def test_another_users_store_is_told_in_one_line(
    slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("in_use", "read_record"):
        with monkeypatch.context() as patch:
            patch.setattr(f"wsi2ihc.bands.opening.{name}", refused)
            with pytest.raises(
                OutputError, match=r"cannot write \.out\.ome\.tiff\.bands .* another user's: .*elsewhere"
            ):
                wsi2ihc.translate(slide, IDENTITY, out, replace(options, overwrite=True))
    monkeypatch.setattr("wsi2ihc.bands.record.np.load", refused)
    with pytest.raises(PermissionError):
        read_record(store_path(out))


def test_who_looks_at_the_identity_passes_it_on(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for module in ("bands.translating", "bands.opening", "translation.pipeline"):
        monkeypatch.setattr(
            f"wsi2ihc.{module}.identity", lambda *given: (calls.append(1), identity(*given))[1]
        )  # fmt: skip
    for _ in range(2):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)
    assert len(calls) == 2


def test_only_who_was_let_in_is_told_what_is_kept(
    slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError) as refused:
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, core_px=128))
    assert not hasattr(refused.value, "__notes__")
    monkeypatch.setattr("wsi2ihc.bands.working.write_tiles", killed)
    with pytest.raises(Killed) as interrupted:
        wsi2ihc.translate(slide, IDENTITY, out, options)
    assert interrupted.value.__notes__ == ["Bands that are done are kept (2): the same command goes on with them."]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a handle is the name of is read there")
def test_things_reach_the_disk_before_what_speaks_of_them(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards before their marker, the note of what is published before the output, the output before the removal."""
    steps: list[str] = []

    def note(kind: str, path: str | Path) -> None:
        steps.append(kind + re.sub(r"\.[0-9a-f]{8}\.partial", "~", str(path).removeprefix(str(tmp_path))))

    def noted(function: Callable[..., Any], kind: str, place: int) -> Callable[..., Any]:
        return lambda *given, **named: (function(*given, **named), note(kind, given[place]))[0]

    monkeypatch.setattr("os.fsync", lambda handle: note("sync ", Path(f"/proc/self/fd/{handle}").readlink()))
    for where, name, kind, place in (
        (os, "link", "name ", 1),
        (Path, "replace", "name ", 1),
        (Path, "rename", "name ", 1),
        (shutil, "rmtree", "remove ", 0),
    ):
        monkeypatch.setattr(where, name, noted(getattr(where, name), kind, place))
    wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)
    store, row = "/.out.ome.tiff.bands", "/.out.ome.tiff.bands/image.ome.zarr/0/c/0/2"
    order = iter(steps)
    for step in (
        *(f"sync {store}~/plan.json", f"sync {store}~", f"name {store}", "sync "),
        *(f"name {row}/0", f"sync {row}/0", f"sync {row}", f"sync {Path(row).parent}"),
        *(f"sync {store}/done/.0001.json~", f"name {store}/done/0001.json", f"sync {store}/done"),
        *(f"sync {store}/.published.json~", f"name {store}/published.json", f"sync {store}"),
        *("sync /.out.ome.tiff~", "name /out.ome.tiff", "sync "),
        *("name /out.ome.tiff.json", f"name {store}~", f"remove {store}~"),
    ):
        assert step in order, (step, steps)  # in what comes after the one before
