"""Resumed builds: changed rows, missing slides, damage and unlisted files."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from make_slide_pairs import SIZE, row, tree, write_manifest
from make_slides import halves, write_slide

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.registration.transform import Transform, frame_of
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.slide import open_slide
from wsi2ihc.training.pairs.build import build_pairs, preview_pairs
from wsi2ihc.training.pairs.options import PairsOptions
from wsi2ihc.training.pairs.quality import Limits
from wsi2ihc.training.pairs.verify_dataset import CheckReport, check_dataset

OPTIONS = PairsOptions(patch_size=128, mpp=1.0, validation=0.3, test=0.3, workers=2, name="ours")


pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def complete(in_this_process: None, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "data"
    build_pairs(manifest, folder, OPTIONS)
    return folder


@pytest.fixture
def data(complete: Path, tmp_path: Path) -> Path:
    return shutil.copytree(complete, tmp_path / "data")


def away(slides: Path, folder: Path) -> Path:
    """The same manifest where none of its slides is."""
    folder.mkdir()
    return shutil.copy(slides / "manifest.csv", folder / "manifest.csv")


def test_slides_that_are_not_there_leave_their_patches(slides: Path, data: Path, tmp_path: Path) -> None:
    before = tree(data)
    report = build_pairs(away(slides, tmp_path / "elsewhere"), data, OPTIONS)
    assert (report.failed, report.kept, report.unchanged) == ((), 12, True)
    (note,) = [note for note in report.warnings if "unavailable" in note]
    assert note.startswith("the files of 3 pairs of slides are unavailable (S0, S1, S2): their patches are kept")
    assert tree(data) == before
    preview = preview_pairs(tmp_path / "elsewhere" / "manifest.csv", data, OPTIONS)
    assert [slide.kept for slide in preview.slides] == [4, 4, 4]
    assert any("unavailable" in note for note in preview.warnings)


def test_rows_that_say_something_else_keep_nothing(slides: Path, data: Path, tmp_path: Path) -> None:
    before = tree(data)
    (tmp_path / "elsewhere").mkdir()
    other = write_manifest(tmp_path / "elsewhere" / "m.csv", [row(number, ihc_mpp="0.4") for number in range(3)])
    report = build_pairs(other, data, OPTIONS)
    assert [failure.slide for failure in report.failed] == ["S0", "S1", "S2"]
    assert report.slides == ()
    # nothing to make a data set of: what is there is worth more
    assert report.warnings == ("no row of the manifest can be used: the dataset is unchanged, with 12 patches",)
    assert tree(data) == before


def test_rows_that_go_are_told_and_wait(slides: Path, data: Path, manifest: Path) -> None:
    before = tree(data)
    fewer = write_manifest(slides / "fewer.csv", [row(0), row(2)])
    report = build_pairs(fewer, data, OPTIONS)
    wanted = "1 pair of slides not listed in the manifest (S1) removed from the dataset (4 patches kept"
    assert any(note.startswith(wanted) for note in report.warnings)
    assert report.kept == 8
    assert len(list(data.glob("patches/S1/*/S1_*.png"))) == 8
    assert build_pairs(manifest, data, OPTIONS).kept == 12
    assert tree(data) == before


def test_a_row_that_fails_discards_nothing(slides: Path, data: Path, manifest: Path) -> None:
    """Another manifest with the same ids, one of whose pairs cannot be registered."""
    before = tree(data)
    write_slide(slides / "other.tif", halves(synthetic_tissue(*SIZE, seed=77), 2))
    rows = [row(0), row(1, ihc_path="other.tif", transform=""), row(2)]
    report = build_pairs(write_manifest(slides / "other.csv", rows), data, OPTIONS)
    assert [failure.slide for failure in report.failed] == ["S1"]
    assert any("with failed rows (S1) removed from the dataset (4 patches kept" in note for note in report.warnings)
    failed = [
        path.parent for path in data.glob("patches/S1/*/registration") if not (path.parent / "record.json").exists()
    ]
    assert [sorted(path.name for path in one.rglob("*") if path.is_file()) for one in failed] == [
        ["before.png", "registration.json"]
    ]
    again = build_pairs(manifest, data, OPTIONS)
    assert [slide.is_new for slide in again.slides] == [False] * 3
    assert tree(data) == before


@pytest.mark.parametrize("names", [("S0/*/S0_00000_he.png", "S1/*/*/transform.json", "S2/*/*/registration.json")])
def test_damage_is_repaired(data: Path, manifest: Path, names: Sequence[str]) -> None:
    before = sorted(tree(data))
    keys = {path.name: path.parent.name for path in data.glob("patches/*/*")}
    for name in names:
        damaged = next(data.glob(f"patches/{name}"))
        damaged.write_bytes(damaged.read_bytes()[:-5])
    assert len(check_dataset(data).problems) >= len(names)
    report = build_pairs(manifest, data, OPTIONS)
    assert [slide.is_new for slide in report.slides] == [True] * 3
    after = {path.parent.name: path.name for path in data.glob("patches/*/*")}
    assert sorted(tree(data)) == sorted(
        "/".join(after[keys[part]] if part in keys else part for part in name.split("/")) for name in before
    )
    assert not keys.keys() & set(after.values())  # the index named the damaged extractions until the end
    assert check_dataset(data).problems == ()


def test_pictures_may_go(data: Path, manifest: Path) -> None:
    next(data.glob("patches/S0/*/registration/before.png")).unlink()
    assert build_pairs(manifest, data, OPTIONS).unchanged


def test_a_lost_index_is_written_again(data: Path, manifest: Path) -> None:
    before = tree(data)
    (data / "pairs.csv").unlink()
    report = build_pairs(manifest, data, OPTIONS)
    assert (report.unchanged, [slide.is_new for slide in report.slides]) == (False, [False] * 3)
    assert tree(data) == before


def test_other_limits_move_no_patch(data: Path, manifest: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (data / "patches").rglob("*")}
    with (data / "pairs.csv").open(newline="") as file:
        sharpness = sorted(
            min(float(line["sharpness_he"]), float(line["sharpness_ihc"])) for line in csv.DictReader(file)
        )
    options = dataclasses.replace(OPTIONS, limits=Limits(min_sharpness=(sharpness[5] + sharpness[6]) / 2))
    report = build_pairs(manifest, data, options)
    assert {path: path.stat().st_mtime_ns for path in (data / "patches").rglob("*")} == before
    assert (report.kept, report.unchanged, report.rejected["reasons"]) == (6, False, {"blur": 6})
    assert not [note for note in report.warnings if "not listed" in note]
    assert check_dataset(data) == CheckReport(6, ())
    assert build_pairs(manifest, data, OPTIONS).kept == 12


def test_files_of_others_stay_and_are_told(data: Path, manifest: Path) -> None:
    (extraction,) = data.glob("patches/S0/*")
    mine = [data / "IHC" / "val" / "mine.png", extraction / "mine.png", extraction.parent / "notes.txt"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    report = build_pairs(manifest, data, OPTIONS)
    (note,) = [note for note in report.warnings if "not listed in" in note]
    listed = f"IHC/val/mine.png and patches/S0/{extraction.name}/mine.png"
    assert note.startswith("2 images in the folders of the dataset not listed in pairs.csv ("), note
    assert all(name in note for name in listed.split(" and "))
    next(extraction.glob("*_he.png")).unlink()  # the slide is extracted again
    build_pairs(manifest, data, OPTIONS)
    assert [path.read_bytes() for path in mine] == [b"mine"] * 3
    assert [path.name for path in extraction.iterdir()] == ["mine.png"]


def test_a_row_that_names_another_folder_removes_nothing(slides: Path, data: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "01234567" / "S0_00000_he.png"
    outside.parent.mkdir(parents=True)
    outside.write_bytes(b"mine")
    hostile = write_manifest(slides / "hostile.csv", [row(0), row(1, slide_id="../../outside"), row(2, slide_id="..")])
    report = build_pairs(hostile, data, OPTIONS)
    assert [failure.slide for failure in report.failed] == ["../../outside", ".."]
    assert outside.read_bytes() == b"mine"


# one file under two names


def test_copies_of_one_slide_fail_all_their_rows(slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "he0.tif", slides / "copy.tif")
    rows = [row(0, split="train"), row(1, he_path="copy.tif", split="test"), row(2)]
    manifest = write_manifest(slides / "copies.csv", rows)
    for failed in (build_pairs(manifest, tmp_path / "data", OPTIONS).failed, preview_pairs(manifest, tmp_path).failed):
        messages = [failure.message for failure in failed if failure.slide != "S2"]
        assert (
            messages
            == ["these files are identical: he0.tif (H&E of row 2), copy.tif (H&E of row 3); keep one of them"] * 2
        )
    (slides / "copy.tif").unlink()


def test_one_file_as_both_stains(slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "he0.tif", slides / "copy.tif")
    manifest = write_manifest(slides / "both.csv", [row(0, ihc_path="copy.tif")])
    (failure,) = build_pairs(manifest, tmp_path / "data", OPTIONS).failed
    assert "he0.tif (H&E of row 2), copy.tif (IHC of row 2)" in failure.message
    (slides / "copy.tif").unlink()


# checks before anything is registered


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"ihc_mpp": "9"},
            {},
            "ihc0.tif: at 9 µm/px the slide is 9 times coarser than the patches (1), and at most 4",
        ),
        ({}, {"patch_size": 512}, "he0.tif: 300×280 px at 1 µm/px, which is smaller than a patch of 512 px"),
    ],
)
def test_slides_that_give_no_patch(
    slides: Path, tmp_path: Path, changes: dict[str, str], options: dict[str, int], message: str
) -> None:
    manifest = write_manifest(slides / "coarse.csv", [row(0, transform="", **changes)])
    how = PairsOptions(**{"patch_size": 128, "mpp": 1.0, "workers": 1, **options})
    for failed in (preview_pairs(manifest, tmp_path / "data", how).failed,
                   build_pairs(manifest, tmp_path / "data", how).failed):  # fmt: skip
        (failure,) = failed
        assert message in failure.message
        assert "model" not in failure.message
    assert not list(tmp_path.glob("data/patches/**/registration.json"))


def test_doubts_are_told_in_advance_and_at_the_end(slides: Path, tmp_path: Path) -> None:
    for name, shift in (("marks-he.csv", 0), ("marks-ihc.csv", 200)):
        points = [f"{number},{x + shift},{y}" for number, (x, y) in enumerate([(20, 20), (200, 300), (350, 80)])]
        (slides / name).write_text("\n".join([",X,Y", *points]))
    rows = [
        row(0, patient_id="p", her2="0", ihc_mpp="", landmarks="marks-he.csv;marks-ihc.csv"),
        row(1, patient_id="P", her2="3+", ihc_mpp="0.7"),
        row(2, patient_id="P", her2="0"),
    ]
    manifest = write_manifest(slides / "odd.csv", rows)
    before = preview_pairs(manifest, tmp_path / "data", OPTIONS).warnings
    after = build_pairs(manifest, tmp_path / "data", OPTIONS).warnings
    for wanted in (
        "'P' and 'p' count as different patients",
        "the patient 'P' has slides of different HER2 levels: 0 and 3+",
        "S1: ihc1.tif states 0.5 µm/px, the manifest's column ihc_mpp 0.7, which takes precedence",
    ):
        for warnings in (before, after):
            assert sum(note.startswith(wanted) for note in warnings) == 1, wanted
    (warning,) = [note for note in after if "landmarks contradict" in note]
    assert warning.startswith("S0: the landmarks contradict the transform: it misses them by 100 µm")
    facts = json.loads(next(tmp_path.glob("data/patches/S0/*/registration/registration.json")).read_text())
    assert facts["warnings"] == [warning.removeprefix("S0: ")]
    assert build_pairs(manifest, tmp_path / "data", OPTIONS).warnings == after


def test_a_transform_of_another_file(slides: Path, tmp_path: Path) -> None:
    with open_slide(slides / "he1.tif") as he, open_slide(slides / "ihc0.tif") as ihc:
        save_transform(slides / "strange", Transform(np.eye(2, 3), None, frame_of(he.info), frame_of(ihc.info)))
    manifest = write_manifest(slides / "strange.csv", [row(0, transform="strange")])
    (failure,) = build_pairs(manifest, tmp_path / "data", OPTIONS).failed
    assert failure.message.startswith("he0.tif: this is another file than the he1.tif that the transform was made for")
    assert "--any-slide" not in failure.message
