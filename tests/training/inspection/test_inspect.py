"""Inspection of datasets: findings, report and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_fields import patch, write
from make_pairs import kinds_first, save, side_by_side, write_csv

from wsi2ihc.concurrency import Progress
from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.training.inspection.inspect import inspect_dataset, inspect_pairs
from wsi2ihc.training.inspection.options import InspectOptions
from wsi2ihc.training.reports.document import Figure, Report, Table
from wsi2ihc.training.reports.write import write_report

PLAIN = InspectOptions(figures=False, mpp=0.5, workers=2)


def tables(report: Report) -> dict[str, Table]:
    return {one.name: one for section in report.sections for one in section.contents if isinstance(one, Table)}


@pytest.fixture(scope="module")
def leaking_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset in BCI's layout with a copy, an overlap and a mirrored patch between splits, and a wrong IHC."""
    folder = tmp_path_factory.mktemp("leaking_dataset")
    others = [patch(x, y, seed) for seed in range(1, 7) for x in (0, 200) for y in (0, 200)][:21]
    for number, images in enumerate(others):
        write(folder, f"{number:05}_train_{number % 3}{'+' if number % 3 else ''}", images, "train")
    write(folder, "00030_train_0", patch(0, 0), "train")
    write(folder, "00031_train_0", (patch(200, 200)[0], patch(0, 200, 9)[1]), "train")
    write(folder, "00040_test_0", others[0], "test")
    write(folder, "00041_test_1+", patch(90, 0), "test")
    write(folder, "00042_test_2+", tuple(np.flipud(image) for image in others[4]), "test")
    return folder


def test_finds_leakage_and_misalignment(leaking_dataset: Path) -> None:
    inspection = inspect_pairs(leaking_dataset, PLAIN)
    found = {
        (Path(inspection.name(one.first)).stem, Path(inspection.name(one.second)).stem): one
        for one in inspection.duplicates
    }
    assert {names: (one.between, one.kind, one.stains) for names, one in found.items()} == {
        ("00000_train_0", "00040_test_0"): ("splits", "same pixels", "H&E and IHC"),
        ("00004_train_1+", "00042_test_2+"): ("splits", "same field", "H&E"),
        ("00030_train_0", "00041_test_1+"): ("splits", "overlap", "H&E"),
    }
    (misaligned,) = inspection.alignment.misaligned
    assert inspection.name(misaligned.number) == "HE/train/00031_train_0.png"


def test_report_content(leaking_dataset: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    options = InspectOptions(mpp=0.5, workers=2)
    report = inspect_dataset(leaking_dataset, options, seen.append)
    assert (seen[25].stage, seen[25].done, seen[25].total) == ("measuring patches", 26, 26)
    first, *others = report.data["warnings"]
    assert first.startswith(
        "pairs of patches of different splits that show the same tissue: 3 (same pixels: 1, same field: 1, overlap: "
        "1), such as HE/train/00000_train_0.png and HE/test/00040_test_0.png (100% of a patch); affected patches: 3 "
        "of test, 3 of train; metrics"
    )
    assert others[0].startswith("misaligned or mismatched pairs: 1 of 26, the worst HE/train/00031")
    assert others[1:] == ["there is no pair of HER2 3+ in train", "there is no pair of HER2 3+ in test"]
    assert "26 pairs of 192×192 px, 0.5 µm/px" in report.lead[0]
    found = tables(report)
    assert found["counts"].rows[3] == ("train", "3+", 0, None, None, None)
    assert found["counts"].rows[4][:3] == ("train", "all", 23)
    assert len(found["color"].rows) == 2 * 15
    assert found["sharpness"].rows[0][4] is not None
    assert found["same_tissue_between_splits"].rows[1][6] == "mirrored top to bottom"
    figures = [one.name for section in report.sections for one in section.contents if isinstance(one, Figure)]
    assert {"misaligned", "same_tissue", "plot_color_1", "plot_texture_4"} <= set(figures)
    written = write_report(tmp_path / "report", report)
    data = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert data["same_tissue"][0]["kind"] == "same pixels"
    assert data["alignment"]["misaligned"][0]["pair"].endswith("00031_train_0.png")
    assert {path.suffix for path in written} == {".html", ".md", ".json", ".csv", ".png", ".jpg"}


def test_clean_dataset(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, f"p{number}_1", patch(0, 0, number))
        write(tmp_path, f"p{number}_2", patch(60, 0, number))
    report = inspect_dataset(tmp_path, InspectOptions(group_by="(?P<patient>p.)", figures=False))
    assert report.data["warnings"] == []
    assert report.sections[0].paragraphs == ("No problems were found.",)
    assert [one["between"] for one in report.data["same_tissue"]] == [None] * 3
    assert [(row[2], row[4]) for row in tables(report)["color"].rows[::2]] == [
        ("all", 6), ("p0", 2), ("p1", 2), ("p2", 2),
    ]  # fmt: skip
    assert "residual above 20 px" in " ".join(report.sections[3].paragraphs)  # µm per px is unknown
    assert tables(report)["sharpness"].rows[0][-1] is None


def test_overlap_without_groups_and_splits(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, f"{number}", patch(80 * number, 0))
    (warning,) = inspect_dataset(tmp_path, PLAIN).data["warnings"]
    assert warning.startswith(
        "pairs of patches that show the same tissue: 1 (overlap: 1), such as HE/0.png and HE/1.png"
    )
    assert "by groups" in warning


def test_group_in_two_splits_and_copies(tmp_path: Path) -> None:
    kinds_first(tmp_path, {"": ("p_1", "p_2", "q_1")})
    write(tmp_path, "q_2", patch(0, 0, side_px=64))
    write(tmp_path, "q_3", patch(0, 0, side_px=64))
    splits = {"p_1": "train", "p_2": "val", "q_1": "", "q_2": "train", "q_3": "train"}
    rows = [{"name": name, "group": name[0], "split": split} for name, split in splits.items()]
    write_csv(tmp_path / "groups.csv", rows)
    report = inspect_dataset(tmp_path, InspectOptions(group_by="groups.csv", figures=False))
    assert report.data["warnings"] == [
        "the group 'p' is in train and validation: keep each in one split",
        "copies of patches of the same split: 1; remove them",
    ]


def test_unrelated_stains(tmp_path: Path) -> None:
    """The median shows unrelated pairs where single pairs cannot be outliers."""
    for number in range(4):
        write(tmp_path, f"{number}", (patch(0, 0, number)[0], patch(50, 50, number + 10)[1]))
    warnings = inspect_dataset(tmp_path, PLAIN).data["warnings"]
    assert any("hardly correlates" in warning for warning in warnings)


def test_half_of_the_pairs_are_mismatched(tmp_path: Path) -> None:
    """Wrong pairs are not outliers here, but correlate no better than by chance."""
    pairs = [patch(x, y, seed) for seed in range(6) for x in (0, 200) for y in (0, 200)]
    partners = [*range(1, 12), 0, *range(12, 24)]
    for number, ((he, _), partner) in enumerate(zip(pairs, partners, strict=True)):
        write(tmp_path, f"{number:02}", (he, pairs[partner][1]))
    inspection = inspect_pairs(tmp_path, PLAIN)
    found = {one.number for one in inspection.alignment.misaligned if "no better than chance" in one.reason}
    assert found <= set(range(12))
    assert len(found) >= 11
    warnings = inspect_dataset(tmp_path, PLAIN).data["warnings"]
    assert any(f"; {len(found)} correlate no better than by chance; fix or remove them" in one for one in warnings)


def test_slide_with_two_levels(tmp_path: Path) -> None:
    """Levels come from the names, slides from a table; slide names are unique per patient."""
    levels = ("2+", "3+", "0", "0", "1+", "3+")
    kinds_first(tmp_path, {"": [f"{number:05}_train_{level}" for number, level in enumerate(levels)]})
    rows = [
        {"name": f"{number:05}_train_{level}", "patient": patient, "slide": slide}
        for number, (level, patient, slide) in enumerate(zip(levels, "PPPQRR", "112123", strict=True))
    ]
    groups = write_csv(tmp_path / "of people" / "groups.csv", rows)
    report = inspect_dataset(tmp_path, InspectOptions(group_by=str(groups), figures=False))
    assert [one for one in report.data["warnings"] if "HER2 2+" in one] == [
        "the slide '1' is labeled HER2 2+ and 3+: a slide has one level; fix the labels"
    ]
    assert report.data["grouped_by"] == "groups.csv (patient, slide)"
    assert report.data["options"]["group_by"] == "groups.csv"
    assert "of people" not in json.dumps(report.data)
    assert tables(report)["counts"].rows[-1][3:] == (3, 5, 3)


def test_equal_slide_names_of_different_patients(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write(tmp_path, name, patch(0, 0, number, side_px=96))
    rows = [{"name": "a", "patient": "P", "slide": "1", "split": "train"},
            {"name": "b", "patient": "Q", "slide": "1", "split": "val"},
            {"name": "c", "patient": "R", "slide": "1", "split": "train"}]  # fmt: skip
    write_csv(tmp_path / "groups.csv", rows)
    options = InspectOptions(group_by="groups.csv", figures=False)
    assert inspect_dataset(tmp_path, options).data["warnings"] == []
    write_csv(tmp_path / "groups.csv", [{**row, "patient": "P"} for row in rows])
    assert inspect_dataset(tmp_path, options).data["warnings"] == [
        "the patient 'P' is in train and validation: keep each in one split",
        "the slide '1' is in train and validation: keep each in one split",
    ]


def test_single_images_are_not_pairs(tmp_path: Path) -> None:
    for number in range(6):
        save(patch(0, 0, number)[0], tmp_path / f"{number}.png")
    (warning,) = [one for one in inspect_dataset(tmp_path, PLAIN).data["warnings"] if "halves" in one or "align" in one]
    assert warning.startswith("all images are nearly square, and their halves do not correlate (median")
    assert "put the images of each stain into HE/ and IHC/" in warning
    # a single wide image shows that side-by-side images are intended
    save(np.hstack(patch(0, 0)), tmp_path / "6.png")
    (warning,) = [one for one in inspect_dataset(tmp_path, PLAIN).data["warnings"] if "corr" in one][:1]
    assert warning.startswith("the hematoxylin of H&E and IHC hardly correlates")


def test_narrow_side_by_side_pairs(tmp_path: Path) -> None:
    for number in range(4):
        he, ihc = patch(0, 0, number)
        save(np.hstack([he[:, :96], ihc[:, :96]]), tmp_path / f"{number}.png")
    assert inspect_dataset(tmp_path, PLAIN).data["warnings"] == []


def test_report_states_detection_limits(tmp_path: Path) -> None:
    write(tmp_path, "a", patch(0, 0))
    text = {one.title: " ".join(one.paragraphs) for one in inspect_dataset(tmp_path, PLAIN).sections}
    assert "rotations by other angles from 3°" in text["Same tissue in several patches"]
    assert "changes of scale from 5%" in text["Same tissue in several patches"]
    assert "rotations of the IHC about the center of the patch of up to 10°" in text["Alignment of H&E and IHC"]
    assert "requires 10 pairs of the same size" in text["Alignment of H&E and IHC"]


def test_one_pair(tmp_path: Path) -> None:
    write(tmp_path, "only", patch(0, 0))
    report = inspect_dataset(tmp_path, InspectOptions(mpp=0.5))
    assert report.data["warnings"] == []
    spread = report.data["counts"][0]["statistics"]["H&E"]["red"]
    assert spread["mean"] > 0
    assert spread["sd"] is None


def test_order_of_halves(tmp_path: Path) -> None:
    side_by_side(tmp_path / "ab", {"": ("a", "b")})
    side_by_side(tmp_path / "ba", {"": ("a", "b")}, order="BA")
    counts = [
        inspect_dataset(tmp_path / order.lower(), InspectOptions(order=order, figures=False)).data["counts"]
        for order in ("AB", "BA")
    ]
    assert counts[0] == counts[1]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        inspect_dataset(tmp_path / "lost", PLAIN)
    folder = kinds_first(tmp_path / "small", {"": ("a",)}, size=(12, 40))
    with pytest.raises(DatasetError, match="patches of 12×40 px; the minimum is 16 px"):
        inspect_dataset(folder, PLAIN)
    folder = kinds_first(tmp_path / "sizes", {"": ("a", "b")})
    save(np.zeros((20, 20, 3), np.uint8), folder / "IHC" / "b.png")
    with pytest.raises(DatasetError, match=r"b\.png has 40×32 px, but .*b\.png 20×20"):
        inspect_dataset(folder, PLAIN)


def test_corrupt_test_image_is_named(tmp_path: Path) -> None:
    folder = kinds_first(tmp_path, {"train": ("a", "b"), "test": ("c",)})
    path = folder / "IHC" / "test" / "c.png"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DatasetError, match=r"IHC.test.c\.png cannot be decoded"):
        inspect_dataset(folder, PLAIN)


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"order": "AC"}, "--order is AB or BA"), ({"mpp": 0.0}, "--mpp must lie"), ({"workers": -1}, "--workers must")],
)
def test_invalid_options(choice: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        InspectOptions(**choice)  # type: ignore[arg-type]


def test_torch_is_not_imported() -> None:
    program = "import sys, wsi2ihc.training.inspection.inspect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_real_patches(dev_data: Path, tmp_path: Path) -> None:
    """Two acquisitions of one region and another region: 25 patches each, with random overlaps."""
    source = dev_data / "hemit256" / "train"
    if not source.is_dir():
        pytest.skip("no real pairs")
    for path in [*source.glob("*_18226_57650*"), *source.glob("*_18312_59079.jpg")]:
        (tmp_path / path.name).symlink_to(path)
    inspection = inspect_pairs(tmp_path, InspectOptions(mpp=0.5, group_by=r"_(?P<region>\d+_\d+)"))
    assert all(one.between == "" for one in inspection.duplicates)
    assert len(inspection.duplicates) >= 40
    names = [(inspection.name(one.first), inspection.name(one.second)) for one in inspection.duplicates]
    assert sum(("M2" in first) != ("M2" in second) for first, second in names) >= 15
