"""Whole slides warped, as a user of the command and of the library meets it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from make_slides import halves, write_slide

from wsi2ihc.cli.warp import command
from wsi2ihc.concurrency import Progress
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.errors import MissingResolutionError, OptionError, OutputError, OutputExistsError, TransformError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.pyramid import PyramidOptions, read_level
from wsi2ihc.registration.transform import LocalField, SlideFrame, Transform, frame_of
from wsi2ihc.registration.transform_io import fingerprint, save_transform
from wsi2ihc.registration.warped_region import read_warped
from wsi2ihc.registration.warped_slide import WarpOptions, warp_slide
from wsi2ihc.slide import open_slide, srgb_profile
from wsi2ihc.tissue import whole_slide

BACKGROUND = (243, 241, 240)
SIZE = Size(1300, 1000)
LOSSLESS = PyramidOptions(tile_px=256, compression="deflate")


@pytest.fixture(scope="module")
def ihc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.full((900, 1200, 3), BACKGROUND, dtype=np.uint8)
    image[250:650, 300:700] = synthetic_tissue(400, 400, seed=1)
    return write_slide(
        tmp_path_factory.mktemp("warp") / "ihc.svs", halves(image, 2), style="aperio", compression="jpeg2000",
        tile=256, icc_profile=srgb_profile(), mpp=0.5,
    )  # fmt: skip


def transform_onto(ihc: Path, **changes: Any) -> Transform:
    """A turn by 20°, a field, and an H&E slide of 0.4 µm/px."""
    angle = np.deg2rad(20)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 100], [np.sin(angle), np.cos(angle), -40]])
    field = LocalField((0.0, 0.0), 100.0, np.random.default_rng(0).normal(0, 5, (6, 7, 2)))
    with open_slide(ihc) as slide:
        moving = frame_of(slide.info)
    transform = Transform(matrix, field, SlideFrame("he.svs", SIZE, (0.4, 0.4), "abc"), moving)
    return dataclasses.replace(transform, **changes)


@pytest.fixture
def saved(ihc: Path, tmp_path: Path) -> Path:
    return save_transform(tmp_path / "pair", transform_onto(ihc))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_file_holds_the_warped_pixels(ihc: Path, tmp_path: Path) -> None:
    transform, out = transform_onto(ihc), tmp_path / "out.ome.tiff"
    told: list[Progress] = []
    with open_slide(ihc) as slide:
        report = warp_slide(slide, transform, out, WarpOptions(tissue="none", pyramid=LOSSLESS), progress=told.append)
        x, y = ((np.arange(side) + 0.5) * 0.4 for side in (SIZE.width, SIZE.height))
        expected = read_warped(slide, transform, 0.5, x, y, report.background)
    assert np.abs(np.subtract(report.background, BACKGROUND)).max() <= 2
    np.testing.assert_array_equal(read_level(out, 0), expected.pixels)
    assert report.output_size == SIZE
    assert report.output_mpp == (0.4, 0.4)
    assert report.transform == fingerprint(transform)
    done = [progress.done for progress in told if progress.stage == "warping"]
    assert done == sorted(done)
    assert done[-1] == next(progress.total for progress in told if progress.stage == "warping") == report.written_px
    with open_slide(out) as result:
        assert result.info.size == SIZE
        assert result.info.mpp == pytest.approx((0.4, 0.4))
        assert result.info.icc_profile == srgb_profile()
        assert result.info.magnification == pytest.approx(25)  # 20x at 0.5 µm/px
        assert len(result.info.levels) >= 3


def test_an_area_without_tissue_is_background(ihc: Path, tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 500], [np.sin(angle), np.cos(angle), -100]])
    transform = Transform(matrix, fixed=SlideFrame("he.svs", SIZE, (2.0, 2.0)))
    small = PyramidOptions(tile_px=64, compression="deflate")
    with open_slide(ihc, mpp=2) as slide:
        auto = warp_slide(slide, transform, tmp_path / "auto.ome.tiff", WarpOptions(pyramid=small))
        whole = warp_slide(slide, transform, tmp_path / "whole.ome.tiff", WarpOptions(tissue="none", pyramid=small))
    assert 0.1 * whole.written_px < auto.written_px < 0.7 * whole.written_px
    assert auto.on_slide > 0.99
    one, other = read_level(tmp_path / "auto.ome.tiff", 0), read_level(tmp_path / "whole.ome.tiff", 0)
    left_out = (one != other).any(axis=-1)
    assert (one[left_out] == auto.background).all()
    tissue = np.abs(other.astype(int) - auto.background).max(axis=-1) > 12
    np.testing.assert_array_equal(one[tissue], other[tissue])


def test_a_slide_without_tissue_is_still_written(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "empty.tif", np.full((600, 700, 3), BACKGROUND, np.uint8), compression="deflate")
    transform = Transform(np.eye(2, 3), fixed=SlideFrame("he.svs", Size(500, 400), (0.5, 0.5)))
    with open_slide(path) as slide:
        report = warp_slide(slide, transform, tmp_path / "out.ome.tiff", WarpOptions(pyramid=LOSSLESS))
    assert any("No tissue" in warning for warning in report.warnings)
    assert (read_level(tmp_path / "out.ome.tiff", 0) == BACKGROUND).all()


def test_threads_and_tiles_change_nothing(ihc: Path, tmp_path: Path) -> None:
    outputs = []
    with open_slide(ihc) as slide:
        for number, (workers, tile_px) in enumerate([(1, 256), (4, 256), (2, 112)]):
            out = tmp_path / f"{number}.ome.tiff"
            pyramid = dataclasses.replace(LOSSLESS, tile_px=tile_px)
            warp_slide(slide, transform_onto(ihc), out, WarpOptions(tissue="none", workers=workers, pyramid=pyramid))
            outputs.append(read_level(out, 0))
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_the_command_summarizes_the_output(ihc: Path, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    result = invoke(ihc, saved.parent, out, "--mpp", "1")
    assert result.exit_code == 0, result.output
    for fact in ("520×400 px at 1 µm/px", "ihc.svs", "he.svs", "Mpx/s", "not for diagnosis"):
        assert fact in result.output
    assert "virtual" not in result.output
    report = json.loads(invoke(ihc, saved, out, "--mpp", "1", "--json", "-q", "--overwrite").stdout)
    assert report["output_size"] == {"width": 520, "height": 400}
    assert report["source"]["name"] == "ihc.svs"
    assert str(tmp_path) not in json.dumps(report)
    assert invoke(ihc, saved, out, "-q", "--overwrite").output == ""


def test_the_file_describes_its_content(ihc: Path, saved: Path, tmp_path: Path) -> None:
    import tifffile

    out = tmp_path / "out.ome.tiff"
    assert invoke(ihc, saved, out, "-q", "--tile-size", "128", "--compression", "deflate").exit_code == 0
    with tifffile.TiffFile(out) as tiff:
        assert tiff.is_ome
        page = tiff.pages.first
        text = page.description
        assert page.tilewidth == 128
    assert "not for diagnosis" in text
    assert "virtual" not in text
    assert f"sha256:{fingerprint(transform_onto(ihc))}" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moving": SlideFrame("other.svs", Size(1200, 901), (0.5, 0.5))}, "1200×901"),
        ({"moving": SlideFrame("other.svs", Size(1200, 900), (0.5, 0.5), "0" * 64)}, "hash"),
        ({"moving": SlideFrame("other.svs", Size(1200, 900), (0.25, 0.25))}, "0.25"),
        ({"fixed": None}, "fixed slide"),
    ],
)
def test_transforms_of_other_slides(ihc: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with open_slide(ihc) as slide, pytest.raises(TransformError) as caught:
        warp_slide(slide, transform_onto(ihc, **changes), tmp_path / "out.ome.tiff")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_readers_hash_is_not_compared(ihc: Path, tmp_path: Path) -> None:
    frame = SlideFrame("ihc.svs", Size(1200, 900), (0.5, 0.5), "sha256:" + "0" * 64)
    with open_slide(ihc) as slide:
        warp_slide(slide, transform_onto(ihc, moving=frame), tmp_path / "out.ome.tiff", WarpOptions(mpp=2))


def test_the_resolution_comes_from_the_registration(tmp_path: Path) -> None:
    image = np.full((400, 500, 3), BACKGROUND, np.uint8)
    image[100:300, 100:300] = synthetic_tissue(200, 200, seed=1)
    bare = write_slide(tmp_path / "bare.tif", image, compression="deflate", mpp=None)
    fixed = SlideFrame("he.svs", Size(500, 400), (1.0, 1.0))
    path = save_transform(tmp_path / "a", Transform(np.eye(2, 3), None, fixed, SlideFrame("b", Size(500, 400), (1, 1))))
    assert (
        invoke(bare, path, tmp_path / "1.ome.tiff", "-q", "--tissue", "none", "--compression", "deflate").output == ""
    )
    np.testing.assert_array_equal(read_level(tmp_path / "1.ome.tiff", 0), image)
    report = json.loads(invoke(bare, path, tmp_path / "3.ome.tiff", "--json", "-q").stdout)
    assert report["source"]["mpp"] == [1.0, 1.0]
    assert any("does not say its resolution; the 1 that it was registered with" in one for one in report["warnings"])
    unknown = save_transform(tmp_path / "b", Transform(np.eye(2, 3), None, fixed))
    assert isinstance(invoke(bare, unknown, tmp_path / "2.ome.tiff").exception, MissingResolutionError)
    assert invoke(bare, unknown, tmp_path / "2.ome.tiff", "-q", "--ihc-mpp", "1").exit_code == 0


def test_the_registrations_resolution_wins(ihc: Path, tmp_path: Path) -> None:
    """It was registered as a slide of 0.25 µm/px, though it says 0.5."""
    with open_slide(ihc, mpp=0.25) as slide:
        moving, background = frame_of(slide.info), whole_slide(slide).background
        x, y = ((np.arange(side) + 0.5) * 0.4 for side in (SIZE.width, SIZE.height))
        expected = read_warped(slide, transform_onto(ihc), 0.4, x, y, background)
    path = save_transform(tmp_path / "pair", transform_onto(ihc, moving=moving))
    out = tmp_path / "out.ome.tiff"
    arguments = (ihc, path, out, "--tissue", "none", "--compression", "deflate")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "note    The slide says 0.5 µm/px; the 0.25 that it was registered with are used" in result.output
    np.testing.assert_array_equal(read_level(out, 0), expected.pixels)
    stated = invoke(*arguments, "--overwrite", "--ihc-mpp", "0.5")
    assert isinstance(stated.exception, TransformError)
    assert "state that one with --ihc-mpp" in str(stated.exception)
    # as far apart as two readers of one file may be
    close = SlideFrame("ihc.svs", Size(1200, 900), (0.502, 0.502))
    save_transform(tmp_path / "pair", transform_onto(ihc, moving=close))
    assert "note" not in invoke(*arguments, "--overwrite").output


def test_bad_input_is_reported(ihc: Path, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    assert invoke().exit_code == 2
    assert invoke(ihc, saved, out, "--mpp", "-1").exit_code == 2
    for arguments, kind in (
        ((ihc, tmp_path / "none.json", out), TransformError),
        ((ihc, saved, tmp_path / "out.png"), OutputError),
        ((ihc, saved, out, "--tile-size", "100"), OptionError),
        ((ihc, saved, out, "--mpp", "90"), OptionError),
    ):
        assert isinstance(invoke(*arguments).exception, kind)
    out.write_bytes(b"there")
    assert isinstance(invoke(ihc, saved, out).exception, OutputExistsError)
    assert out.read_bytes() == b"there"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.ome.tiff", "pair"]


def test_an_input_is_not_replaced(ihc: Path, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.ome.tiff"
    copy.write_bytes(ihc.read_bytes())
    assert isinstance(invoke(copy, saved, copy, "--overwrite").exception, OutputError)
    assert copy.read_bytes() == ihc.read_bytes()


def test_another_file_is_refused_but_for_any_slide(ihc: Path, tmp_path: Path) -> None:
    other = tmp_path / "ihc.svs"
    with open_slide(ihc) as slide:
        pixels = slide.read_level(0, slide.info.bounds)[:, ::-1]
    write_slide(other, halves(np.ascontiguousarray(pixels), 2), style="aperio", tile=256, mpp=0.5)
    saved = save_transform(tmp_path / "pair", transform_onto(ihc))
    out = tmp_path / "out.ome.tiff"
    refused = invoke(other, saved, out)
    assert isinstance(refused.exception, TransformError)
    assert "this is another file than the one of this name that the transform was made for" in str(refused.exception)
    assert str(refused.exception).endswith("or accept it with --any-slide")
    assert invoke(other, saved, out, "-q", "--any-slide").exit_code == 0
    renamed = other.with_name("renamed.svs")
    renamed.write_bytes(ihc.read_bytes())
    assert "note" not in invoke(renamed, saved, out, "--overwrite").output


def test_a_name_without_hash_causes_a_warning(ihc: Path, tmp_path: Path) -> None:
    frame = SlideFrame("other.svs", Size(1200, 900), (0.5, 0.5))
    saved = save_transform(tmp_path / "pair", transform_onto(ihc, moving=frame))
    result = invoke(ihc, saved, tmp_path / "out.ome.tiff", "--mpp", "2")
    assert "note    The transform was made for other.svs; whether ihc.svs is that slide is unknown" in result.output


def test_the_folder_is_made_and_the_report_lies_beside(ihc: Path, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "out.ome.tiff"
    assert isinstance(invoke(ihc, saved, out.with_name("out.png")).exception, OutputError)
    assert isinstance(invoke(ihc, saved, out, "--mpp", "90").exception, OptionError)
    assert not (tmp_path / "new").exists()
    told = json.loads(invoke(ihc, saved, out, "--mpp", "2", "--json", "-q").stdout)
    beside = out.with_name("out.ome.tiff.json")
    assert json.loads(beside.read_text(encoding="utf-8")) == told
    out.unlink()
    assert invoke(ihc, saved, out, "--mpp", "2", "-q").exit_code == 0  # as after a run that was killed at the end
    out.unlink()
    beside.write_text("{}")
    assert isinstance(invoke(ihc, saved, out, "--mpp", "2").exception, OutputExistsError)
    assert invoke(ihc, saved, out, "--mpp", "2", "-q", "--overwrite").exit_code == 0


def test_a_transform_that_looks_elsewhere(ihc: Path, tmp_path: Path) -> None:
    """Nothing of the slide is in the frame: background everywhere."""
    away = transform_onto(ihc, matrix=np.array([[1, 0, 1e5], [0, 1, 0.0]]))
    with open_slide(ihc) as slide:
        report = warp_slide(slide, away, tmp_path / "out.ome.tiff", WarpOptions(mpp=2, pyramid=LOSSLESS))
        assert report.written_px == 0
        assert slide.read_level(0, Region(0, 0, 1, 1)).shape == (1, 1, 3)
    assert (read_level(tmp_path / "out.ome.tiff", 0) == report.background).all()
