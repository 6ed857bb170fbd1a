"""Translation of a slide file to an OME-TIFF in one pass."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from make_slides import halves, write_slide
from PIL import Image

import wsi2ihc
from wsi2ihc.errors import NoTissueError, OptionError, OutputError, OutputExistsError, UnreadableSlideError
from wsi2ihc.geometry import Region, RGBBatch, RGBImage
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.job import prepare
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.report import estimate_translation
from wsi2ihc.translation.stages import FaultTolerantSlide
from wsi2ihc.translation.translate import translate_job

LOSSLESS = PyramidOptions(compression="deflate", tile_px=256)
EVERYTHING = TranslateOptions(tissue="none", pyramid=LOSSLESS)


def level0(path: Path) -> RGBImage:
    return np.asarray(tifffile.imread(path))


def test_the_identity_model_returns_the_slide(slide_file: Path, image: RGBImage, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, EVERYTHING)
    np.testing.assert_array_equal(level0(out), image)
    assert report.output_mpp == (0.5, 0.5)
    assert report.unreadable_regions == 0


@pytest.mark.parametrize("core_px", [100, 256, 333, 1000])
@pytest.mark.parametrize("blend", ["auto", "overlap"])
def test_the_identity_model_returns_the_slide_for_any_core_size(
    slide_file: Path, image: RGBImage, tmp_path: Path, core_px: int, blend: str
) -> None:
    out = tmp_path / "out.ome.tiff"
    options = TranslateOptions(tissue="none", pyramid=LOSSLESS, core_px=core_px, blend=blend)  # type: ignore[arg-type]
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options)
    np.testing.assert_array_equal(level0(out), image)


def test_a_region_is_a_crop_of_the_whole(slide_file: Path, image: RGBImage, tmp_path: Path) -> None:
    out, region = tmp_path / "part.ome.tiff", Region(407, 311, 500, 301)
    options = TranslateOptions(tissue="none", pyramid=LOSSLESS, region=region)
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options)
    np.testing.assert_array_equal(level0(out), image[311:612, 407:907])


def test_only_tissue_is_translated_and_background_is_filled(slide_file: Path, image: RGBImage, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, TranslateOptions(pyramid=LOSSLESS))
    result = level0(out)
    np.testing.assert_array_equal(result[203:903, 301:1201], image[203:903, 301:1201])
    assert np.abs(result[:40].astype(int) - np.array(report.fill)).max() == 0
    assert 0.3 < report.tissue_share < 0.8
    assert report.plan["kept_px"] < 1500 * 1100


@pytest.mark.parametrize("bands", [False, True])
def test_pixels_stored_beside_missing_tiles_are_kept(image: RGBImage, tmp_path: Path, bands: bool) -> None:
    missing = {(0, 0, 0), (0, 1, 2), (0, 1, 3), (0, 2, 3), (0, 4, 5)}
    path = write_slide(tmp_path / "sparse.tif", image, compression="deflate", tile=256, missing=frozenset(missing))
    expected = image.copy()
    for _, row, column in missing:
        expected[256 * row : 256 * row + 256, 256 * column : 256 * column + 256] = 255
    out, options = tmp_path / "out.ome.tiff", dataclasses.replace(EVERYTHING, resume=bands)
    with wsi2ihc.open_slide(path) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options)
    stored = (expected < 255).any(axis=2)
    np.testing.assert_array_equal(level0(out)[stored], image[stored])
    deviation = np.abs(level0(out)[~stored].astype(int) - report.fill).max(), np.ptp((255, *report.fill))
    assert deviation[0] <= deviation[1]


def test_an_output_of_a_slide_with_missing_edges_records_its_bounds(image: RGBImage, tmp_path: Path) -> None:
    missing = {(0, row, column) for row in range(5) for column in range(6) if row == 0 or column == 0}
    path = write_slide(tmp_path / "edge.tif", image, compression="deflate", tile=256, missing=frozenset(missing))
    with wsi2ihc.open_slide(path) as slide:
        bounds, notes = slide.info.bounds, slide.info.problems
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", EVERYTHING)
    assert (bounds.x, bounds.y, bounds.right, bounds.bottom) == (256, 256, 1500, 1100)
    assert any("at (256, 256) of it are scanned; outputs cover this area" in note for note in notes)
    assert report.source["bounds"] == [256, 256, 1244, 844]
    np.testing.assert_array_equal(level0(tmp_path / "out.ome.tiff"), image[256:, 256:])


@pytest.mark.parametrize("suffix", ["png", "geojson"])
def test_everything_inside_a_tight_mask_is_fully_translated(
    slide_file: Path, image: RGBImage, tmp_path: Path, suffix: str
) -> None:
    mask = tmp_path / f"mask.{suffix}"
    inside = np.zeros((1100, 1500), np.bool_)
    inside[200:904, 300:1204] = True
    if suffix == "png":
        Image.fromarray(inside[::4, ::4]).save(mask)
    else:
        ring = [[300, 200], [1204, 200], [1204, 904], [300, 904], [300, 200]]
        mask.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(
            slide, wsi2ihc.load_model("identity"), out, TranslateOptions(tissue=mask, pyramid=LOSSLESS)
        )
    np.testing.assert_array_equal(level0(out)[inside], image[inside])
    assert report.tissue_share == pytest.approx(inside.mean(), rel=0.03)
    assert (level0(out)[:60] == report.fill).all()


def test_the_report_contains_no_paths(slide_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("counterstain"), out)
    text = (tmp_path / "out.ome.tiff.json").read_text()
    assert json.loads(text) == report.to_json()
    assert json.loads(text)["source"]["name"] == "tissue.svs"
    xml = tifffile.tiffcomment(out)
    for content in (text, xml):
        assert str(tmp_path) not in content
        assert str(slide_file.parent) not in content
        assert "not for diagnosis" in content
    assert "counterstain" in xml
    assert "Takes the eosin out" in xml
    assert report.source["quickhash"] in xml


def test_an_output_is_not_replaced_without_overwrite(slide_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    out.write_bytes(b"precious")
    generator = wsi2ihc.load_model("identity")
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
            wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", options)
        outside = TranslateOptions(region=Region(5000, 0, 60, 60))
        with pytest.raises(OptionError, match="outside"):
            wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", outside)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def damaged_file(image: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a tiled JPEG slide, with the tile at column 2, row 1 of level 0 overwritten."""
    path = tmp_path_factory.mktemp("damaged") / "damaged.svs"
    write_slide(path, halves(image, 2), style="aperio", compression="jpeg", tile=256, mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        index = 1 * -(-page.imagewidth // 256) + 2
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    return path


def test_damage_fails_with_its_position_and_leaves_no_files(damaged_file: Path, tmp_path: Path) -> None:
    with (
        wsi2ihc.open_slide(damaged_file) as slide,
        pytest.raises(UnreadableSlideError, match=r"x 512, y 256") as caught,
    ):
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff")
    assert "damaged.svs" in str(caught.value)
    assert "--on-read-error" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_damaged_areas_can_be_filled_with_background(damaged_file: Path, image: RGBImage, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.tiff"
    options = TranslateOptions(on_read_error="background", pyramid=LOSSLESS)
    with wsi2ihc.open_slide(damaged_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, options)
    assert report.unreadable_regions >= 1
    assert any("could not be read" in warning for warning in report.warnings)
    result = level0(out).astype(int)
    assert (result[256:512, 512:768] == report.background).all()
    around = np.abs(result - image)[240:540, 480:800]
    around[16:272, 32:288] = 0
    assert around.max() < 60  # the error of JPEG alone: only the tile is lost


class Failing:
    """Translator that fails at its fifth call."""

    halo_px, stride_px, multiple_px, is_exact, bytes_per_px = 0, 1, 1, True, 0.0

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        self.calls += 1
        if self.calls == 5:
            raise self.error
        return windows


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), MemoryError()])
def test_a_failing_generator_leaves_no_files(slide_file: Path, tmp_path: Path, error: BaseException) -> None:
    options = TranslateOptions(core_px=128)
    with wsi2ihc.open_slide(slide_file) as slide:
        job = prepare(slide, wsi2ihc.load_model("identity"), options, translators=[Failing(error)])
        with pytest.raises(type(error)):
            translate_job(job, tmp_path / "out.ome.tiff")
    assert not list(tmp_path.iterdir())


def test_the_estimate_is_close_to_the_report(slide_file: Path, tmp_path: Path) -> None:
    with wsi2ihc.open_slide(slide_file) as slide:
        job = prepare(slide, wsi2ihc.load_model("counterstain"), TranslateOptions())
        estimate = estimate_translation(job, Path("out.ome.tiff"))
        assert estimate_translation(job, Path("out.ome.zarr")).output_bytes > 5 * estimate.output_bytes, (
            "it is lossless"
        )
        assert not list(tmp_path.iterdir())
        report = translate_job(job, tmp_path / "out.ome.tiff")
    assert estimate.windows == report.plan["windows"]
    assert estimate.window_px == report.plan["window_px"]
    assert 0.2 < estimate.output_bytes / report.output_bytes < 5
    assert estimate.memory_bytes < 4 * 1024**3


def test_a_preview_shows_both_halves(slide_file: Path, tmp_path: Path) -> None:
    preview = tmp_path / "both.png"
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(
            slide,
            wsi2ihc.load_model("identity"),
            tmp_path / "out.ome.tiff",
            TranslateOptions(tissue="none", preview=preview, pyramid=LOSSLESS),
        )
    from PIL import Image

    with Image.open(preview) as image:
        both = np.asarray(image).astype(int)
        assert "not for diagnosis" in image.info["Description"]
    left, right = both[:, :1500], both[:, -1500:]
    assert both.shape == (1100, 3008, 3)
    assert np.abs(left - right).max() == 0


def test_an_input_is_never_overwritten(slide_file: Path, image: RGBImage, tmp_path: Path) -> None:
    identity, slide_name = wsi2ihc.load_model("identity"), tmp_path / "slide.ome.tiff"
    slide_name.write_bytes(slide_file.read_bytes())
    (tmp_path / "other.ome.tiff").symlink_to(slide_name)
    before = slide_name.read_bytes()
    for output in (slide_name, tmp_path / "other.ome.tiff"):
        with wsi2ihc.open_slide(slide_name) as slide, pytest.raises(OutputError, match="also an input"):
            wsi2ihc.translate(slide, identity, output, TranslateOptions(overwrite=True))
    mask = tmp_path / "mask.png"
    cv2.imwrite(str(mask), np.full((110, 150), 255, dtype=np.uint8))
    options = TranslateOptions(overwrite=True, tissue=mask, preview=mask)
    with wsi2ihc.open_slide(slide_file) as slide, pytest.raises(OutputError, match="also an input"):
        wsi2ihc.translate(slide, identity, tmp_path / "new.ome.tiff", options)
    assert slide_name.read_bytes() == before


def test_an_existing_report_is_not_replaced_without_overwrite(slide_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out.ome.tiff.json").write_text("mine")
    with wsi2ihc.open_slide(slide_file) as slide, pytest.raises(OutputExistsError, match="json"):
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff")
    assert (tmp_path / "out.ome.tiff.json").read_text() == "mine"


@pytest.mark.parametrize(("tissue", "share"), [("none", 1.0), ("auto", 1.0)])
def test_the_tissue_fraction_is_that_of_the_region(slide_file: Path, tmp_path: Path, tissue: str, share: float) -> None:
    options = TranslateOptions(tissue=tissue, region=Region(500, 400, 101, 77))  # in the middle of the tissue
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", options)
    assert report.tissue_share == pytest.approx(share, abs=1e-9)


def test_a_region_beyond_the_slide_is_clipped_with_a_warning(slide_file: Path, tmp_path: Path) -> None:
    options = TranslateOptions(tissue="none", region=Region(1400, 1000, 300, 300))
    with wsi2ihc.open_slide(slide_file) as slide:
        report = wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", options)
    assert (report.output_size.width, report.output_size.height) == (100, 100)
    assert any("clipped" in warning for warning in report.warnings)


def test_a_preview_of_a_damaged_slide(damaged_file: Path, tmp_path: Path) -> None:
    options = TranslateOptions(on_read_error="background", preview=tmp_path / "both.png")
    with wsi2ihc.open_slide(damaged_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), tmp_path / "out.ome.tiff", options)
    assert (tmp_path / "both.png").is_file()


def test_damaged_areas_do_not_depend_on_the_region_that_is_read(damaged_file: Path) -> None:
    with wsi2ihc.open_slide(damaged_file) as slide:
        tolerant = FaultTolerantSlide(slide)
        whole = tolerant.read_level(0, Region(0, 0, 1500, 1100))
        for region in (Region(300, 200, 500, 400), Region(511, 255, 3, 3), Region(700, 300, 900, 900)):
            part = tolerant.read_level(0, region, (255, 255, 255))
            inside = region.intersection(Region(0, 0, 1500, 1100))
            expected = whole[inside.slices_in(Region(0, 0, 1500, 1100))]
            np.testing.assert_array_equal(part[inside.slices_in(region)], expected)
        assert len(tolerant.damaged) == 1


class InstanceNormLike:
    """Translator that is not exact: it subtracts the mean of each window."""

    halo_px, stride_px, multiple_px, is_exact, bytes_per_px = 0, 4, 4, False, 0.0

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        means = windows.mean(axis=(1, 2, 3), keepdims=True)
        return np.clip(windows - means + 128, 0, 255).astype(np.uint8)


def test_a_translation_that_is_not_exact_is_blended(slide_file: Path, tmp_path: Path) -> None:
    options = TranslateOptions(core_px=256, tissue="none", pyramid=LOSSLESS)
    with wsi2ihc.open_slide(slide_file) as slide:
        job = prepare(slide, wsi2ihc.load_model("identity"), options, translators=[InstanceNormLike()])
        report = translate_job(job, tmp_path / "out.ome.tiff")
    assert report.blend == "overlap"
    assert report.seams is not None
    assert report.seams.z is not None
    assert report.seams.z < 3
    assert level0(tmp_path / "out.ome.tiff").shape == (1100, 1500, 3)
