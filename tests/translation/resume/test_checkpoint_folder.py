"""Checkpoint folders: what is resumed, restarted or refused, damage, locks and cleanup."""

from __future__ import annotations

import errno
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
from wsi2ihc.errors import OutputBusyError, OutputError, OutputExistsError
from wsi2ihc.geometry import Region, RGBImage, Size
from wsi2ihc.locks import exclusive_lock
from wsi2ihc.pyramid import PyramidOptions, ome_zarr
from wsi2ihc.pyramid.levels import PyramidLevel
from wsi2ihc.slide import Slide
from wsi2ihc.translation import resume
from wsi2ihc.translation.checkpoint_folder import Checkpoint, checkpoint_path, read_shared_plan
from wsi2ihc.translation.job import translation_fingerprint
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.resume import assemble, check_checkpoint, complete, open_checkpoint, prepare, translate_band
from wsi2ihc.translation.windows import WindowLayout

IDENTITY = wsi2ihc.load_model("identity")


@pytest.fixture
def options(make_options: Callable[..., TranslateOptions]) -> TranslateOptions:
    return make_options(tissue="none", resume=True)


@pytest.fixture
def out(slide: Slide, options: TranslateOptions, tmp_path: Path) -> Path:
    """An output with two finished bands."""
    path = tmp_path / "out.ome.tiff"
    with open_checkpoint(slide, IDENTITY, path, options) as checkpoint:
        assert len(checkpoint.bands) == 4
        assert [translate_band(checkpoint, number) for number in (0, 2)] == [True, True]
    return path


def inodes(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in (checkpoint_path(out) / "done").iterdir()}


def finish(slide: Slide, out: Path, options: TranslateOptions, image: RGBImage) -> None:
    wsi2ihc.translate(slide, IDENTITY, out, options)
    np.testing.assert_array_equal(tifffile.imread(out), image)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.ome.tiff", "out.ome.tiff.json"]


def test_finished_bands_are_not_translated_again(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, caplog: pytest.LogCaptureFixture
) -> None:
    before = inodes(out)
    assert sorted(before) == ["0000.json", "0002.json"]
    caplog.set_level("INFO", "wsi2ihc")
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert checkpoint.missing_bands() == [1, 3]
        assert translate_band(checkpoint, 0)
    assert inodes(out) == before
    finish(slide, out, replace(options, workers=3, max_memory_bytes=2 << 30, batch_size=2), image)
    assert [record.message.split(": ")[1] for record in caplog.records if "started" in record.message] == [
        "band 1 started",
        "band 3 started",
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
def test_other_options_are_refused_and_listed(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, changes: dict[str, object], words: str
) -> None:
    before = inodes(out)
    changed = replace(options, **changes)  # type: ignore[arg-type]
    assert check_checkpoint(slide, IDENTITY, out, options) == 2
    with pytest.raises(OutputError, match="started with other settings"):
        check_checkpoint(slide, IDENTITY, out, changed)
    assert check_checkpoint(slide, IDENTITY, out, replace(changed, overwrite=True)) == 2
    with pytest.raises(OutputError, match="started with other settings") as refused:
        wsi2ihc.translate(slide, IDENTITY, out, changed)
    assert words in str(refused.value)
    assert "--overwrite" in str(refused.value)
    assert inodes(out) == before
    finish(slide, out, options, image)


def test_another_slide_or_model_is_refused_without_overwrite(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Path(shutil.copy(slide.path, tmp_path_factory.mktemp("other") / "other.svs"))
    with wsi2ihc.open_slide(other) as another, pytest.raises(OutputError, match=r"source name \(tissue.svs, now other"):
        wsi2ihc.translate(another, IDENTITY, out, options)
    with wsi2ihc.open_slide(slide.path, mpp=0.25) as finer, pytest.raises(OutputError, match="--mpp"):
        wsi2ihc.translate(finer, IDENTITY, out, options)
    changed = replace(IDENTITY, version="identity 2")
    with pytest.raises(OutputError, match=r"model version \(identity 1, now identity 2\)"):
        wsi2ihc.translate(slide, changed, out, options)
    with open_checkpoint(slide, IDENTITY, out, options), pytest.raises(OutputBusyError, match="another run"):
        wsi2ihc.translate(slide, changed, out, replace(options, overwrite=True))
    report = wsi2ihc.translate(slide, changed, out, replace(options, overwrite=True))
    assert report.model["version"] == "identity 2"
    np.testing.assert_array_equal(tifffile.imread(out), image)


def test_a_re_copied_slide_counts_as_a_different_slide(
    options: TranslateOptions, image: RGBImage, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """OpenSlide hashes the lowest level, which does not change here."""
    path, out = tmp_path_factory.mktemp("copied") / "tissue.svs", tmp_path / "out.ome.tiff"
    pyramid = halves(image, 2)

    def copied(pixels: RGBImage, second: int) -> Slide:
        write_slide(path, [pixels, *pyramid[1:]], style="aperio", compression="deflate", tile=256, mpp=0.5)
        os.utime(path, (second, second))
        return wsi2ihc.open_slide(path)

    with copied(image, 1_000_000_000) as before, open_checkpoint(before, IDENTITY, out, options) as checkpoint:
        assert translate_band(checkpoint, 0)
    with wsi2ihc.open_slide(path) as again, open_checkpoint(again, IDENTITY, out, options) as checkpoint:
        assert checkpoint.missing_bands() == [1, 2, 3]
    with copied(255 - image, 2_000_000_000) as now:
        assert now.info.quickhash == before.info.quickhash
        message = r"source changed at \(2001-09-09T01:46:40Z, now 2033-05-18T03:33:20Z\)"
        with pytest.raises(OutputError, match=message):
            wsi2ihc.translate(now, IDENTITY, out, options)
        report = wsi2ihc.translate(now, IDENTITY, out, replace(options, overwrite=True))
    np.testing.assert_array_equal(tifffile.imread(out), 255 - image)
    assert "2033" not in json.dumps(report.source)
    with copied(image, 1_000_000_000) as back, pytest.raises(OutputExistsError):
        wsi2ihc.translate(back, IDENTITY, out, options)


def test_a_mask_file_is_identified_by_its_content(
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
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert translate_band(checkpoint, 1)
    drawn[5:10] = 255
    cv2.imwrite(str(mask), drawn)
    with pytest.raises(OutputError, match="--tissue"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    mask.unlink()
    with pytest.raises(wsi2ihc.errors.MaskError, match=r"mask\.png"):
        wsi2ihc.translate(slide, IDENTITY, out, options)


def shard_of(out: Path, row: int) -> Path:
    return checkpoint_path(out) / "image.ome.zarr" / "0" / "c" / "0" / str(row) / "0"


@pytest.mark.parametrize(
    "damage", ["marker", "truncated", "removed", "other band's sums", "no shards", "shards as a list", "one shard less"]
)
def test_a_damaged_band_is_translated_again(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, damage: str
) -> None:
    marker = checkpoint_path(out) / "done" / "0002.json"
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
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert checkpoint.missing_bands() == [1, 2, 3]
    finish(slide, out, options, image)


def test_an_undecodable_shard_is_translated_again(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(shard_of(out, 5).read_bytes())
    content[len(content) // 2] ^= 1
    shard_of(out, 5).write_bytes(content)
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert checkpoint.missing_bands() == [1, 3]
    finish(slide, out, options, image)
    assert "band 2 is translated again" in caplog.text


def test_a_band_damaged_twice_is_an_error(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ome_zarr._read_shard

    def failing(array: object, level: object, place: tuple[int, int]) -> object:
        if place == (3, 0):
            raise ome_zarr.DamagedShardError(*place, "rust")
        return read(array, level, place)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ome_zarr, "_read_shard", failing)
        with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
            assert [translate_band(checkpoint, number) for number in (1, 3)] == [True, True]
            with exclusive_lock(checkpoint.folder / "locks", "", "0001"):
                assert assemble(checkpoint) is None
                assert checkpoint.missing_bands() == []  # another process is working on the band
            assert assemble(checkpoint) is None
            assert checkpoint.missing_bands() == [1]
        with pytest.raises(OutputError, match=r"band 1: shard \(3, 0\) cannot be read back \(rust\), a second time"):
            wsi2ihc.translate(slide, IDENTITY, out, options)  # as another process would
        assert len([name for name in inodes(out) if name.endswith(".json")]) == 4
        assert not out.exists()
    finish(slide, out, options, image)  # on a repaired disk


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
def test_a_damaged_checkpoint_folder_is_refused(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, part: str, damage: str
) -> None:
    DAMAGES[damage](checkpoint_path(out) / part)
    with pytest.raises(OutputError, match=r"\.out\.ome\.tiff\.bands: .* is damaged .*--overwrite"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    finish(slide, out, replace(options, overwrite=True), image)


@pytest.mark.parametrize(
    ("key", "value"),
    [("fill", [0, 0, 0]), ("core_size", [64, 64]), ("band_px", 1), ("size", [1, 1]), ("statistics", True)],
)
def test_a_modified_plan_is_refused(
    slide: Slide, out: Path, options: TranslateOptions, key: str, value: object
) -> None:
    path = checkpoint_path(out) / "plan.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    assert plan[key] != value
    path.write_text(json.dumps(plan | {key: value}), encoding="utf-8")
    with pytest.raises(OutputError, match=r"\.out\.ome\.tiff\.bands: .* is damaged .*--overwrite"):
        wsi2ihc.translate(slide, IDENTITY, out, options)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_only_the_band_in_progress(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inodes(out)
    with monkeypatch.context() as patch:
        patch.setattr(ome_zarr, "write_shard", full)
        with pytest.raises(OutputError, match="disk full"):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert inodes(out) == before
    with monkeypatch.context() as patch:
        patch.setattr("wsi2ihc.pyramid.ome_tiff.TiffWriter", full)
        with pytest.raises(OutputError, match=r"disk full: no room in .* for .*out\.ome\.tiff"):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert len(inodes(out)) == 4
    finish(slide, out, options, image)


def test_a_failed_creation_leaves_no_checkpoint_folder(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi2ihc.translation.resume.write_shared_plan", full)
    with pytest.raises(OutputError, match="disk full"):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_written(slide: Slide, options: TranslateOptions, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)


def test_an_existing_output_counts_as_finished_only_if_it_matches(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage
) -> None:
    finish(slide, out, options, image)
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
    np.testing.assert_array_equal(tifffile.imread(out), image)


def test_a_file_that_appears_meanwhile_is_not_replaced(slide: Slide, out: Path, options: TranslateOptions) -> None:
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        for number in checkpoint.missing_bands():
            translate_band(checkpoint, number)
        out.write_text("mine")
        with pytest.raises(OutputExistsError):
            assemble(checkpoint)
    assert out.read_text() == "mine"
    assert len(inodes(out)) == 4


def test_a_band_locked_by_another_process_is_skipped(slide: Slide, out: Path, options: TranslateOptions) -> None:
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        with exclusive_lock(checkpoint.folder / "locks", "", "0001"):
            assert not translate_band(checkpoint, 1)
        assert translate_band(checkpoint, 1)
        assert translate_band(checkpoint, 3)
        with exclusive_lock(checkpoint.folder / "locks", "", "assembling"):
            assert assemble(checkpoint) is None
        assert assemble(checkpoint) is not None
        with pytest.raises(OutputError):
            translate_band(checkpoint, 1)
        assert complete(checkpoint) is None


def test_a_private_checkpoint_folder_is_not_shared(slide: Slide, options: TranslateOptions, tmp_path: Path) -> None:
    zarr_output = tmp_path / "out.ome.zarr"
    with open_checkpoint(slide, IDENTITY, zarr_output, replace(options, resume=False)) as own:
        assert own.folder.name.endswith(".partial")
        with pytest.raises(OutputBusyError, match="another run is writing"):
            wsi2ihc.translate(slide, IDENTITY, zarr_output, replace(options, resume=False))
        assert own.folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_hidden_folders_of_killed_runs_are_removed(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage
) -> None:
    leftover = out.with_name(".out.ome.tiff.bands.0123abcd.partial")
    shutil.copytree(checkpoint_path(out), leftover)
    finish(slide, out, options, image)


def test_a_checkpoint_folder_that_cannot_be_removed_is_removed_later(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OutputError("a file in it is open")

    monkeypatch.setattr("wsi2ihc.translation.resume.remove_checkpoint", refused)
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert complete(checkpoint) is not None
        assert checkpoint.folder.is_dir()
    finish(slide, out, options, image)


def test_only_the_creation_of_a_checkpoint_folder_keeps_others_waiting(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, are_alone = tmp_path / "out.ome.tiff", []

    def watched(*given: Any, **named: Any) -> object:
        try:
            with exclusive_lock(tmp_path, "", f"{checkpoint_path(out).name}.lock"):
                are_alone.append(False)
        except OutputBusyError:
            are_alone.append(True)
        return prepare(*given, **named)

    monkeypatch.setattr("wsi2ihc.translation.resume.prepare", watched)
    for _ in range(2):
        with open_checkpoint(slide, IDENTITY, out, options):
            pass
    assert are_alone == [True, False]


def test_options_overridden_by_the_shared_plan_are_reported(
    slide: Slide,
    out: Path,
    options: TranslateOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for height in (128, 0, 100):  # the same, the default, and one that is rounded up to it
        with open_checkpoint(slide, IDENTITY, out, replace(options, band_px=height)):
            pass
    assert not caplog.messages
    monkeypatch.setattr("wsi2ihc.translation.resume.choose_layout", lambda *_: WindowLayout(max_window_px=1_000_000))
    with open_checkpoint(slide, IDENTITY, out, replace(options, band_px=512)) as checkpoint:
        assert checkpoint.bands[0].region.height == 128
    height, memory = caplog.messages
    assert height == ".out.ome.tiff.bands: resuming with the original --band-height 128"
    assert ".out.ome.tiff.bands: resuming with the original windows of up to 2.60 Mpx" in memory
    assert "afford 1.00" in memory
    assert "--max-memory" in memory


def test_shards_in_flight_are_bounded_by_the_threads(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = PyramidLevel(Size(100_000, 512), 512, np.ones((1, 196), bool))
    assert [ome_zarr.shards_ahead(wide, workers) for workers in (1, 8, 32)] == [2, 2, 8]
    write, seen = ome_zarr.write_tiles, []

    def watched(*given: Any) -> None:
        seen.append(given[-1])
        write(*given)

    monkeypatch.setattr("wsi2ihc.translation.resume.write_tiles", watched)
    with open_checkpoint(slide, IDENTITY, tmp_path / "out.ome.tiff", replace(options, workers=7)) as checkpoint:
        translate_band(checkpoint, 0)
        assert seen == [ome_zarr.shards_ahead(checkpoint.levels[0], 7)]


def test_a_band_with_a_removed_shard_is_not_marked_as_done(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*given: Any) -> None:
        ome_zarr.write_tiles(*given)
        shard_of(out, 3).unlink()

    with monkeypatch.context() as patch:
        patch.setattr("wsi2ihc.translation.resume.write_tiles", lost)
        with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
            with pytest.raises(OutputError, match="band 1 changed after they were written"):
                translate_band(checkpoint, 1)
            assert checkpoint.missing_bands() == [1, 3]
    finish(slide, out, options, image)


def test_a_shard_that_vanishes_while_it_is_checked_is_missing(
    slide: Slide, out: Path, options: TranslateOptions
) -> None:
    shard_of(out, 4).unlink()
    shard_of(out, 4).symlink_to("nothing")  # it is listed but missing
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert checkpoint.missing_bands() == [1, 2, 3]


def test_black_shards_are_not_missing(options: TranslateOptions, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "black.svs", halves(np.zeros((430, 460, 3), np.uint8), 2), compression="deflate",
                       tile=256, mpp=0.5, style="aperio")  # fmt: skip
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(path) as slide, open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert translate_band(checkpoint, 2)
        marker = json.loads((checkpoint.folder / "done" / "0002.json").read_text())
        assert sorted(marker["shards"]) == ["0/c/0/4/0", "0/c/0/5/0"]
        shard_of(out, 5).unlink()
        checkpoint.done_markers.clear()
        assert checkpoint.missing_bands() == [0, 1, 2, 3]


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)


@pytest.mark.usefixtures("_no_locks")
@pytest.mark.parametrize("suffix", ["tiff", "zarr"])
def test_no_checkpoint_folder_is_shared_without_locks(
    slide: Slide, options: TranslateOptions, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out.ome.{suffix}"
    with pytest.raises(OutputError, match=r"has no locks.*without --resume"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    assert not list(tmp_path.iterdir())
    wsi2ihc.translate(slide, IDENTITY, out, replace(options, resume=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.json"]


def test_folders_that_may_be_in_use_are_kept_without_locks(
    slide: Slide,
    options: TranslateOptions,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_one_pass, out = replace(options, resume=False), tmp_path / "out.ome.tiff"
    with open_checkpoint(slide, IDENTITY, out, options) as shared:
        translate_band(shared, 0)
        request.getfixturevalue("_no_locks")
        wsi2ihc.translate(slide, IDENTITY, out, in_one_pass)
        assert shared.missing_bands() == [1, 2, 3]
        assert shared.folder.is_dir()
    with open_checkpoint(slide, IDENTITY, tmp_path / "out.ome.zarr", in_one_pass) as own:
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.zarr", in_one_pass)
        assert own.folder.is_dir()
    assert "has no locks, so another run may use it" in caplog.text


def test_a_removed_private_checkpoint_folder_is_an_error(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi2ihc.translation.translate.complete", lambda *_, **__: None)
    with pytest.raises(OutputError, match="run again"):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.zarr", replace(options, resume=False))


class Killed(BaseException):
    """Exception with the effect of SIGKILL on the files."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def published(slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose run was killed immediately after publication."""
    with monkeypatch.context() as patch:
        patch.setattr("wsi2ihc.translation.resume.write_extras", killed)
        with pytest.raises(Killed):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert out.exists()
    return out


def test_a_published_output_counts_as_finished_only_with_the_same_storage_options(
    slide: Slide, published: Path, options: TranslateOptions, image: RGBImage
) -> None:
    before = published.stat().st_ino
    jpeg = replace(options, pyramid=replace(options.pyramid, compression="jpeg"))
    with pytest.raises(OutputExistsError):
        wsi2ihc.translate(slide, IDENTITY, published, jpeg)
    finish(slide, published, options, image)
    assert published.stat().st_ino == before


def test_a_published_output_is_replaced_for_other_storage_options(
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
    ("place", "moment"),
    [
        (resume, "check_outputs"),
        (resume, "read_shared_plan"),
        (resume, "divide_into_bands"),
        (Checkpoint, "missing_bands"),
    ],
)
def test_a_process_that_finds_the_output_published_does_the_cleanup(
    slide: Slide,
    options: TranslateOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    moment: str,
    suffix: str,
) -> None:
    """The image of an OME-Zarr then leaves the checkpoint folder, which changes between two checks."""
    out, forgotten = tmp_path / f"out.ome.{suffix}", []
    monkeypatch.setattr(Checkpoint, "remove_done_marker", lambda *given: forgotten.append(given))
    with open_checkpoint(slide, IDENTITY, out, options) as first:
        for number in range(len(first.bands)):
            translate_band(first, number)
        forgotten.clear()
        original = getattr(place, moment)

        def publish_first(*given: Any) -> object:
            monkeypatch.setattr(place, moment, original)
            with monkeypatch.context() as patch:
                patch.setattr("wsi2ihc.translation.resume.write_extras", killed)
                with pytest.raises(Killed):
                    assemble(first)
            return original(*given)

        monkeypatch.setattr(place, moment, publish_first)
        report = wsi2ihc.translate(slide, IDENTITY, out, options)
    assert report.output_name == out.name
    assert not forgotten
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.json"]


def test_a_preview_of_a_finished_output_is_written_later(
    slide: Slide, out: Path, options: TranslateOptions, image: RGBImage
) -> None:
    preview = out.with_name("both.png")
    finish(slide, out, options, image)
    for _ in range(2):
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, preview=preview))
        drawn = preview.stat().st_ino
        np.testing.assert_array_equal(np.asarray(Image.open(preview))[:, :460], image)
    assert preview.stat().st_ino == drawn
    with pytest.raises(OutputError, match=r"\.png"):
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, preview=out.with_name("both.gif")))


def test_a_checkpoint_folder_of_another_user_is_a_clear_error(
    slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("in_use", "read_shared_plan"):
        with monkeypatch.context() as patch:
            patch.setattr(f"wsi2ihc.translation.resume.{name}", refused)
            with pytest.raises(
                OutputError, match=r"cannot write \.out\.ome\.tiff\.bands .* another user's: .*elsewhere"
            ):
                wsi2ihc.translate(slide, IDENTITY, out, replace(options, overwrite=True))
    monkeypatch.setattr("wsi2ihc.translation.checkpoint_folder.np.load", refused)
    with pytest.raises(PermissionError):
        read_shared_plan(checkpoint_path(out))


def test_the_fingerprint_is_computed_once(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for module in ("translate", "resume"):
        monkeypatch.setattr(
            f"wsi2ihc.translation.{module}.translation_fingerprint",
            lambda *given: (calls.append(1), translation_fingerprint(*given))[1],
        )  # fmt: skip
    for _ in range(2):
        wsi2ihc.translate(slide, IDENTITY, tmp_path / "out.ome.tiff", options)
    assert len(calls) == 2


def test_kept_bands_are_reported_only_for_a_matching_checkpoint_folder(
    slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError) as refused:
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, core_px=128))
    assert not hasattr(refused.value, "__notes__")
    monkeypatch.setattr("wsi2ihc.translation.resume.write_tiles", killed)
    with pytest.raises(Killed) as interrupted:
        wsi2ihc.translate(slide, IDENTITY, out, options)
    assert interrupted.value.__notes__ == ["2 finished bands are kept: run the same command again to resume."]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a handle is the name of is read there")
def test_files_are_synced_before_files_that_refer_to_them(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sync shards before their marker, the commit record before the output, the output before the removal."""
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
    checkpoint, row = "/.out.ome.tiff.bands", "/.out.ome.tiff.bands/image.ome.zarr/0/c/0/2"
    order = iter(steps)
    for step in (
        *(f"sync {checkpoint}~/plan.json", f"sync {checkpoint}~", f"name {checkpoint}", "sync "),
        *(f"name {row}/0", f"sync {row}/0", f"sync {row}", f"sync {Path(row).parent}"),
        *(f"sync {checkpoint}/done/.0001.json~", f"name {checkpoint}/done/0001.json", f"sync {checkpoint}/done"),
        *(f"sync {checkpoint}/.committed.json~", f"name {checkpoint}/committed.json", f"sync {checkpoint}"),
        *("sync /.out.ome.tiff~", "name /out.ome.tiff", "sync "),
        *("name /out.ome.tiff.json", f"name {checkpoint}~", f"remove {checkpoint}~"),
    ):
        assert step in order, (step, steps)  # among the steps after the previous one
