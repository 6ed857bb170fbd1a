"""A virtual slide against a stained one, square by square."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_slides import halves, write_slide
from scipy.ndimage import uniform_filter

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.ihc_pair import IHC_BACKGROUND, restain
from wsi2ihc.errors import DatasetError, MissingResolutionError, TransformError
from wsi2ihc.geometry import Region, RGBImage, Size
from wsi2ihc.models.registry import counterstain, load_model
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.registration.transform import SlideFrame, Transform, affine, frame_of, identity
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.slide import open_slide
from wsi2ihc.slide.readers.image_reader import MemorySlide
from wsi2ihc.training.evaluation.grid_seams import GridSeams, measure_seams
from wsi2ihc.training.evaluation.options import EvaluateOptions
from wsi2ihc.training.evaluation.report import make_slide_report
from wsi2ihc.training.evaluation.slide_grid import SlideComparison, plan_squares
from wsi2ihc.training.evaluation.slide_origin import BorderGrid, Origin, check_source, read_origin
from wsi2ihc.training.evaluation.slides import area_agreement, evaluate_slides
from wsi2ihc.training.metrics.bootstrap import ImageMetadata, Scores
from wsi2ihc.training.reports.document import Figure
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.translate import translate

QUICK = EvaluateOptions(resamples=100)
SHIFT_PX = 40
"""By which the reference lies off the virtual slide, right and down; 20 µm."""


@pytest.fixture(scope="module")
def ihc() -> RGBImage:
    return restain(synthetic_tissue(700, 600, seed=1), 1, 3.0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, ihc: RGBImage) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "virtual.tif", halves(ihc, 2), compression="deflate")
    moved = np.full((600 + SHIFT_PX, 700 + SHIFT_PX, 3), IHC_BACKGROUND, np.uint8)
    moved[SHIFT_PX:, SHIFT_PX:] = ihc
    write_slide(folder / "reference.tif", halves(moved, 2), compression="deflate")
    pale = restain(synthetic_tissue(700, 600, seed=1), 1, 0.5)
    write_slide(folder / "pale.tif", halves(pale, 2))
    save_transform(folder / "transform.json", affine([[1, 0, SHIFT_PX / 2], [0, 1, SHIFT_PX / 2]]))
    return folder


def test_correct_transform_finds_the_same_pixels(slides: Path) -> None:
    result = evaluate_slides(
        str(slides / "reference.tif"), str(slides / "virtual.tif"), slides / "transform.json", QUICK, square_um=50
    )
    values = result.evaluation.methods[0].scores.subset().values()
    assert values["stain_r"] > 0.9999
    assert result.squares.coverage > 0.95
    agreement, difference = area_agreement(result.maps)
    assert agreement > 0.99
    assert difference < 0.01
    unplaced = evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), None, QUICK, square_um=50)
    assert unplaced.evaluation.methods[0].scores.subset().values()["stain_r"] < 0.6
    assert any("no transform" in note for note in unplaced.evaluation.notes)


@pytest.mark.parametrize("role", ["virtual", "reference"])
def test_inconsistent_levels_are_not_used(slides: Path, tmp_path: Path, role: str) -> None:
    images = {name: tifffile.imread(slides / f"{name}.tif") for name in ("virtual", "reference")}
    (tmp_path / "true").mkdir()
    for name, image in images.items():
        write_slide(tmp_path / "true" / f"{name}.tif", image, compression="deflate")
        lower = [np.ascontiguousarray(level[::-1, ::-1]) for level in halves(image, 4)[1:]]
        write_slide(tmp_path / f"{name}.tif", [image, *(lower if name == role else [])], compression="deflate")
    wrong, true = (
        evaluate_slides(
            str(folder / "reference.tif"), str(folder / "virtual.tif"), slides / "transform.json", QUICK, square_um=50
        )
        for folder in (tmp_path, tmp_path / "true")
    )
    np.testing.assert_array_equal(wrong.squares.chosen, true.squares.chosen)
    for ours, theirs in zip(wrong.overviews, true.overviews, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (note,) = set(wrong.evaluation.notes) - set(true.evaluation.notes)
    assert note.startswith(f"{role}.tif: ")
    assert "do not show what level 0 shows" in note


@pytest.mark.parametrize("role", ["virtual", "reference", "he"])
@pytest.mark.parametrize("is_copy", [False, True])
def test_one_slide_for_two_roles_is_an_error(slides: Path, tmp_path: Path, role: str, is_copy: bool) -> None:
    names = {"reference": "reference.tif", "virtual": "virtual.tif", "he": "pale.tif"}
    files = {kind: str(slides / name) for kind, name in names.items()}
    other = "reference" if role == "virtual" else "virtual"
    files[role] = files[other]
    if is_copy:
        files[role] = shutil.copy(files[other], tmp_path / "copy.tif")
    with pytest.raises(DatasetError, match="are the same slide"):
        evaluate_slides(files["reference"], files["virtual"], None, QUICK, he=files["he"])


def test_virtual_slide_of_the_reference_itself_is_noted(slides: Path, tmp_path: Path) -> None:
    with open_slide(slides / "virtual.tif") as slide:
        translate(slide, load_model("identity"), tmp_path / "v.ome.tiff", TranslateOptions(tissue="none"))
    result = evaluate_slides(str(slides / "virtual.tif"), str(tmp_path / "v.ome.tiff"), None, QUICK, square_um=50)
    assert any(
        "virtual.tif is the slide from which the virtual slide was made" in one for one in result.evaluation.notes
    )


def test_weak_stain_appears_in_maps_and_report(slides: Path) -> None:
    result = evaluate_slides(str(slides / "virtual.tif"), str(slides / "pale.tif"), None, QUICK, square_um=50)
    known = np.isfinite(result.maps.reference)
    assert known.sum() == len(result.squares.chosen) > 10
    assert (result.maps.virtual[known] - result.maps.reference[known]).mean() < -0.02
    report = make_slide_report(result, resamples=100)
    names = {one.name for section in report.sections for one in section.contents}
    assert {"map_reference", "map_virtual", "map_error", "agreement", "seams", "overview_virtual"} <= names
    json.dumps(report.data, allow_nan=False)
    assert len(report.data["slide"]["squares"]) == len(result.squares.chosen)


def test_position_of_a_region_from_its_metadata(slides: Path, tmp_path: Path, ihc: RGBImage) -> None:
    part = tmp_path / "part.tif"
    write_slide(part, halves(np.ascontiguousarray(ihc[100:500, 200:680]), 2), compression="deflate")
    (tmp_path / "part.tif.json").write_text(
        json.dumps({
            "position_um": [100, 50], "output_size": {"width": 480, "height": 400}, "source": {},
            "options": {"pyramid": {"tile_px": 256}},
            "plan": {"core_size": [128, 128], "core_origin": [-36, -36], "halo_px": 88, "overlap_px": 0},
            "seams": {"z": 0.7},
        })
    )  # fmt: skip
    result = evaluate_slides(str(slides / "virtual.tif"), str(part), None, QUICK, square_um=50)
    assert result.evaluation.methods[0].scores.subset().values()["stain_r"] > 0.9999
    assert [one.borders_of for one in result.seams] == ["tiles of 256 px", "cores of 128×128 px"]
    assert result.origin.seams == {"z": 0.7}


@pytest.mark.parametrize(
    "damage",
    [{"plan": {}}, {"position_um": None}, {"options": {}}, {"seams": 1},
     {"plan": {"core_size": [0, 128], "core_origin": [0, 0], "halo_px": 88, "overlap_px": 0}}],
)  # fmt: skip
def test_reports_with_missing_or_invalid_values_are_an_error(
    slides: Path, tmp_path: Path, damage: dict[str, object]
) -> None:
    virtual = Path(shutil.copy(slides / "virtual.tif", tmp_path))
    report = {
        "position_um": [0, 0], "output_size": {"width": 700, "height": 600}, "source": {}, "seams": None,
        "options": {"pyramid": {"tile_px": 256}},
        "plan": {"core_size": [128, 128], "core_origin": [-36, -36], "halo_px": 88, "overlap_px": 0},
    }  # fmt: skip
    Path(f"{virtual}.json").write_text(json.dumps(report | damage))
    with pytest.raises(DatasetError, match=r"virtual\.tif\.json: .* missing or invalid value"):
        read_origin(str(virtual), Size(700, 600))


def test_position_of_a_region_from_the_translation_report(slides: Path, tmp_path: Path) -> None:
    with open_slide(slides / "virtual.tif") as slide:
        options = TranslateOptions(
            region=Region(200, 100, 480, 400), tissue="none", pyramid=PyramidOptions(compression="deflate")
        )
        translate(slide, load_model("identity"), tmp_path / "part.ome.tiff", options)
    for name in ("part", "moved"):  # with its report, and without
        virtual = tmp_path / f"{name}.ome.tiff"
        if name == "moved":
            virtual.write_bytes((tmp_path / "part.ome.tiff").read_bytes())
        result = evaluate_slides(str(slides / "virtual.tif"), str(virtual), None, QUICK, square_um=50)
        assert result.evaluation.methods[0].scores.subset().values()["stain_r"] > 0.9999
        assert result.origin.source == "virtual.tif"
        assert result.origin.is_reported is (name == "part")


def test_he_slide_or_transform_of_another_slide_is_an_error(slides: Path, tmp_path: Path) -> None:
    with open_slide(slides / "virtual.tif") as slide:
        translate(slide, load_model("identity"), tmp_path / "v.ome.tiff", TranslateOptions(tissue="none"))
    files = (str(slides / "reference.tif"), str(tmp_path / "v.ome.tiff"))
    with pytest.raises(DatasetError, match=r"was made from virtual\.tif, but --he names pale\.tif"):
        evaluate_slides(*files, slides / "transform.json", QUICK, he=str(slides / "pale.tif"))
    with open_slide(slides / "pale.tif") as other:
        frame = frame_of(other.info)
    save_transform(tmp_path / "other.json", Transform(np.eye(2, 3), fixed=frame))
    with pytest.raises(DatasetError, match=r"the transform was made for pale\.tif"):
        evaluate_slides(*files, tmp_path / "other.json", QUICK)


def test_baseline_uses_the_he_slide_at_its_own_resolution(slides: Path, tmp_path: Path, ihc: RGBImage) -> None:
    """An H&E slide of twice the resolution shows the same tissue in the same place."""
    he = synthetic_tissue(700, 600, seed=1)
    write_slide(tmp_path / "he.tif", halves(np.repeat(np.repeat(he, 2, 0), 2, 1), 2), mpp=0.25, compression="deflate")
    save_transform(tmp_path / "identity.json", affine(np.eye(2, 3)))
    write_slide(tmp_path / "reference.tif", halves(ihc, 2), compression="lzw")
    files = str(tmp_path / "reference.tif"), str(slides / "virtual.tif")
    result = evaluate_slides(*files, None, QUICK, square_um=50, he=str(tmp_path / "he.tif"))
    _, baseline = result.evaluation.methods
    assert baseline.method.name == "counterstain"
    rows, columns = result.squares.shape
    side = result.squares.side_px
    scores = Scores([ImageMetadata("all", "all")], baseline.scores.scale)
    for row, column in result.squares.chosen:
        part = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        with open_slide(slides / "virtual.tif") as slide:
            ihc = slide.read_level(0, Region(0, 0, columns * side, rows * side))[part]
        scores.add(ImageMetadata("all", "all"), counterstain(he[part][np.newaxis])[0], ihc)
    expected, found = scores.subset().values(), baseline.scores.subset().values()
    assert found["l1"] == pytest.approx(expected["l1"], rel=0.02)
    assert found["psnr"] == pytest.approx(expected["psnr"], abs=0.3)


def test_transform_of_other_slides_is_an_error(slides: Path, tmp_path: Path) -> None:
    frame = SlideFrame("other.tif", Size(123, 456), (0.5, 0.5), "")
    save_transform(tmp_path / "other.json", Transform(np.eye(2, 3), moving=frame))
    with pytest.raises(TransformError, match=r"other\.tif"):
        evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), tmp_path / "other.json", QUICK)


def test_missing_virtual_tissue_is_noted(slides: Path, ihc: RGBImage, tmp_path: Path) -> None:
    half = ihc.copy()
    half[:, 350:] = IHC_BACKGROUND
    write_slide(tmp_path / "half.tif", halves(half, 2), compression="deflate")
    reference = str(slides / "reference.tif")
    whole, part = (
        evaluate_slides(reference, str(path), slides / "transform.json", QUICK, square_um=50)
        for path in (slides / "virtual.tif", tmp_path / "half.tif")
    )
    assert part.squares.missed > 0
    assert f"only {part.squares.coverage:.0%} of the reference tissue" in part.evaluation.notes[0]
    assert not any("reference tissue" in note for note in whole.evaluation.notes)
    maps = make_slide_report(part).sections[1].contents
    captions = {one.name: one.caption for one in maps if isinstance(one, Figure)}
    assert captions["map_error"] == "Gray: squares not compared, since less than half is tissue on both slides."


def test_neighboring_tissue_does_not_count_as_coverage() -> None:
    left = np.full((400, 400, 3), 243, np.uint8)
    right = left.copy()
    tissue = synthetic_tissue(160, 400, seed=3)
    left[:, :160], right[:, 240:] = tissue, tissue
    pair = SlideComparison(*(MemorySlide(image, "slide", (0.5, 0.5)) for image in (left, right)), identity())
    with pytest.raises(DatasetError, match="no common tissue"):
        plan_squares(pair, 200)


def test_messages_on_a_missing_resolution_name_the_role_of_the_slide(ihc: RGBImage) -> None:
    known, unknown = MemorySlide(ihc, "a", (0.5, 0.5)), MemorySlide(ihc, "b", None)
    with pytest.raises(MissingResolutionError, match=r"^b: the reference .* with --mpp"):
        plan_squares(SlideComparison(known, unknown, identity()))
    with pytest.raises(MissingResolutionError, match=r"^b: the virtual slide .* write it into the file"):
        plan_squares(SlideComparison(unknown, known, identity()))


def test_message_on_another_source_without_its_name() -> None:
    fixed = SlideFrame("he.tif", Size(1, 1), (0.5, 0.5), "b" * 64)
    with pytest.raises(DatasetError, match=r"was made from another slide, but the transform was made for he\.tif"):
        check_source(Origin(quickhash="a" * 64), fixed, None, "virtual.tif")


def test_slides_without_common_tissue_are_an_error(slides: Path, tmp_path: Path) -> None:
    save_transform(tmp_path / "far.json", affine([[1, 0, 5000], [0, 1, 5000]]))
    with pytest.raises(DatasetError, match="no common tissue"):
        evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), tmp_path / "far.json", QUICK)
    with pytest.raises(DatasetError, match="smaller than one square"):
        evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), None, QUICK, square_um=2000)


def seams(
    image: RGBImage, origin: tuple[int, int] = (0, 0), he: RGBImage | None = None, overlap_px: int = 0
) -> GridSeams:
    slide = MemorySlide(image, "virtual", (0.5, 0.5))
    source = None if he is None else MemorySlide(he, "he", (0.5, 0.5))
    return measure_seams(
        SlideComparison(slide, slide, identity(), he=source), BorderGrid("cells", (256, 256), origin, overlap_px)
    )


def checked(image: RGBImage, fade_px: int = 1) -> RGBImage:
    """With every second square of 256 px brighter, and borders that fade over some px."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    steps = uniform_filter(np.where((rows // 256 + columns // 256) % 2, 12.0, 0.0), fade_px)[..., np.newaxis]
    return np.clip(image.astype(int) + steps, 0, 255).astype(np.uint8)


def test_grid_of_steps_is_detected_in_tissue_only(ihc: RGBImage) -> None:
    tissue = np.tile(ihc, (2, 2, 1))
    smooth, found = seams(tissue), seams(checked(tissue))
    assert smooth.z is not None
    assert abs(smooth.z) < 3
    assert found.z is not None
    assert found.z > 5
    assert found.contrast is not None
    assert found.contrast > 1.2
    moved = np.roll(checked(tissue), (36, 36), (0, 1))
    at_origin, off_it = (seams(moved, origin) for origin in ((36, 36), (0, 0)))
    assert at_origin.z is not None
    assert off_it.z is not None
    assert at_origin.z > 5 > off_it.z
    assert seams(np.full_like(tissue, 240)).z is None


@pytest.mark.parametrize("overlap_px", [16, 32])  # one and two strips
def test_blended_windows_of_another_shade_are_detected_without_edges(ihc: RGBImage, overlap_px: int) -> None:
    he = np.tile(ihc, (2, 2, 1))
    virtual = (220 * (he / 255) ** 2).astype(np.uint8)
    smooth, found = (seams(image, he=he, overlap_px=overlap_px) for image in (virtual, checked(virtual, overlap_px)))
    assert found.z is not None
    assert abs(found.z) < 3, "no edges"
    assert seams(virtual, overlap_px=overlap_px).shade_z is None, "tissue is not told from windows without its source"
    assert smooth.shade_z is not None
    assert found.shade_z is not None
    assert smooth.shade_z < 3 < 100 < found.shade_z
    assert found.shade_step == pytest.approx(12, abs=2)


def test_steps_of_the_source_are_divided_out(ihc: RGBImage) -> None:
    seamed = checked(np.tile(ihc, (2, 2, 1)))
    relative = seams(seamed, he=seamed)
    assert relative.is_relative
    assert relative.shade_z is not None
    assert relative.shade_z < 3
    assert relative.z is not None
    assert abs(relative.z) < 3
