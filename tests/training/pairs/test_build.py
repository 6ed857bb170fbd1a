"""Builds of datasets, with failing pairs."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from make_slide_pairs import SIZE, row, tree, write_manifest
from make_slides import halves, write_slide

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.ihc_pair import Distortion, distorted, restain
from wsi2ihc.errors import DatasetError, OptionError, OutputError, OutputExistsError
from wsi2ihc.geometry import Size
from wsi2ihc.registration.transform import SlideFrame, Transform
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.system import versions
from wsi2ihc.training.data import check_images, load_data, read_pair
from wsi2ihc.training.pairs.build import build_pairs, preview_pairs
from wsi2ihc.training.pairs.dataset_writer import open_dataset_folder
from wsi2ihc.training.pairs.options import PairsOptions
from wsi2ihc.training.pairs.quality import Limits
from wsi2ihc.training.pairs.verify_dataset import check_dataset

OPTIONS = PairsOptions(patch_size=128, mpp=1.0, validation=0.3, test=0.3, workers=2)


pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def complete(in_this_process: None, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "data"
    build_pairs(manifest, folder, OPTIONS)
    return folder


# what comes out


def test_training_takes_what_comes_out(complete: Path) -> None:
    data = load_data(complete)
    assert (data.mpp, data.grouped_by) == (1.0, "patient")
    assert {(pair.slide, pair.group) for pair in data.pairs} == {(f"S{number}", f"P{number}") for number in range(3)}
    assert {pair.role for pair in data.pairs} == {"train", "validation", "test"}
    assert len(data.pairs) == 12
    assert check_images(data.pairs, crop_px=128).smallest == Size(128, 128)
    he, ihc = read_pair(data.pairs[0])
    assert he.shape == ihc.shape == (128, 128, 3)


def test_checking_finds_nothing_wrong(complete: Path) -> None:
    report = check_dataset(complete)
    assert (report.patches, report.problems) == (12, ())


def test_patches_are_the_slide_and_its_restained_partner(complete: Path) -> None:
    first = load_data(complete).pairs[0]
    he, ihc = read_pair(first)
    whole = synthetic_tissue(*SIZE, seed=0)
    wanted = whole[:256, :256].reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(he - wanted).mean() < 4  # JPEG
    assert np.corrcoef(he[..., 0].ravel(), ihc[..., 0].ravel())[0, 1] > 0.8


def test_each_pair_has_its_figures_and_pictures(complete: Path) -> None:
    for number in range(3):
        (folder,) = (complete / "patches" / f"S{number}").iterdir()
        assert {path.name for path in (folder / "registration").iterdir()} == {
            "after.png", "before.png", "deformation.png", "patches.png", "registration.json", "transform.json",
        }  # fmt: skip
        stems = [f"S{number}_{at:05}" for at in range(4)]
        names = {f"{stem}_{stain}.png" for stem in stems for stain in ("he", "ihc")}
        assert {path.name for path in folder.iterdir()} == {*names, "record.json", "registration"}
    facts = json.loads(next(complete.glob("patches/S0/*/registration/registration.json")).read_text())
    assert (facts["status"], facts["transform"]) == ("given", "identity")


def test_nothing_in_it_tells_where_the_slides_were(complete: Path, slides: Path) -> None:
    for name, content in tree(complete).items():
        assert str(slides).encode() not in content, name
        assert str(complete.parent).encode() not in content, name


def test_a_second_run_does_nothing(complete: Path, manifest: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in complete.rglob("*") if path.is_file()}
    report = build_pairs(manifest, complete, OPTIONS)
    assert report.unchanged
    assert report.kept == 12
    assert not any(slide.is_new for slide in report.slides)
    assert {path: path.stat().st_mtime_ns for path in complete.rglob("*") if path.is_file()} == before


def test_slides_that_another_version_has_cut(complete: Path, manifest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(complete, tmp_path / "data")
    (record,) = folder.glob("patches/S1/*/record.json")
    assert json.loads(record.read_text())["metadata"]["versions"] == versions()
    record.write_text(record.read_text().replace(f'"wsi2ihc": "{version("wsi2ihc")}"', '"wsi2ihc": "0.0.1"'))
    (warning,) = set(build_pairs(manifest, folder, OPTIONS).warnings) - set(
        build_pairs(manifest, complete, OPTIONS).warnings
    )
    assert warning.startswith("1 of 3 pairs of slides were extracted by other versions (S1: wsi2ihc 0.0.1); ")


def test_other_options_are_refused(complete: Path, manifest: Path) -> None:
    before = tree(complete)
    other = PairsOptions(patch_size=96, mpp=1.0, validation=0.3, test=0.3)
    with pytest.raises(OutputExistsError, match="a dataset made with patch_size 128; this run asks for 96"):
        build_pairs(manifest, complete, other)
    assert tree(complete) == before


# pairs that fail


def test_pairs_that_fail_leave_the_others_alone(slides: Path, complete: Path, tmp_path: Path) -> None:
    (slides / "broken.tif").write_bytes(b"II*\0 no slide")
    write_slide(slides / "unknown.tif", halves(synthetic_tissue(*SIZE, seed=9), 2), mpp=None)
    for name, ids in (("a.csv", "ab"), ("b.csv", "cd")):
        (slides / name).write_text("\n".join([",X,Y", *(f"{one},1,1" for one in ids)]))
    frame = SlideFrame("other.svs", Size(9, 9), (0.5, 0.5))
    save_transform(slides / "others.json", Transform(np.eye(2, 3), moving=frame))
    for number in range(4):
        (slides / f"copy{number}.tif").write_bytes((slides / "ihc0.tif").read_bytes() + bytes(number + 1))
    manifest = write_manifest(slides / "bad.csv", [
        row(0),
        row(1, slide_id="lost", he_path="lost.tif"),
        row(1, slide_id="broken", he_path="broken.tif", ihc_path="copy0.tif"),
        row(1, slide_id="unknown", he_path="he2.tif", ihc_path="unknown.tif"),
        row(1, slide_id="marks", ihc_path="copy1.tif", landmarks="a.csv;b.csv"),
        row(2, slide_id="others", he_path="copy2.tif", ihc_path="copy3.tif", transform="others.json"),
    ])  # fmt: skip
    report = build_pairs(manifest, tmp_path / "data", OPTIONS)
    assert [(failure.row, failure.slide) for failure in report.failed] == [
        (3, "lost"), (4, "broken"), (5, "unknown"), (6, "marks"), (7, "others"),
    ]  # fmt: skip
    messages = [failure.message for failure in report.failed]
    for message, part in zip(messages, ("does not exist", "broken.tif", "ihc_mpp", "no id in common", "other.svs"),
                             strict=True):  # fmt: skip
        assert part in message
        assert "\n" not in message
    assert [slide.slide for slide in report.slides] == ["S0"]
    failed = json.loads((tmp_path / "data" / "dataset.json").read_text())["failed"]
    assert [failure["slide"] for failure in failed] == ["lost", "broken", "unknown", "marks", "others"]
    assert str(slides) not in json.dumps(failed)
    assert len(list((tmp_path / "data").glob("patches/*/*/*_he.png"))) == 4
    # once fixed, the result is as if nothing had failed
    report = build_pairs(slides / "manifest.csv", tmp_path / "data", OPTIONS)
    assert not report.failed
    assert [slide.is_new for slide in report.slides] == [False, True, True]
    assert tree(tmp_path / "data") == tree(complete)


def test_a_folder_that_cannot_be_written_ends_all(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with open_dataset_folder(folder, OPTIONS.of_patches):
        pass
    (folder / "patches").write_text("a file")
    with pytest.raises(OutputError, match="patches"):
        build_pairs(manifest, folder, OPTIONS)


def test_a_limit_that_lets_nothing_pass(manifest: Path, tmp_path: Path) -> None:
    options = PairsOptions(patch_size=128, mpp=1.0, limits=Limits(min_sharpness=50.0))
    with pytest.raises(DatasetError, match=r"no patch was kept \(rejected: blur 12\)"):
        build_pairs(manifest, tmp_path / "data", options)


def test_a_preview_writes_nothing(slides: Path, manifest: Path, complete: Path, tmp_path: Path) -> None:
    lost = write_manifest(slides / "lost.csv", [row(0), row(1, he_path="lost.tif"), row(2)])
    preview = preview_pairs(lost, tmp_path / "data", OPTIONS)
    assert [slide.slide for slide in preview.slides] == ["S0", "S2"]
    assert [failure.row for failure in preview.failed] == [3]
    assert not (tmp_path / "data").exists()
    preview = preview_pairs(manifest, complete, OPTIONS)
    assert [(slide.kept, slide.is_new) for slide in preview.slides] == [(4, False)] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 8}, "--patch-size must lie between"),
        ({"mpp": float("nan")}, "--mpp must lie between"),
        ({"stride": -1}, "--stride must lie between 64 and"),
        ({"stride": 63}, "--stride must lie between 64 and"),
        ({"validation": 0.5, "test": 0.5}, "leave nothing for training"),
        ({"test": -0.1}, "--test must be a fraction"),
        ({"workers": -2}, "--workers must be at least 0"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_impossible_options(change: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PairsOptions(**change)  # type: ignore[arg-type]


# registration


def test_a_turned_and_warped_slide_is_registered_and_cut(tmp_path: Path) -> None:
    he = synthetic_tissue(800, 720, seed=5)
    turned, truth = distorted(he, 0.5, Distortion(angle_deg=20, warp_um=6, wavelength_um=600), fill=(243, 243, 243))
    write_slide(tmp_path / "he0.tif", halves(he, 3))
    write_slide(tmp_path / "ihc0.tif", halves(restain(turned, 5, 1.5), 3))
    places_um = np.array([[100.0, 110.0], [200.0, 250.0], [310.0, 270.0]])
    for name, points in (("he.csv", places_um), ("ihc.csv", truth.to_moving(places_um))):
        lines = [f"{number},{x},{y}" for number, (x, y) in enumerate(points / 0.5 - 0.5)]
        (tmp_path / name).write_text("\n".join([",X,Y", *lines]))
    manifest = write_manifest(tmp_path / "m.csv", [row(0, transform="", landmarks="he.csv;ihc.csv")])
    options = PairsOptions(patch_size=96, mpp=1.0, workers=1)
    report = build_pairs(manifest, tmp_path / "data", options)
    assert not report.failed
    assert report.kept > 4
    facts = json.loads(next(tmp_path.glob("data/patches/S0/*/registration/registration.json")).read_text())
    assert facts["status"] == "registered"
    assert facts["landmarks"]["before"]["median_um"] > 20
    assert facts["landmarks"]["after"]["median_um"] < 3
    assert [stage["landmarks"]["count"] for stage in facts["stages"]] == [3] * len(facts["stages"])
    build_pairs(manifest, tmp_path / "again" / "data", options)
    assert tree(tmp_path / "again" / "data") == tree(tmp_path / "data")
