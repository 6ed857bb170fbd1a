"""Every fault of a data set on disk is found, and all of them are listed."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from wsi2ihc.concurrency import Progress
from wsi2ihc.errors import DatasetError
from wsi2ihc.registration.transform import LocalField, Transform
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.training.data import Role
from wsi2ihc.training.inspection.inspect import inspect_dataset
from wsi2ihc.training.pairs.dataset_writer import open_dataset_folder, publish
from wsi2ihc.training.pairs.pair_manifest import SlidePair
from wsi2ihc.training.pairs.quality import Limits
from wsi2ihc.training.pairs.slide_record import SlideWriter, encode_patch
from wsi2ihc.training.pairs.verify_dataset import CheckReport, check_dataset

PX = 6
ROLES: dict[str, Role] = {"S0": "train", "S1": "validation", "S2": "test"}
LEVELS = ("0", "2+", "3+")
KEYS = ("aaaaaaaa", "bbbbbbbb", "cccccccc")
METRICS = {"tissue_he": 1.0, "tissue_ihc": 1.0, "valid": 1.0}
FIRST, SECOND = (f"patches/S0/{KEYS[0]}/S0_{number:05}_he.png" for number in range(2))
FIRST_IHC = FIRST.replace("_he", "_ihc")
S0, S1 = (f"patches/S{number}/{KEYS[number]}" for number in range(2))


def pixels(seed: int, size: tuple[int, int] = (PX, PX)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def make(folder: Path, side_by_side: bool = False) -> Path:
    """Three slides with two patches each."""
    slides = []
    with open_dataset_folder(folder, {"side_by_side": side_by_side}) as dataset:
        for number, (level, key) in enumerate(zip(LEVELS, KEYS, strict=True)):
            pair = SlidePair(number + 2, f"P{number}", f"S{number}", Path("he"), Path("ihc"), level)
            writer = SlideWriter(dataset.slide_folder(pair.slide) / key, side_by_side=side_by_side)
            save_transform(writer.registration, Transform(np.eye(2, 3), LocalField((0, 0), 50, np.zeros((4, 4, 2)))))
            for at in range(2):
                seed = 10 * number + at
                encoded = encode_patch(pixels(seed), pixels(seed + 100), side_by_side=side_by_side)
                writer.add((at * PX, 0), (0.0, 0.0), METRICS | {"pen": at / 2}, encoded=encoded)
            slides.append((pair, writer.complete("x", 0.5, Limits(max_pen=1))))
        publish(dataset, slides, ROLES, {"mpp": 0.5, "patch_px": PX})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


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


def rename_first(folder: Path) -> None:
    for name in (FIRST, FIRST_IHC):
        (folder / name).rename(folder / name.replace("00000", "x"))
    change_table(folder, 2, he=FIRST.replace("00000", "x"), ihc=FIRST_IHC.replace("00000", "x"))


def index_another_extraction(folder: Path) -> None:
    other = FIRST.replace(KEYS[0], "99999999"), FIRST_IHC.replace(KEYS[0], "99999999")
    shutil.copytree(folder / S0, (folder / other[0]).parent)
    change_table(folder, 2, he=other[0], ihc=other[1])


def edit_statement(folder: Path, edit: Callable[[dict[str, dict[str, dict[str, object]]]], object]) -> None:
    statement = json.loads((folder / "dataset.json").read_text())
    edit(statement)
    (folder / "dataset.json").write_text(json.dumps(statement))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (
            lambda folder: (folder / FIRST).unlink(),
            [f"pairs.csv, row 2: {FIRST} is missing",
             "dataset.json counts 2 pairs for train, but there are 1",
             "dataset.json counts 0: 2 by HER2 level for train, but there are 0: 1"],
        ),
        (
            lambda folder: overwrite(folder, FIRST, pixels(77)),
            [f"pairs.csv, row 2: {FIRST} has changed: its checksum differs from the table"],
        ),
        (
            lambda folder: (overwrite(folder, FIRST, pixels(1)[..., 0]), change_table(folder, 2, sha256_he="")),
            [f"{FIRST} is gray; convert it to 8-bit RGB"],
        ),
        (cut_short, ["cannot be decoded"]),
        (
            lambda folder: (
                overwrite(folder, FIRST, pixels(1, (4, 4))),
                overwrite(folder, FIRST_IHC, pixels(1, (4, 4))),
                change_table(folder, 2, sha256_he="", sha256_ihc=""),
            ),
            ["pairs.csv, row 2: 4×4 px, but dataset.json says 6×6"],
        ),
        (
            lambda folder: (overwrite(folder, FIRST, pixels(1, (4, 4))), change_table(folder, 2, sha256_he="")),
            [f"{FIRST} has 4×4 px, but"],
        ),
        (
            rename_first,
            ["record.json and pairs.csv do not both name S0_00000_he.png and 3 more"],
        ),
        (
            index_another_extraction,
            ["patches/S0/99999999/S0_00001_he.png is not in pairs.csv",
             "patches/S0/99999999/S0_00001_ihc.png is not in pairs.csv",
             "the patches of the slide 'S0' are from 2 extractions: the same `wsi2ihc pairs` command extracts its",
             "patches/S0/99999999/record.json is missing or damaged: the same `wsi2ihc pairs` command extracts its",
             f"{S0}/record.json and pairs.csv do not both name S0_00000_he.png and 1 more"],
        ),
        (
            lambda folder: change_table(folder, 3, patient="P2"),
            ["the patient 'P2' is in test and train"],
        ),
        (
            lambda folder: change_table(folder, 3, split="holdout"),
            ["pairs.csv, row 3: the split is 'holdout', not one of train, val, test",
             "dataset.json counts 2 pairs for train, but there are 1",
             "dataset.json counts 0: 2 by HER2 level for train, but there are 0: 1"],
        ),
        (
            lambda folder: overwrite(folder, f"{S1}/more.png", pixels(1)),
            [f"{S1}/more.png is not in pairs.csv"],
        ),
        (
            lambda folder: overwrite(folder, f"{S1}/S1_00009_he.png", pixels(1)),
            [f"{S1}/S1_00009_he.png is not in pairs.csv"],
        ),
        (
            lambda folder: ((folder / "IHC").mkdir(), overwrite(folder, "IHC/more.png", pixels(1))),
            ["IHC/more.png is not in pairs.csv"],
        ),
        (
            lambda folder: change_table(folder, 3, he=FIRST, sha256_he=""),
            ["pairs.csv, row 3: S0_00000_he.png is also that of row 2", "do not both name S0_00001_he.png"],
        ),
        (
            lambda folder: change_table(folder, 2, half="left"),
            ["pairs.csv, row 2: the half is 'left', but he and ihc are", "counts 2 pairs for train",
             "counts 0: 2 by HER2"],
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
            lambda folder: (folder / S1 / "record.json").unlink(),
            [f"{S1}/record.json is missing or damaged: the same `wsi2ihc pairs` command extracts its slide again"],
        ),
        (
            lambda folder: (folder / S0 / "registration" / "transform.npz").unlink(),
            [f"{S0}/registration/transform.npz is missing: the same `wsi2ihc pairs` command extracts its slide again"],
        ),
        (
            lambda folder: (folder / S0 / "registration" / "transform.json").write_text("{}"),
            [f"{S0}/registration/transform.json has 2 bytes instead of "],
        ),
        (
            lambda folder: damage_bytes(folder / S0 / "registration" / "transform.npz"),
            [f"{S0}/registration: transform.json: transform.npz is not the local field that belongs to it"],
        ),
    ],
)  # fmt: skip
def test_damage(data: Path, damage: Callable[[Path], object], messages: list[str]) -> None:
    damage(data)
    report = check_dataset(data)
    problems = report.problems
    assert len(problems) == len(messages), problems
    assert bool(report.advice) == (data / "pairs.csv").exists()
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem
        assert "\n" not in problem


def test_a_swapped_half(tmp_path: Path) -> None:
    folder = make(tmp_path, side_by_side=True)
    name = f"{S0}/S0_00000.png"
    overwrite(folder, name, imagecodecs.png_decode((folder / name).read_bytes())[:, ::-1])
    (problem,) = check_dataset(folder).problems
    assert "S0_00000.png has changed" in problem


def test_patches_that_other_limits_reject_are_not_missed(data: Path) -> None:
    with open_dataset_folder(data, {"side_by_side": False}) as dataset:
        slides = [
            (SlidePair(number + 2, f"P{number}", f"S{number}", Path("he"), Path("ihc"), level), record)
            for number, level in enumerate(LEVELS)
            if (record := dataset.find(f"S{number}", "x", Limits(max_pen=0.1)))
        ]
        options = {"limits": dataclasses.asdict(Limits(max_pen=0.1))}
        publish(dataset, slides, ROLES, {"mpp": 0.5, "patch_px": PX, "options": options})
    assert check_dataset(data) == CheckReport(3, ())
    assert (data / SECOND).exists()


def test_slides_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    with open_dataset_folder(tmp_path, {}) as dataset:
        writer = SlideWriter(dataset.slide_folder("test") / KEYS[0])
        writer.add((0, 0), (0, 0), METRICS, encoded=encode_patch(pixels(1), pixels(2), side_by_side=False))
        pair = SlidePair(2, "P", "test", Path("he"), Path("ihc"))
        publish(dataset, [(pair, writer.complete("x", 0.5, Limits()))], {"test": "train"}, {"mpp": 0.5, "patch_px": PX})
    assert check_dataset(tmp_path) == CheckReport(1, ())


def test_an_older_data_set_can_be_used_but_not_resumed(data: Path) -> None:
    store = json.loads((data / "store.json").read_text())
    (data / "store.json").write_text(json.dumps(store | {"version": 2}))
    (problem,) = check_dataset(data).problems
    assert problem.startswith("store.json is of another kind or version: `wsi2ihc pairs` cannot resume this dataset")


def test_all_problems_are_listed(data: Path) -> None:
    for path in data.glob("patches/*/*/*_ihc.png"):
        path.unlink()
    report = check_dataset(data)
    assert (report.patches, sum("is missing" in problem for problem in report.problems)) == (0, 6)
    assert report.shown(2) == (*report.problems[:2], f"… and {len(report.problems) - 2} more")
    assert report.shown() == report.problems


def test_what_a_rerun_cannot_see_is_told_how_to_mend(data: Path) -> None:
    damage_bytes(data / FIRST)
    report = check_dataset(data)
    assert report.problems[0].endswith("its checksum differs from the table")
    (advice,) = report.advice
    assert "remove first a changed file whose size and modification time are unchanged" in advice


def test_each_problem_is_listed_once_with_a_path_in_the_dataset(data: Path) -> None:
    (data / FIRST).write_bytes(b"not an image")
    assert check_dataset(data).problems == (
        f"pairs.csv, row 2: {FIRST} has changed: its checksum differs from the table",
    )


def test_only_the_advice_that_applies_is_given(data: Path) -> None:
    overwrite(data, f"{S1}/more.png", pixels(1))
    assert check_dataset(data).advice == ("files not listed in the dataset are never removed, so move them",)


def test_a_folder_of_slides_is_no_dataset(tmp_path: Path) -> None:
    for name in ("he.tiff", "ihc.tiff"):
        tifffile.imwrite(tmp_path / name, np.zeros((2, 32, 64, 3), np.uint8), photometric="rgb")
    expected = f"{tmp_path} is not a dataset (no pairs.csv, HE/ or IHC/; ihc.tiff holds several images)"
    assert check_dataset(tmp_path) == CheckReport(0, (expected,))
    with pytest.raises(DatasetError, match="is not a dataset"):
        inspect_dataset(tmp_path)


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


def test_a_table_with_files_of_another_split(tmp_path: Path) -> None:
    plain(tmp_path)
    lines = ["split,he,ihc", "train,HE/test/0_test_3+.png,IHC/test/0_test_3+.png"]
    lines += ["train,HE/train/1_train_2+.png,IHC/train/1_train_2+.png"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    problems = check_dataset(tmp_path).problems
    assert problems == (
        "HE/train/0_train_0.png is not in pairs.csv",
        "IHC/train/0_train_0.png is not in pairs.csv",
        "pairs.csv, row 2: the split is train, but HE/test/0_test_3+.png lies in test",
        "pairs.csv, row 2: the split is train, but IHC/test/0_test_3+.png lies in test",
    )


@pytest.mark.parametrize("name", ["gone", "file"])
def test_no_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="name the folder of a dataset"):
        check_dataset(tmp_path / name)


def test_a_table_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("he,stain\na,b\n")
    with pytest.raises(DatasetError, match="has no column ihc"):
        check_dataset(tmp_path)
