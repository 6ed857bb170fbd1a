"""From a slide file to an OME-TIFF, as a user runs it from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_slides import halves, write_slide

import wsi2ihc
from wsi2ihc.arrays import RGBBatch, RGBImage
from wsi2ihc.errors import NoTissueError, OptionError, OutputExistsError, UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.forecast import forecast
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.pipeline import prepare, run

LOSSLESS = PyramidOptions(compression="deflate", tile_px=256)
EVERYTHING = TranslateOptions(tissue="none", pyramid=LOSSLESS)


def level0(path: Path) -> RGBImage:
    return np.asarray(tifffile.imread(path))


def test_identity_gives_back_the_slide(slide_file: Path, picture: RGBImage, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), out, EVERYTHING)
    np.testing.assert_array_equal(level0(out), picture)
    assert report.output_mpp == (0.5, 0.5)
    assert report.unreadable_regions == 0


@pytest.mark.parametrize("core_px", [100, 256, 333, 1000])
@pytest.mark.parametrize("blend", ["auto", "overlap"])
def test_identity_whatever_the_cells(
    slide_file: Path, picture: RGBImage, tmp_path: Path, core_px: int, blend: str
) -> None:
    out = tmp_path / "out.ome.tiff"
    options = TranslateOptions(tissue="none", pyramid=LOSSLESS, core_px=core_px, blend=blend)  # type: ignore[arg-type]
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), out, options)
    np.testing.assert_array_equal(level0(out), picture)


def test_a_region_is_a_crop_of_the_whole(slide_file: Path, picture: RGBImage, tmp_path: Path) -> None:
    out, region = tmp_path / "part.ome.tiff", Region(407, 311, 500, 301)
    options = TranslateOptions(tissue="none", pyramid=LOSSLESS, region=region)
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), out, options)
    np.testing.assert_array_equal(level0(out), picture[311:612, 407:907])


def test_only_tissue_is_translated_and_glass_is_filled(slide_file: Path, picture: RGBImage, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), out, TranslateOptions(pyramid=LOSSLESS))
    result = level0(out)
    np.testing.assert_array_equal(result[203:903, 301:1201], picture[203:903, 301:1201])
    assert np.abs(result[:40].astype(int) - np.array(report.fill)).max() == 0
    assert 0.3 < report.tissue_share < 0.8
    assert report.plan["kept_px"] < 1500 * 1100


def test_the_report_beside_the_file_tells_no_folder(slide_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_generator("counterstain"), out)
    text = (tmp_path / "out.ome.tiff.json").read_text()
    assert json.loads(text) == report.to_json()
    assert json.loads(text)["source"]["name"] == "tissue.svs"
    xml = tifffile.tiffcomment(out)
    for content in (text, xml):
        assert str(tmp_path) not in content
        assert str(slide_file.parent) not in content
        assert "not for diagnosis" in content
    assert "counterstain" in xml
    assert report.source["quickhash"] in xml


def test_an_output_is_not_overwritten_unasked(slide_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    out.write_bytes(b"precious")
    generator = wsi2ihc.load_generator("identity")
    with wsi2ihc.open_slide(slide_file) as slide:
        with pytest.raises(OutputExistsError, match=r"out\.ome\.tiff"):
            wsi2ihc.translate(slide, generator, out)
        assert out.read_bytes() == b"precious"
        wsi2ihc.translate(slide, generator, out, TranslateOptions(overwrite=True))
    assert level0(out).shape == (1100, 1500, 3)


def test_no_tissue_in_the_region(slide_file: Path, tmp_path: Path) -> None:
    options = TranslateOptions(region=Region(0, 0, 60, 60))
    with wsi2ihc.open_slide(slide_file) as slide:
        with pytest.raises(NoTissueError, match="region"):
            wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), tmp_path / "out.ome.tiff", options)
        outside = TranslateOptions(region=Region(5000, 0, 60, 60))
        with pytest.raises(OptionError, match="outside"):
            wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), tmp_path / "out.ome.tiff", outside)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def damaged_file(picture: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as a tiled JPEG slide, with the tile at column 2, row 1 of level 0 overwritten."""
    path = tmp_path_factory.mktemp("damaged") / "damaged.svs"
    write_slide(path, halves(picture, 2), style="aperio", compression="jpeg", tile=256, mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        index = 1 * -(-page.imagewidth // 256) + 2
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    return path


def test_a_damaged_place_fails_naming_it_and_leaves_nothing(damaged_file: Path, tmp_path: Path) -> None:
    with (
        wsi2ihc.open_slide(damaged_file) as slide,
        pytest.raises(UnreadableSlideError, match=r"x 512, y 256") as caught,
    ):
        wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), tmp_path / "out.ome.tiff")
    assert "damaged.svs" in str(caught.value)
    assert "--on-read-error" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_place_can_count_as_glass(damaged_file: Path, picture: RGBImage, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    options = TranslateOptions(on_read_error="glass", pyramid=LOSSLESS)
    with wsi2ihc.open_slide(damaged_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_generator("identity"), out, options)
    assert report.unreadable_regions >= 1
    assert any("could not be read" in warning for warning in report.warnings)
    result = level0(out).astype(int)
    assert (result[256:512, 512:768] == report.glass).all()
    around = np.abs(result - picture)[240:540, 480:800]
    around[16:272, 32:288] = 0
    assert around.max() < 60  # JPEG's error alone: no more than the tile is lost


class Failing:
    """A generator that breaks at its fifth call."""

    halo_px, lattice_px, multiple_px, is_exact, bytes_per_px = 0, 1, 1, True, 0.0

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        self.calls += 1
        if self.calls == 5:
            raise self.error
        return windows


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), MemoryError()])
def test_nothing_is_left_when_the_generator_breaks(slide_file: Path, tmp_path: Path, error: BaseException) -> None:
    options = TranslateOptions(core_px=128)
    with wsi2ihc.open_slide(slide_file) as slide:
        job = prepare(slide, wsi2ihc.load_generator("identity"), options, translators=[Failing(error)])
        with pytest.raises(type(error)):
            run(job, tmp_path / "out.ome.tiff")
    assert not list(tmp_path.iterdir())


def test_a_forecast_comes_near_what_is_done(slide_file: Path, tmp_path: Path) -> None:
    with wsi2ihc.open_slide(slide_file) as slide:
        job = prepare(slide, wsi2ihc.load_generator("counterstain"), TranslateOptions())
        outlook = forecast(job)
        assert not list(tmp_path.iterdir())
        report = run(job, tmp_path / "out.ome.tiff")
    assert outlook.windows == report.plan["windows"]
    assert outlook.window_px == report.plan["window_px"]
    assert 0.2 < outlook.output_bytes / report.output_bytes < 5
    assert outlook.memory_bytes < 4 * 1024**3


def test_a_preview_shows_both_halves(slide_file: Path, tmp_path: Path) -> None:
    preview = tmp_path / "both.png"
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(
            slide,
            wsi2ihc.load_generator("identity"),
            tmp_path / "out.ome.tiff",
            TranslateOptions(tissue="none", preview=preview, pyramid=LOSSLESS),
        )
    from PIL import Image

    both = np.asarray(Image.open(preview)).astype(int)
    left, right = both[:, :1500], both[:, -1500:]
    assert both.shape == (1100, 3008, 3)
    assert np.abs(left - right).max() == 0
