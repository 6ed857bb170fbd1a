"""Detection of layouts, and errors in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_pairs import SPLITS, he_pixels, ihc_pixels, kinds_first, rows, side_by_side, splits_first, table, write_csv

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.text import csv_table
from wsi2ihc.training.data import LAYOUTS, Order, PairedData, Role, find_pairs, read_pair
from wsi2ihc.training.data.layouts import read_table

ROLES: dict[str, Role] = {"train": "train", "val": "validation", "test": "test"}
BCI = {"train": ("00000_train_1+", "00001_train_3+", "00007_train_0"), "test": ("00000_test_2+",)}


def check_all(data: PairedData) -> None:
    """Check that all pairs are found, with their roles and the correct pixels."""
    assert {(pair.name, pair.role) for pair in data.pairs} == {
        (name, ROLES[split]) for split, names in SPLITS.items() for name in names
    }
    for pair in data.pairs:
        he, ihc = read_pair(pair)
        np.testing.assert_array_equal(he, he_pixels(pair.name))
        np.testing.assert_array_equal(ihc, ihc_pixels(pair.name))


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (kinds_first, "HE/ and IHC/, each with train/, val/, test/"),
        (lambda folder: kinds_first(folder, he="H&E", ihc="ihc"), "H&E/ and ihc/, each with train/, val/, test/"),
        (splits_first, "train/, val/, test/, each with HE/ and IHC/"),
        (lambda folder: splits_first(folder, he="he", ihc="Ihc"), "train/, val/, test/, each with HE/ and IHC/"),
        (side_by_side, "side by side in train/, val/, test/ (H&E left)"),
        (lambda folder: table(folder, rows()), "a table pairs.csv"),
    ],
)
def test_layouts_with_splits(tmp_path: Path, make: Callable[[Path], Path], layout: str) -> None:
    data = find_pairs(make(tmp_path / "data"))
    check_all(data)
    assert data.layout == layout
    assert (data.mpp, data.stain, data.license, data.grouped_by) == (None, None, None, "")


def test_other_order(tmp_path: Path) -> None:
    data = find_pairs(side_by_side(tmp_path, order="BA"), order="BA")
    check_all(data)
    assert data.layout == "side by side in train/, val/, test/ (H&E right)"


def cyclegan(folder: Path, he: str = "A", ihc: str = "B", between: str = "") -> Path:
    """trainA/ and trainB/, and so on."""
    for split, names in SPLITS.items():
        kinds_first(folder, {"": names}, f"{split}{between}{he}", f"{split}{between}{ihc}")
    return folder


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda folder: kinds_first(folder, he="A", ihc="B"), "A/ and B/ ({}), each with train/, val/, test/"),
        (lambda folder: kinds_first(folder, he="a", ihc="b"), "a/ and b/ ({}), each with train/, val/, test/"),
        (lambda folder: splits_first(folder, he="A", ihc="B"), "train/, val/, test/, each with A/ and B/ ({})"),
        (cyclegan, "testA/, testB/, trainA/, trainB/, valA/, valB/ ({})"),
        (lambda folder: cyclegan(folder, between="_"), "test_A/, test_B/, train_A/, train_B/, val_A/, val_B/ ({})"),
    ],
)
@pytest.mark.parametrize("order", ["AB", "BA"])
def test_a_is_the_he_by_default(tmp_path: Path, make: Callable[[Path], Path], layout: str, order: Order) -> None:
    data = find_pairs(make(tmp_path / "data"), order=order)
    said = {"AB": "the H&E in A; --order BA takes it from B", "BA": "the H&E in B; --order AB takes it from A"}
    assert data.layout == layout.format(said[order])
    assert data.is_lettered
    if order == "AB":
        check_all(data)
    else:
        for pair in data.pairs:
            np.testing.assert_array_equal(read_pair(pair)[0], ihc_pixels(pair.name))


@pytest.mark.parametrize(("he", "ihc"), [("HE", "IHC"), ("_h&e", "_ihc")])
def test_splits_and_stains_in_one_name(tmp_path: Path, he: str, ihc: str) -> None:
    check_all(data := find_pairs(cyclegan(tmp_path, he, ihc)))
    assert not data.is_lettered
    with pytest.raises(OptionError, match="an order BA is for side-by-side images"):
        find_pairs(tmp_path, order="BA")


def test_letters_and_names_together_are_an_error(tmp_path: Path) -> None:
    kinds_first(kinds_first(tmp_path), he="A", ihc="B")
    check_error(tmp_path, "has A/ and B/, and HE/; keep one pair of them")


def test_split_without_the_other_stain_is_an_error(tmp_path: Path) -> None:
    shutil.rmtree(cyclegan(tmp_path) / "valB")
    check_error(tmp_path, "has valA/ without its partner of the other stain")


def test_dataset_in_a_subfolder_is_named(tmp_path: Path) -> None:
    inside = cyclegan(tmp_path / "MIST" / "HER2" / "TrainValAB")
    for folder in (inside.parent, inside.parent.parent):
        check_error(folder, f"no paired patches in {folder}, but in {inside}: give that folder; supported layouts are")


def test_folders_for_classes_are_named(tmp_path: Path) -> None:
    kinds_first(tmp_path, {"train/0": ["a"], "train/1+": ["b"]})
    check_error(tmp_path, "(there are folders instead, as 0/: move the images into")


@pytest.mark.parametrize(("he", "ihc"), [("_HE", "_IHC"), ("-he", "-ihc"), (" H&E", " IHC"), ("_A", "_B")])
def test_stain_suffixes_of_names_are_ignored(tmp_path: Path, he: str, ihc: str) -> None:
    kinds_first(tmp_path, {"train": ["a", "b"]})
    for kind, end in (("HE", he), ("IHC", ihc)):
        for name in ("a", "b"):
            (tmp_path / kind / "train" / f"{name}.png").rename(tmp_path / kind / "train" / f"{name}{end}.png")
    assert [(pair.he.stem, pair.ihc.stem) for pair in find_pairs(tmp_path).pairs] == [
        (f"{name}{he}", f"{name}{ihc}") for name in ("a", "b")
    ]
    (tmp_path / "IHC" / "train" / f"b{ihc}.png").rename(tmp_path / "IHC" / "train" / "c.png")
    check_error(tmp_path, "has no partner of that name")


def test_names_may_differ_in_case_if_unique(tmp_path: Path) -> None:
    kinds_first(tmp_path, {"train": ["p1", "p2"]})
    (tmp_path / "IHC" / "train" / "p1.png").rename(tmp_path / "IHC" / "train" / "P1.png")
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["p1", "p2"]


@pytest.mark.parametrize("make", [kinds_first, side_by_side])
def test_no_roles_without_splits(tmp_path: Path, make: Callable[..., Path]) -> None:
    data = find_pairs(make(tmp_path / "data", {"": ("one", "two")}))
    assert [(pair.name, pair.role) for pair in data.pairs] == [("one", None), ("two", None)]
    np.testing.assert_array_equal(read_pair(data.pairs[1])[1], ihc_pixels("two"))


@pytest.mark.parametrize("make", [splits_first, side_by_side])
def test_part_of_a_dataset(tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    assert {pair.role for pair in find_pairs(tmp_path / "test").pairs} == {"test"}
    monkeypatch.chdir(tmp_path / "train")
    assert [(pair.name, pair.role) for pair in find_pairs(Path()).pairs] == [
        (name, "train") for name in SPLITS["train"]
    ]


def test_links_are_identified_by_their_own_names(tmp_path: Path) -> None:
    side_by_side(tmp_path / "real", {"part_1": ["a"], "part_2": ["b"]})
    (tmp_path / "data").mkdir()
    for name, part in (("train", "part_1"), ("test", "part_2")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real" / part, target_is_directory=True)
    assert [(pair.name, pair.role) for pair in find_pairs(tmp_path / "data").pairs] == [("a", "train"), ("b", "test")]
    assert find_pairs(tmp_path / "data" / "test").pairs[0].role == "test"


def test_splits_in_any_case_and_by_other_names(tmp_path: Path) -> None:
    side_by_side(tmp_path, {"Train": ["a"], "VALID": ["b"], "validation": ["c"]})
    assert {pair.name: pair.role for pair in find_pairs(tmp_path).pairs} == {
        "a": "train",
        "b": "validation",
        "c": "validation",
    }


def test_other_files_are_ignored(tmp_path: Path) -> None:
    kinds_first(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "._a_1.png", "readme.txt", "sub.png"):
        path = tmp_path / "HE" / "train" / name
        path.mkdir() if name == "sub.png" else path.write_bytes(b"x")
    for name in (".git", "docs", "Docs"):
        (tmp_path / name).mkdir(exist_ok=True)
    check_all(find_pairs(tmp_path))


def test_partners_may_have_different_suffixes(tmp_path: Path) -> None:
    kinds_first(tmp_path, {"": ["a.b"]})
    (tmp_path / "IHC" / "a.b.png").rename(tmp_path / "IHC" / "a.b.TIFF")
    (pair,) = find_pairs(tmp_path).pairs
    assert (pair.name, pair.he.name, pair.ihc.name, pair.half) == ("a.b", "a.b.png", "a.b.TIFF", "")


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(20)]
    side_by_side(tmp_path, {"": names[::-1]})
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == names


@pytest.mark.parametrize("make", [kinds_first, splits_first, side_by_side])
def test_bci_names(tmp_path: Path, make: Callable[..., Path]) -> None:
    data = find_pairs(make(tmp_path, BCI))
    assert {(pair.number, pair.role, pair.her2) for pair in data.pairs} == {
        (0, "train", "1+"),
        (1, "train", "3+"),
        (7, "train", "0"),
        (0, "test", "2+"),
    }
    assert data.layout.endswith("; names as in BCI")
    assert (data.mpp, data.stain, data.license) == (None, None, None)


def test_bci_names_with_validation(tmp_path: Path) -> None:
    data = find_pairs(kinds_first(tmp_path, {"": ["00000_train_1+", "00001_val_2+", "00002_test_0"]}))
    assert [(pair.number, pair.role, pair.her2) for pair in data.pairs] == [
        (0, "train", "1+"),
        (1, "validation", "2+"),
        (2, "test", "0"),
    ]


def test_bci_names_state_the_role_without_folders(tmp_path: Path) -> None:
    data = find_pairs(kinds_first(tmp_path, {"": [*BCI["train"], *BCI["test"]]}))
    assert [pair.role for pair in data.pairs] == ["test", "train", "train", "train"]


def test_other_names_get_no_role_from_bci_names(tmp_path: Path) -> None:
    data = find_pairs(kinds_first(tmp_path, {"": [*BCI["train"], *BCI["test"], "extra"]}))
    assert [(pair.name, pair.role, pair.number) for pair in data.pairs] == [
        ("00000_test_2+", "test", 0),
        ("00000_train_1+", "train", 0),
        ("00001_train_3+", "train", 1),
        ("00007_train_0", "train", 7),
        ("extra", None, None),
    ]
    assert data.layout == "HE/ and IHC/; 4 of 5 names as in BCI"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("make", [kinds_first, splits_first, side_by_side])
def test_bci_test_images_are_only_for_test(tmp_path: Path, split: str, make: Callable[..., Path]) -> None:
    make(tmp_path, {split: ["00000_test_2+", "00001_test_0", "00002_train_0", "extra"]})
    check_error(
        tmp_path,
        f"00000_test_2+.png is a test image of BCI by its name, but is used for {ROLES[split]}, and so are 1 more; "
        "test images are never used for training",
    )


def test_bci_test_images_for_training_in_a_table(tmp_path: Path) -> None:
    table(tmp_path, rows({"train": ["00000_test_2+"]}))
    check_error(
        tmp_path, "00000_test_2+.png is a test image of BCI by its name, but is used for train; test images are"
    )


def test_bci_training_images_may_serve_as_validation_and_test(tmp_path: Path) -> None:
    data = find_pairs(side_by_side(tmp_path, {"val": BCI["train"][:1], "test": BCI["train"][1:]}))
    assert [pair.role for pair in data.pairs] == ["validation", "test", "test"]


def test_first_of_several_layouts_is_used(tmp_path: Path) -> None:
    side_by_side(tmp_path, {"": ["loose"]})
    assert find_pairs(tmp_path).layout == "side by side in the folder (H&E left)"
    side_by_side(tmp_path, {"train": ["a"]})
    assert find_pairs(tmp_path).layout == "side by side in train/ (H&E left)"
    splits_first(tmp_path, {"train": ["b"]})
    assert find_pairs(tmp_path).layout == "train/, each with HE/ and IHC/"
    kinds_first(tmp_path, {"": ["c"]})
    assert find_pairs(tmp_path).layout == "HE/ and IHC/"
    kinds_first(tmp_path, {"train": ["d"]})
    assert find_pairs(tmp_path).layout == "HE/ and IHC/, each with train/"
    table(tmp_path, [{"he": "x/e.png", "ihc": "y/e.png"}])
    assert find_pairs(tmp_path).layout == "a table pairs.csv"


# the table


FULL = {"number": 4, "split": "val", "he": "a/p.png", "ihc": "b/q.png", "group": "g", "patient": "P1", "slide": "S1",
        "her2": "2", "mpp": "0.4600"}  # fmt: skip


def test_full_table(tmp_path: Path) -> None:
    data = find_pairs(table(tmp_path, [FULL]) / "pairs.csv")
    (pair,) = data.pairs
    assert (pair.name, pair.he, pair.ihc) == ("p", tmp_path / "a" / "p.png", tmp_path / "b" / "q.png")
    assert (pair.number, pair.role, pair.patient, pair.slide, pair.her2) == (4, "validation", "P1", "S1", "2+")
    assert (data.folder, data.mpp) == (tmp_path, 0.46)


@pytest.mark.parametrize(
    ("cell", "level"), [("0", "0"), ("1", "1+"), ("1+", "1+"), ("2 +", "2+"), (3, "3+"), ("3+", "3+"), ("", None)]
)
def test_levels_of_a_table(tmp_path: Path, cell: object, level: str | None) -> None:
    (pair,) = find_pairs(table(tmp_path, [FULL | {"her2": cell}])).pairs
    assert pair.her2 == level


def halves(folder: Path, half: str) -> Path:
    """A table of side-by-side images, with the H&E in this half."""
    side_by_side(folder, {"images": ["a", "b"]}, order="AB" if half == "left" else "BA")
    names = ("images/a.png", "images/b.png")
    write_csv(folder / "pairs.csv", [{"he": name, "ihc": name, "half": half, "patient": "P"} for name in names])
    return folder


@pytest.mark.parametrize("half", ["left", "Right"])
def test_table_of_side_by_side_images(tmp_path: Path, half: str) -> None:
    pairs = find_pairs(halves(tmp_path, half.lower())).pairs
    assert [(pair.name, pair.half, pair.patient) for pair in pairs] == [
        ("a", half.lower(), "P"),
        ("b", half.lower(), "P"),
    ]
    he, ihc = read_pair(pairs[1])
    np.testing.assert_array_equal(he, he_pixels("b"))
    np.testing.assert_array_equal(ihc, ihc_pixels("b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half": "top"}, "pairs.csv, row 3: the half is 'top', not left or right (the side of the H&E)"),
        ({"ihc": "images/a.png"}, "row 3: a half requires one image of both stains, but he and ihc are two files"),
        ({"half": ""}, "pairs.csv, row 3: b.png is given as H&E and as IHC"),
        ({"he": "images/a.png", "ihc": "images/a.png"}, "rows 2 and 3 have the same side-by-side image a.png"),
    ],
)
def test_bad_halves(tmp_path: Path, change: dict[str, str], message: str) -> None:
    halves(tmp_path, "left")
    row = {"he": "images/a.png", "ihc": "images/a.png", "half": "left"}
    write_csv(tmp_path / "pairs.csv", [row, {"he": "images/b.png", "ihc": "images/b.png", "half": "left"} | change])
    check_error(tmp_path, message)


def test_order_option_with_a_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"an order BA is for side-by-side images in folders; .*pairs.csv states the sides"
    ):
        find_pairs(halves(tmp_path, "left"), order="BA")


def test_dataset_json(tmp_path: Path) -> None:
    table(tmp_path, rows())
    (tmp_path / "dataset.json").write_text(json.dumps({"mpp": 0.46, "stain": "HER2", "license": "CC BY 4.0", "x": 1}))
    data = find_pairs(tmp_path)
    assert (data.mpp, data.stain, data.license, data.icc) == (0.46, "HER2", "CC BY 4.0", None)
    for icc, found in (("srgb", "srgb"), ("keep", "keep"), ("x", None), ([], None)):
        (tmp_path / "dataset.json").write_text(json.dumps({"options": {"icc": icc}}))
        assert find_pairs(tmp_path).icc == found


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("{", "dataset.json cannot be read as JSON"),
        ("[1]", "dataset.json is not a JSON object"),
        ('{"mpp": -1}', "dataset.json: mpp is -1, not a number of µm/px"),
        ('{"mpp": true}', "dataset.json: mpp is True, not"),
        ('{"mpp": 0.001}', "dataset.json: mpp is 0.001, not a number of µm/px between 0.02 and 50"),
        ('{"stain": 3}', "dataset.json: stain is not text"),
        ('{"mpp": 0.5}', "dataset.json states 0.5 µm/px, but pairs.csv 0.46"),
    ],
)
def test_bad_dataset_json(tmp_path: Path, statement: str, message: str) -> None:
    table(tmp_path, [FULL])
    (tmp_path / "dataset.json").write_text(statement)
    check_error(tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"split": "holdout"},
            "pairs.csv, row 3: the split is 'holdout', not one of train, val, valid, validation, test",
        ),
        ({"number": "7b"}, "pairs.csv, row 3: the number is '7b'"),
        ({"mpp": "fine"}, "pairs.csv, row 3: mpp is 'fine', not a number of µm/px between 0.02 and 50"),
        ({"mpp": "250"}, "pairs.csv, row 3: mpp is '250', not a number of µm/px between 0.02 and 50"),
        ({"her2": "4+"}, "pairs.csv, row 3: the HER2 level is '4+', not one of 0, 1+, 2+, 3+ (leave it empty if unkno"),
        ({"her2": "low"}, "pairs.csv, row 3: the HER2 level is 'low'"),
        ({"mpp": "0.25"}, "pairs.csv: patches of 0.25 and of 0.46 µm/px; resample them to one mpp"),
        ({"he": ""}, "pairs.csv, row 3: no file in the column he"),
        ({"he": "a/gone.png"}, "a/gone.png, which does not exist (nor are 1 more)"),
        ({"he": "a/p.png", "ihc": "b/q.png"}, "pairs.csv: rows 2 and 3 have the same H&E p.png"),
        ({"he": "b/../a/p.png"}, "pairs.csv: rows 2 and 3 have the same H&E p.png"),
        ({"ihc": "b/q.png"}, "pairs.csv: rows 2 and 3 have the same IHC q.png"),
        ({"ihc": "a/../b/q.png"}, "pairs.csv: rows 2 and 3 have the same IHC q.png"),
        ({"he": "b/q.png"}, "pairs.csv, rows 2 and 3: q.png is given as IHC and as H&E"),
        ({"he": "a/r.png", "ihc": "b/../a/r.png"}, "pairs.csv, row 3: r.png is given as H&E and as IHC"),
    ],
)
def test_bad_table(tmp_path: Path, change: dict[str, str], message: str) -> None:
    table(tmp_path, [FULL])
    write_csv(tmp_path / "pairs.csv", [FULL, {**FULL, "he": "a/r.png", "ihc": "b/r.png"} | change])
    if "gone" not in message:
        shutil.copy(tmp_path / "a" / "p.png", tmp_path / "a" / "r.png")
        shutil.copy(tmp_path / "a" / "p.png", tmp_path / "b" / "r.png")
    check_error(tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "pairs.csv has no rows below its column names"),
        (b"he,ihc\n", "pairs.csv has no rows below its column names"),
        (b"he,stain\na,b\n", "pairs.csv has no column ihc (it needs he and ihc)"),
        (b"he,ihc\na,b,c\n", "pairs.csv, row 2: 3 fields, but 2 columns"),
        (b"he;ihc;mpp\na;b;0,46\n", "pairs.csv are separated by semicolons; separate them by commas"),
        (b"he\tihc\na\tb\n", "pairs.csv are separated by tabs; separate them by commas"),
        (b"he,ihc,he\na,b,c\n", "pairs.csv has the column 'he' twice"),
        (b"he,ihc\n\xff,b\n", "pairs.csv is not text in UTF-8; save it as UTF-8"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(content)
    check_error(tmp_path, message)


def test_csv_of_a_spreadsheet(tmp_path: Path) -> None:
    table(tmp_path, rows({"train": ["a", "b"]}))
    (tmp_path / "pairs.csv").write_bytes(
        "\ufeffHE, IHC ,Split\r\nhe/a.png , ihc/a.png\r\n,,\r\nhe/b.png,ihc/b.png,Test\r\n".encode()
    )
    assert [(pair.name, pair.role) for pair in find_pairs(tmp_path).pairs] == [("a", None), ("b", "test")]


def test_links_to_one_file_are_one_patch(tmp_path: Path) -> None:
    table(tmp_path, [FULL])
    (tmp_path / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    write_csv(tmp_path / "pairs.csv", [FULL, {**FULL, "he": "linked/p.png"}])
    check_error(tmp_path, "pairs.csv: rows 2 and 3 have the same H&E p.png")


# faults in folders


def check_error(folder: Path, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        find_pairs(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_partners(tmp_path: Path) -> None:
    kinds_first(tmp_path)
    (tmp_path / "IHC" / "train" / "b_1.png").unlink()
    check_error(
        tmp_path, f"{Path('HE', 'train', 'b_1.png')} has no partner of that name in {tmp_path / 'IHC' / 'train'}"
    )
    (tmp_path / "IHC" / "train" / "c_2.png").unlink()
    check_error(tmp_path, "(nor have 1 more)")


def test_missing_partner_on_the_other_side(tmp_path: Path) -> None:
    splits_first(tmp_path)
    (tmp_path / "test" / "HE" / "t_1.png").unlink()
    check_error(tmp_path, f"{Path('IHC', 't_1.png')} has no partner of that name in {tmp_path / 'test' / 'HE'}")


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    kinds_first(tmp_path)
    shutil.copy(tmp_path / "HE" / "train" / "a_1.png", tmp_path / "HE" / "train" / "a_1.jpg")
    check_error(tmp_path, "has both a_1.jpg and a_1.png")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((), f"supported layouts are {LAYOUTS}"),
        (("other",), f"supported layouts are {LAYOUTS}"),
        (("HE",), "has HE/ but no IHC/"),
        (("ihc",), "has ihc/ but no HE/"),
        (("HE", "IHC"), "there is no image in"),
        (("train",), "there is no image in"),
        (("train/HE",), "has HE/ but no IHC/"),
        (("train/HE", "train/IHC", "test"), "test lacks the HE/ and IHC/ that the other splits have"),
        (("HE/train", "IHC/train", "HE/val"), "val has no partner in"),
        (("HE/train", "HE", "IHC"), "train has no partner in"),
        (("HE", "he", "IHC"), "has both HE/ and he/; keep one of them"),
    ],
)
def test_incomplete_folders(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    if "he" in folders and len(list(tmp_path.iterdir())) < 3:
        pytest.skip("a file system that does not tell upper from lower case")
    check_error(tmp_path, message)


def test_empty_split(tmp_path: Path) -> None:
    side_by_side(tmp_path)
    (tmp_path / "valid").mkdir()
    check_error(tmp_path, f"there is no image in {tmp_path / 'valid'}")


def test_no_folder(tmp_path: Path) -> None:
    check_error(tmp_path / "nowhere", f"there is no folder {tmp_path / 'nowhere'}")


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"x")
    check_error(tmp_path / "slide.svs", f"{tmp_path / 'slide.svs'} is a file; give the folder of the patches")


def test_failures_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(folder: Path) -> None:
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    check_error(tmp_path, f"{tmp_path} cannot be read (Input/output error)")


def test_order_without_side_by_side_images(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"an order BA is for side-by-side images; .* has HE/ and IHC/"):
        find_pairs(kinds_first(tmp_path), order="BA")


def test_real_data(dev_data: Path) -> None:
    assert len(find_pairs(dev_data / "hemit256" / "train").pairs) == 1311
    data = find_pairs(dev_data / "hemit512_sample")
    assert (len(data.of("train")), len(data.of("test"))) == (48, 12)
    assert all(pair.he.suffix == ".jpg" and pair.ihc.suffix == ".png" for pair in data.pairs)
    data = find_pairs(dev_data / "facades", order="BA")
    assert (len(data.of("train")), len(data.of("test"))) == (400, 106)
    assert data.pairs[0].half == "right"


def test_names_like_formulas_round_trip(tmp_path: Path) -> None:
    names = ["=1+1", "+49", "-S1", "@S", "'=1", "'S", "-5"]
    for folder in ("HE", "IHC"):
        (tmp_path / folder).mkdir()
        for number in range(len(names)):
            (tmp_path / folder / f"{number}.png").touch()
    rows = [[f"HE/{number}.png", f"IHC/{number}.png", name] for number, name in enumerate(names)]
    (tmp_path / "pairs.csv").write_text(csv_table([["he", "ihc", "patient"], *rows], "\n"))
    pairs, _ = read_table(tmp_path / "pairs.csv")
    assert [pair.patient for pair in pairs] == names
