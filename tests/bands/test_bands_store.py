"""What is never gone on with, what is damaged, and what is in nobody's way: one clear line, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

import wsi2ihc
from wsi2ihc.arrays import RGBImage
from wsi2ihc.bands import Store, assemble, complete, missing_bands, open_store, translate_band
from wsi2ihc.bands.places import store_path
from wsi2ihc.errors import OptionError, OutputBusyError, OutputError, OutputExistsError
from wsi2ihc.generator.model import Generator
from wsi2ihc.geometry import Region
from wsi2ihc.locks import locked
from wsi2ihc.pyramid import PyramidOptions, shards
from wsi2ihc.slide import Slide
from wsi2ihc.translation import pipeline
from wsi2ihc.translation.options import TranslateOptions

IDENTITY = wsi2ihc.load_generator("identity")


@pytest.fixture
def slide(slide_file: Path) -> Iterator[Slide]:
    with wsi2ihc.open_slide(slide_file) as opened:
        yield opened


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
    with pytest.raises(OutputError, match="begun otherwise") as refused:
        wsi2ihc.translate(slide, IDENTITY, out, replace(options, **changes))  # type: ignore[arg-type]
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


@pytest.mark.parametrize("damage", ["marker", "truncated", "removed", "other band's sums"])
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
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "seams": [1]}))
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
    slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = shards._read_shard

    def failing(array: object, level: object, place: tuple[int, int]) -> object:
        if place == (3, 0):
            raise shards.DamagedShardError(*place, "rust")
        return read(array, level, place)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_read_shard", failing)
    with pytest.raises(OutputError, match=r"band 1: shard \(3, 0\) cannot be read back \(rust\), a second time"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    assert len(inodes(out)) == 4
    assert not out.exists()


@pytest.mark.parametrize("file", ["plan.json", "mask.npz", "in-use"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_store_is_said_to_be_so(
    slide: Slide, out: Path, options: TranslateOptions, picture: RGBImage, file: str, damage: str
) -> None:
    path = store_path(out) / file
    if damage == "removed":
        path.unlink()
    elif path.stat().st_size:
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    with pytest.raises(OutputError, match=r"\.out\.ome\.tiff\.bands: .* is damaged .*--overwrite"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    finish(slide, out, replace(options, overwrite=True), picture)


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
    monkeypatch.setattr("wsi2ihc.bands.store.write_record", full)
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


def test_nobody_else_is_let_in_while_a_store_is_made(
    slide: Slide, options: TranslateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr_output = tmp_path / "out.ome.zarr"
    with open_store(slide, IDENTITY, zarr_output, replace(options, resume=False)) as store:
        own: Store = store
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
