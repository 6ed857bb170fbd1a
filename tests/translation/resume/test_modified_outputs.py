"""Results of earlier runs are reused only if they are unchanged, to the byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import wsi2ihc
from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.files import sha256_of
from wsi2ihc.geometry import Region, RGBImage
from wsi2ihc.pyramid.ome_zarr import open_level
from wsi2ihc.slide import Slide
from wsi2ihc.translation import resume
from wsi2ihc.translation.checkpoint_folder import checkpoint_path
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.resume import open_checkpoint, translate_band

IDENTITY = wsi2ihc.load_model("identity")


@pytest.fixture
def options(
    make_options: Callable[..., TranslateOptions], tmp_path_factory: pytest.TempPathFactory
) -> TranslateOptions:
    """Options with two bands, the first of which has background only."""
    mask = tmp_path_factory.mktemp("mask") / "mask.png"
    drawn = np.zeros((43, 46), np.uint8)
    drawn[21:23, 10:20] = 255
    Image.fromarray(drawn).save(mask)
    return make_options(resume=True, tissue=mask, region=Region(0, 0, 256, 256))


@pytest.fixture(params=["out.ome.tiff", "out.ome.zarr"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def pixels_of(out: Path) -> RGBImage:
    if out.is_dir():
        return np.moveaxis(np.asarray(open_level(out, 0)[:]), 0, 2)
    return tifffile.imread(out)


def a_file_of(out: Path) -> Path:
    return out / "1" / "c" / "0" / "0" / "0" if out.is_dir() else out


def overwrite_middle(file: Path) -> None:
    """Change a byte in the middle of a file without changing its size and times."""
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(status.st_size // 2)
        (byte,) = opened.read(1)
        opened.seek(status.st_size // 2)
        opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_modified_output_is_not_taken_for_finished(slide: Slide, out: Path, options: TranslateOptions) -> None:
    report = wsi2ihc.translate(slide, IDENTITY, out, options)
    assert report.output_sha256 == sha256_of(out)
    assert wsi2ihc.translate(slide, IDENTITY, out, options).created == report.created, "it is finished"
    before = pixels_of(out)
    overwrite_middle(a_file_of(out))
    with pytest.raises(OutputExistsError, match=r"already exists and is not the result .* it was changed"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    again = wsi2ihc.translate(slide, IDENTITY, out, replace(options, overwrite=True))
    assert again.output_sha256 == report.output_sha256 == sha256_of(out)
    np.testing.assert_array_equal(pixels_of(out), before)


def test_an_output_modified_before_the_cleanup_is_not_taken_for_finished(
    slide: Slide, out: Path, options: TranslateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = out.with_name(f"whole.{out.name}")
    wsi2ihc.translate(slide, IDENTITY, whole, options)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume, "_clean_up", killed)
        with pytest.raises(KeyboardInterrupt):
            wsi2ihc.translate(slide, IDENTITY, out, options)
    assert checkpoint_path(out).is_dir()
    overwrite_middle(a_file_of(out))
    with pytest.raises(OutputError, match="changed after it was written"):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    with pytest.raises(OutputExistsError):
        wsi2ihc.translate(slide, IDENTITY, out, options)
    wsi2ihc.translate(slide, IDENTITY, out, replace(options, overwrite=True))
    np.testing.assert_array_equal(pixels_of(out), pixels_of(whole))


@pytest.mark.parametrize("row", [0, 3])
def test_a_shard_that_was_overwritten_is_translated_again(
    slide: Slide, out: Path, options: TranslateOptions, row: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Shards of background are not read during assembly."""
    whole = out.with_name(f"whole.{out.name}")
    wsi2ihc.translate(slide, IDENTITY, whole, options)
    with open_checkpoint(slide, IDENTITY, out, options) as checkpoint:
        assert all(translate_band(checkpoint, number) for number in range(len(checkpoint.bands)))
        assert checkpoint.levels[0].occupied.any(axis=1).tolist()[::3] == [False, True]
    overwrite_middle(checkpoint_path(out) / "image.ome.zarr" / "0" / "c" / "0" / str(row) / "0")
    wsi2ihc.translate(slide, IDENTITY, out, options)
    assert f"band {row // 2} is translated again" in caplog.text
    np.testing.assert_array_equal(pixels_of(out), pixels_of(whole))
