"""Every fault of a data set on disk is found, and all of them are listed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from wsi2ihc.concurrency import Progress
from wsi2ihc.errors import DatasetError
from wsi2ihc.registration.transform import LocalField, Transform
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.training.data import Role
from wsi2ihc.training.pairs.dataset_writer import encode_patch, move_patches, open_dataset_folder
from wsi2ihc.training.pairs.pair_manifest import SlidePair
from wsi2ihc.training.pairs.records import Statement
from wsi2ihc.training.pairs.verify_dataset import CheckReport, check_dataset

PX = 6
ROLES: dict[str, Role] = {"S0": "train", "S1": "validation", "S2": "test"}
LEVELS = ("0", "2+", "3+")
FIRST = "HE/train/00000_train_0.png"


def pixels(seed: int, size: tuple[int, int] = (PX, PX)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def make(folder: Path, side_by_side: bool = False) -> Path:
    """Three slides with two patches each."""
    slides = []
    with open_dataset_folder(folder, {"side_by_side": side_by_side}) as store:
        for number, level in enumerate(LEVELS):
            pair = SlidePair(number + 2, f"P{number}", f"S{number}", Path("he"), Path("ihc"), level)
            writer = store.begin(pair.slide)
            save_transform(writer.folder, Transform(np.eye(2, 3), LocalField((0, 0), 50, np.zeros((4, 4, 2)))))
            for at in range(2):
                seed = 10 * number + at
                encoded = encode_patch(pixels(seed), pixels(seed + 100), side_by_side=side_by_side)
                writer.add((at * PX, 0), (0.0, 0.0), {}, encoded=encoded)
            slides.append((pair, writer.complete("x", 0.5)))
        move_patches(store, slides, ROLES, Statement(0.5, PX))
    return folder


def change_table(folder: Path, row: int, **cells: str) -> None:
    """Write other cells into one row (2 is the first) of the table."""
    with (folder / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[row - 2] |= cells
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_good_one(tmp_path: Path, side_by_side: bool) -> None:
    seen: list[Progress] = []
    assert check_dataset(make(tmp_path, side_by_side), seen.append) == CheckReport(6, ())
    assert [(progress.done, progress.total) for progress in seen] == [(done, 6) for done in range(1, 7)]
    assert check_dataset(tmp_path / "pairs.csv") == CheckReport(6, ())


def overwrite(folder: Path, name: str, image: np.ndarray) -> None:
    (folder / name).write_bytes(bytes(imagecodecs.png_encode(np.ascontiguousarray(image))))


def cut_short(folder: Path) -> None:
    """Half a file, with the checksum of that half, so that only decoding can tell."""
    change_table(folder, 2, sha256_he="")
    path = folder / FIRST
    path.write_bytes(path.read_bytes()[:-30])


def damage_bytes(path: Path) -> None:
    """Others, as many."""
    path.write_bytes(path.read_bytes()[::-1])


def move_to_test(folder: Path) -> None:
    for stain in ("HE", "IHC"):
        shutil.move(folder / stain / "train" / "00000_train_0.png", folder / stain / "test" / "x.png")
    change_table(folder, 2, he="HE/test/x.png", ihc="IHC/test/x.png")


def edit_statement(folder: Path, edit: Callable[[dict[str, dict[str, dict[str, object]]]], object]) -> None:
    statement = json.loads((folder / "dataset.json").read_text())
    edit(statement)
    (folder / "dataset.json").write_text(json.dumps(statement))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (
            lambda folder: (folder / FIRST).unlink(),
            [f"pairs.csv, row 2: {FIRST} is missing", "IHC/train/00000_train_0.png is not in pairs.csv",
             "dataset.json counts 2 pairs for train, but there are 1",
             "dataset.json counts {'0': 2} by HER2 level for train, but there are {'0': 1}"],
        ),
        (
            lambda folder: overwrite(folder, FIRST, pixels(77)),
            ["pairs.csv, row 2: 00000_train_0.png has changed: its checksum differs from the table"],
        ),
        (
            lambda folder: (overwrite(folder, FIRST, pixels(1)[..., 0]), change_table(folder, 2, sha256_he="")),
            [f"{FIRST} is gray; convert it to 8-bit RGB"],
        ),
        (cut_short, ["cannot be decoded"]),
        (
            lambda folder: (
                overwrite(folder, FIRST, pixels(1, (4, 4))),
                overwrite(folder, FIRST.replace("HE", "IHC"), pixels(1, (4, 4))),
                change_table(folder, 2, sha256_he="", sha256_ihc=""),
            ),
            ["pairs.csv, row 2: 4×4 px, but dataset.json says 6×6"],
        ),
        (
            lambda folder: (overwrite(folder, FIRST, pixels(1, (4, 4))), change_table(folder, 2, sha256_he="")),
            [f"{FIRST} has 4×4 px, but"],
        ),
        (
            move_to_test,
            ["pairs.csv, row 2: the split is train, but HE/test/x.png lies in test",
             "pairs.csv, row 2: the split is train, but IHC/test/x.png lies in test",
             "places.json and pairs.csv do not both name HE/test/x.png and 3 more"],
        ),
        (
            lambda folder: change_table(folder, 3, patient="P2"),
            ["the patient 'P2' is in test and train"],
        ),
        (
            lambda folder: change_table(folder, 3, split="holdout"),
            ["pairs.csv, row 3: the split is 'holdout', not one of train, val, test",
             "dataset.json counts 2 pairs for train, but there are 1",
             "dataset.json counts {'0': 2} by HER2 level for train, but there are {'0': 1}"],
        ),
        (
            lambda folder: overwrite(folder, "IHC/val/more.png", pixels(1)),
            ["IHC/val/more.png is not in pairs.csv"],
        ),
        (
            lambda folder: change_table(folder, 3, he=FIRST, sha256_he=""),
            ["pairs.csv, row 3: 00000_train_0.png is also that of row 2", "HE/train/00001_train_0.png is not in pairs",
             "do not both name HE/train/00001_train_0.png"],
        ),
        (
            lambda folder: change_table(folder, 2, half="left"),
            ["pairs.csv, row 2: the half is 'left', but he and ihc are", "HE/train/00000_train_0.png is not in",
             "IHC/train/00000_train_0.png is not in", "counts 2 pairs for train", "counts {'0': 2} by HER2"],
        ),
        (
            lambda folder: (folder / "dataset.json").unlink(),
            ["there is no dataset.json: the dataset is incomplete; run the command again"],
        ),
        (
            lambda folder: (folder / "dataset.json").write_text("{"),
            ["dataset.json cannot be read as JSON"],
        ),
        (
            lambda folder: (folder / "dataset.json").write_text("[]"),
            ["dataset.json is not a JSON object"],
        ),
        (
            lambda folder: edit_statement(folder, lambda facts: facts["counts"]["val"].update(pairs=9)),
            ["dataset.json counts 9 pairs for val, but there are 2"],
        ),
        (
            lambda folder: edit_statement(folder, lambda facts: facts["counts"].pop("test")),
            ["dataset.json counts 0 pairs for test, but there are 2"],
        ),
        (
            lambda folder: (folder / "pairs.csv").unlink(),
            ["there is no pairs.csv: the dataset is incomplete; run the same `wsi2ihc pairs` command again"],
        ),
        (
            lambda folder: (folder / "store.json").unlink(),
            ["there is no store.json: `wsi2ihc pairs` cannot resume this dataset"],
        ),
        (
            lambda folder: (folder / "store.json").write_text('{"format": "other"}'),
            ["store.json is of another kind or version"],
        ),
        (
            lambda folder: (folder / "places.json").unlink(),
            ["there is no places.json: the same `wsi2ihc pairs` command extracts all slides again"],
        ),
        (
            lambda folder: (folder / "places.json").write_text("{"),
            ["places.json is damaged: remove it, and the same `wsi2ihc pairs` command extracts all slides again"],
        ),
        (
            lambda folder: (folder / "slides" / "S1" / "record.json").unlink(),
            ["slides/S1/record.json is missing or damaged: the same `wsi2ihc pairs` command extracts its slide again"],
        ),
        (
            lambda folder: (folder / "slides" / "S0" / "transform.npz").unlink(),
            ["slides/S0/transform.npz is missing: the same `wsi2ihc pairs` command extracts its slide again"],
        ),
        (
            lambda folder: (folder / "slides" / "S0" / "transform.json").write_text("{}"),
            ["slides/S0/transform.json has 2 bytes instead of "],
        ),
        (
            lambda folder: damage_bytes(folder / "slides" / "S0" / "transform.npz"),
            ["slides/S0: transform.json: transform.npz is not the local field that belongs to it"],
        ),
    ],
)  # fmt: skip
def test_damage(tmp_path: Path, damage: Callable[[Path], object], messages: list[str]) -> None:
    damage(make(tmp_path))
    report = check_dataset(tmp_path)
    problems = report.problems
    assert len(problems) == len(messages), problems
    assert bool(report.advice) == (tmp_path / "pairs.csv").exists()
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem
        assert "\n" not in problem


def test_a_swapped_half(tmp_path: Path) -> None:
    folder = make(tmp_path, side_by_side=True)
    path = folder / "train" / "00000_train_0.png"
    overwrite(folder, "train/00000_train_0.png", imagecodecs.png_decode(path.read_bytes())[:, ::-1])
    (problem,) = check_dataset(folder).problems
    assert "00000_train_0.png has changed" in problem


def test_all_problems_are_listed(tmp_path: Path) -> None:
    make(tmp_path)
    shutil.rmtree(tmp_path / "IHC")
    report = check_dataset(tmp_path)
    assert (report.patches, sum("is missing" in problem for problem in report.problems)) == (0, 6)
    assert report.shown(2) == (*report.problems[:2], f"… and {len(report.problems) - 2} more")
    assert report.shown() == report.problems


def test_what_a_rerun_cannot_see_is_told_how_to_mend(tmp_path: Path) -> None:
    damage_bytes(make(tmp_path) / FIRST)
    report = check_dataset(tmp_path)
    assert report.problems[0].endswith("its checksum differs from the table")
    assert "a changed file of equal size is restored after you remove it" in report.advice[1]


# data sets from elsewhere


def plain(folder: Path) -> Path:
    """BCI's layout, without a table."""
    for stain in ("HE", "IHC"):
        for split, level in (("train", "0"), ("train", "2+"), ("test", "3+")):
            target = folder / stain / split / f"{'01'[level == '2+']}_{split}_{level}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            overwrite(folder, target.relative_to(folder).as_posix(), pixels(len(target.name)))
    return folder


def test_a_data_set_without_a_table(tmp_path: Path) -> None:
    assert check_dataset(plain(tmp_path)) == CheckReport(3, ())
    overwrite(tmp_path, "HE/test/0_test_3+.png", pixels(1, (4, 4)))
    overwrite(tmp_path, "IHC/test/0_test_3+.png", pixels(1, (4, 4)))
    (problem,) = check_dataset(tmp_path).problems
    assert problem.endswith("4×4 px, but most others have 6×6")
    (tmp_path / "HE" / "test" / "0_test_3+.png").write_bytes(b"x")
    assert "is not an image, or is damaged" in check_dataset(tmp_path).problems[0]
    (tmp_path / "HE" / "test" / "0_test_3+.png").unlink()
    (problem,) = check_dataset(tmp_path).problems
    assert "has no partner" in problem or "there is no image" in problem


def test_a_table_without_checksums(tmp_path: Path) -> None:
    plain(tmp_path)
    lines = ["split,he,ihc,slide", "train,HE/train/0_train_0.png,IHC/train/0_train_0.png,A"]
    lines += ["train,HE/train/1_train_2+.png,IHC/train/1_train_2+.png,B"]
    lines += ["test,HE/test/0_test_3+.png,IHC/test/0_test_3+.png,B"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert check_dataset(tmp_path).problems == ("the slide 'B' is in test and train",)


@pytest.mark.parametrize("name", ["gone", "file"])
def test_no_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="name the folder of a data set"):
        check_dataset(tmp_path / name)


def test_a_table_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("he,stain\na,b\n")
    with pytest.raises(DatasetError, match="has no column ihc"):
        check_dataset(tmp_path)
