"""Lower levels that do not show what level 0 shows are noticed before anything follows from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_slides import halves, write_slide

import wsi2ihc
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.geometry import Region, RGBImage
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.registration.report import write_registration
from wsi2ihc.slide import agreeing_levels, level_problems, slide_view
from wsi2ihc.tissue import detect_tissue, load_mask, save_mask, whole_slide
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.stages import FaultTolerantSlide

BACKGROUND = (243, 241, 240)


@functools.cache
def slide_pixels(seed: int = 5) -> RGBImage:
    """Two pieces of tissue on 3000×2400 px."""
    pixels = np.empty((2400, 3000, 3), np.uint8)
    pixels[:] = BACKGROUND
    tissue = synthetic_tissue(900, 700, seed=seed)
    pixels[200:900, 200:1100] = tissue
    pixels[1500:2200, 1900:2800] = tissue[::-1]
    return pixels


def padded(level: RGBImage) -> RGBImage:
    rows, columns = (-(-side // 256) * 256 for side in level.shape[:2])
    result = np.full((rows + 256, columns + 256, 3), 255, np.uint8)
    result[: level.shape[0], : level.shape[1]] = level
    return result


def shifted(level: RGBImage) -> RGBImage:
    return np.roll(level, (level.shape[0] // 12, level.shape[1] // 15), axis=(0, 1))


def of_another_slide(level: RGBImage) -> RGBImage:
    pixels = np.flip(slide_pixels(11), axis=(0, 1))
    step = round(pixels.shape[0] / level.shape[0])
    return np.ascontiguousarray(pixels[::step, ::step][: level.shape[0], : level.shape[1]])


def without_a_piece(level: RGBImage) -> RGBImage:
    result = level.copy()
    result[level.shape[0] // 2 :] = 255
    return result


def mirrored(level: RGBImage) -> RGBImage:
    return np.ascontiguousarray(level[:, ::-1])


@pytest.mark.parametrize("fault", [padded, shifted, of_another_slide, without_a_piece, mirrored])
@pytest.mark.parametrize("first_wrong", [1, 2])
def test_levels_that_do_not_show_the_slide_are_left_out(
    tmp_path: Path, fault: Callable[[RGBImage], RGBImage], first_wrong: int
) -> None:
    levels = halves(slide_pixels(), 4)
    wrong = [*levels[:first_wrong], *(fault(level) for level in levels[first_wrong:])]
    path = write_slide(tmp_path / "slide.tif", wrong, mpp=0.5)
    true = write_slide(tmp_path / "true.tif", levels, mpp=0.5)
    with wsi2ihc.open_slide(path) as slide, wsi2ihc.open_slide(true) as true_slide:
        kept = agreeing_levels(slide)
        assert [level.size for level in kept.info.levels] == [level.size for level in slide.info.levels[:first_wrong]]
        assert "do not show what level 0 shows" in kept.info.problems[-1]
        assert level_problems(slide) == kept.info.problems[-1:]
        assert level_problems(kept) == level_problems(true_slide) == ()
        mask, expected = detect_tissue(slide), detect_tissue(true_slide)
    assert "do not show what level 0 shows" in mask.warnings[0]
    assert mask.pixels.shape == expected.pixels.shape
    assert (mask.pixels != expected.pixels).mean() < 0.01


@pytest.mark.parametrize("how", [{"quality": 60}, {"compression": "deflate"}, {"style": "aperio"}])
def test_true_levels_are_all_kept(tmp_path: Path, how: dict[str, str]) -> None:
    path = write_slide(tmp_path / "slide.svs", halves(slide_pixels(), 4), **how)
    with wsi2ihc.open_slide(path) as slide:
        kept = agreeing_levels(slide)
        assert kept.info.levels == slide.info.levels
        assert kept.info.problems == slide.info.problems
        assert agreeing_levels(kept) is kept
        region = Region(100, 100, 200, 300)
        np.testing.assert_array_equal(kept.read_level(1, region), slide.read_level(1, region))


def test_tiles_missing_from_level_0_say_nothing_of_the_lower_levels(tmp_path: Path) -> None:
    missing = frozenset((0, row, column) for row in range(6, 9) for column in range(12))
    path = write_slide(tmp_path / "slide.tif", halves(slide_pixels(), 3), missing=missing)
    with wsi2ihc.open_slide(path) as slide:
        assert agreeing_levels(slide).info.levels == slide.info.levels


def test_levels_are_compared_once_per_open_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    find = slide_view._find_disagreeing
    monkeypatch.setattr(slide_view, "_find_disagreeing", lambda slide: compared.append(slide) or find(slide))
    path = write_slide(tmp_path / "slide.tif", halves(slide_pixels(), 4), mpp=0.5)
    with wsi2ihc.open_slide(path) as slide:
        assert compared == []
        detect_tissue(slide)
        whole_slide(FaultTolerantSlide(slide))
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff")
        assert compared == [slide]


def test_damage_that_reads_as_missing_does_not_reject_lower_levels(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", halves(slide_pixels(), 4), compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offsets = np.reshape(tiff.pages[0].dataoffsets, (10, 12))
    with path.open("r+b") as file:
        for offset in offsets[1:3, 1:4].ravel().tolist():
            file.seek(offset)
            file.write(bytes(16))
    with wsi2ihc.open_slide(path) as slide:
        assert FaultTolerantSlide(slide).info.levels == slide.info.levels


@pytest.mark.parametrize("kind", ["none", "file"])
def test_background_is_measured_on_levels_that_agree(tmp_path: Path, kind: str) -> None:
    levels = halves(slide_pixels(), 4)
    gray = [np.full_like(level, 200) for level in levels[1:]]
    path = write_slide(tmp_path / "slide.tif", [levels[0], *gray], mpp=0.5, compression="deflate")
    with wsi2ihc.open_slide(path) as slide:
        if kind == "file":
            save_mask(detect_tissue(slide), tmp_path / "mask.png")
        mask = whole_slide(slide) if kind == "none" else load_mask(tmp_path / "mask.png", slide)
    assert mask.background == BACKGROUND
    assert "do not show what level 0 shows" in mask.warnings[0]


def test_figures_of_a_registration_show_levels_that_agree(tmp_path: Path) -> None:
    levels = halves(slide_pixels(), 4)
    wrong = write_slide(tmp_path / "slide.tif", [levels[0], *map(mirrored, levels[1:])], mpp=0.5, compression="deflate")
    (tmp_path / "true").mkdir()
    true = write_slide(tmp_path / "true" / "slide.tif", levels[0], mpp=0.5, compression="deflate")
    for path in (wrong, true):
        with wsi2ihc.open_slide(path) as slide:
            write_registration(path.parent / "out", slide, slide, None, {})
    figures = [(path.parent / "out" / "before.png").read_bytes() for path in (wrong, true)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("resume", [False, True])
def test_no_tissue_is_painted_out_where_lower_levels_are_wrong(tmp_path: Path, resume: bool) -> None:
    pixels = slide_pixels()
    levels = halves(pixels, 4)
    path = write_slide(tmp_path / "slide.tif", [levels[0], *map(without_a_piece, levels[1:])], compression="deflate")
    out = tmp_path / "out.ome.tiff"
    options = TranslateOptions(pyramid=PyramidOptions(compression="deflate"), resume=resume)
    with wsi2ihc.open_slide(path) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options)

    result = np.asarray(tifffile.imread(out))
    np.testing.assert_array_equal(result[1500:2200, 1900:2800], pixels[1500:2200, 1900:2800])
    assert any("do not show what level 0 shows" in warning for warning in report.warnings)
