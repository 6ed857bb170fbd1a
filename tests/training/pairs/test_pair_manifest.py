"""Every fault of a manifest is one line, and takes no other row with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from wsi2ihc import tables
from wsi2ihc.errors import DatasetError
from wsi2ihc.files import read_regular
from wsi2ihc.slide import Choice
from wsi2ihc.training.pairs.pair_manifest import IDENTITY, Folders, Manifest, SlidePair, read_manifest

HEAD = "patient_id,slide_id,he_path,ihc_path"


def manifest(folder: Path, lines: Sequence[str], head: str = HEAD, slides: str = "abcdef") -> Path:
    for name in slides:
        for kind in ("he", "ihc"):
            (folder / f"{name}_{kind}.svs").write_bytes(b"x")
    path = folder / "manifest.csv"
    path.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    return path


def line(name: str, *more: str, patient: str | None = None) -> str:
    return ",".join((patient or f"P{name}", f"S{name}", f"{name}_he.svs", f"{name}_ihc.svs", *more))


def found(read: Manifest) -> list[tuple[int, str]]:
    return [(problem.row, problem.message) for problem in read.problems]


def test_the_least(tmp_path: Path) -> None:
    path = manifest(tmp_path, [line("a"), line("b")])
    read = read_manifest(path)
    assert read.rows == (
        SlidePair(2, "Pa", "Sa", tmp_path / "a_he.svs", tmp_path / "a_ihc.svs"),
        SlidePair(3, "Pb", "Sb", tmp_path / "b_he.svs", tmp_path / "b_ihc.svs"),
    )
    assert (read.problems, read.ignored) == ((), ())
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_everything(tmp_path: Path) -> None:
    for name in ("h.csv", "i.csv", "saved.json"):
        (tmp_path / name).write_text("")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "transform.json").write_text("")
    head = "\ufeffPatient, SLIDE ,he,IHC,HER2,he_mpp,ihc_mpp,split,landmarks,transform,stainer"
    rows = [
        line("a", "2", "0.25", "0.5", "Valid", "h.csv; i.csv", "identity", "x"),
        line("b", "3 +", "", "", "train", "", '"1 0 -5.5; 0,1,1e2"', ""),
        line("c", "0", "", "", "", "", "saved.json", ""),
        line("d", "", "", "", "test", "", "one", ""),
    ]
    read = read_manifest(manifest(tmp_path, rows, head))
    assert read.problems == ()
    a, b, c, d = read.rows
    assert (a.her2, a.he_mpp, a.ihc_mpp, a.role, a.transform) == ("2+", 0.25, 0.5, "validation", IDENTITY)
    assert (a.he_landmarks, a.ihc_landmarks) == (tmp_path / "h.csv", tmp_path / "i.csv")
    assert (b.her2, b.role, b.transform, b.he_landmarks) == ("3+", "train", (1, 0, -5.5, 0, 1, 100), None)
    assert (c.her2, c.transform) == ("0", tmp_path / "saved.json")
    assert (d.her2, d.he_mpp, d.role, d.transform) == (None, None, "test", tmp_path / "one")
    assert read.ignored == ("stainer",)


def test_the_tissue_of_a_slide(tmp_path: Path) -> None:
    (tmp_path / "mask.geojson").write_text("{}")
    rows = [line("a", "none"), line("b", "Auto"), line("c", "mask.geojson"), line("d", "")]
    read = read_manifest(manifest(tmp_path, [*rows, line("e", "gone.png")], f"{HEAD},tissue"))
    assert [pair.tissue for pair in read.rows] == ["none", "auto", tmp_path / "mask.geojson", None]
    assert [problem.message for problem in read.problems] == [
        f"the tissue mask {tmp_path / 'gone.png'} does not exist; check the path"
    ]


def test_rows_are_counted_as_editors_count_lines(tmp_path: Path) -> None:
    notes = '"of two\nlines"'
    rows = ["", line("a", notes), ",,,,", line("b", "x"), "", "", "P,S,gone.svs,c_ihc.svs,"]
    read = read_manifest(manifest(tmp_path, rows, f"{HEAD},notes"))
    assert [pair.row for pair in read.rows] == [3, 6]
    assert [problem.row for problem in read.problems] == [9]
    path = manifest(tmp_path, ["", line("a", "1", "2")])
    with pytest.raises(DatasetError, match="row 3: 6 fields, but 4 columns"):
        read_manifest(path)


def test_it_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(tmp_path, [line("a")])
    opened: list[Path] = []
    monkeypatch.setattr(
        tables, "read_regular", lambda path, largest: opened.append(path) or read_regular(path, largest)
    )
    read = read_manifest(path)
    assert opened == [path]
    path.unlink()
    assert {"Pa", "Sa", "a_he.svs", "a_ihc.svs"} <= read.cells
    assert Folders.of(read).removed(f"{tmp_path / 'a_he.svs'} is gone") == "a_he.svs is gone"


def test_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    path = manifest(tmp_path, [f"P,S,{tmp_path / 'a_he.svs'},a_ihc.svs"])
    moved = path.rename(tmp_path / "slides" / "m.csv")
    assert found(read_manifest(moved)) == [
        (2, f"the IHC slide {tmp_path / 'slides' / 'a_ihc.svs'} does not exist; check the path")
    ]


@pytest.mark.parametrize(
    ("head", "cells", "message"),
    [
        (HEAD, ",S,a_he.svs,a_ihc.svs", "no patient_id; it is required, since the dataset is split by patient"),
        (HEAD, "P,,a_he.svs,a_ihc.svs", "no slide_id"),
        (HEAD, "P,S,,a_ihc.svs", "no path of the H&E slide"),
        (HEAD, "P,S,gone.svs,a_ihc.svs", "gone.svs does not exist; check the path"),
        (HEAD, "P,S,a_he.svs,.", "is not a file"),
        (HEAD, "P,S,a_he.svs,a_he.svs", "a_he.svs is given as H&E and as IHC"),
        (
            HEAD,
            "P,S,a_he.svs,x\x01y.svs",
            "the path of the IHC slide contains a control character: 'x\\x01y.svs'",
        ),
        (HEAD, 'P,S,"a_he\n.svs",a_ihc.svs', "the path of the H&E slide contains a control character"),
        (HEAD, "P,../S,a_he.svs,a_ihc.svs", "the slide_id '../S' is not valid as a folder name"),
        (HEAD, "P,..,a_he.svs,a_ihc.svs", "the slide_id '..' is not valid as a folder name"),
        (HEAD, "P,.hidden,a_he.svs,a_ihc.svs", "is not valid as a folder name"),
        (HEAD, "P,a\\b,a_he.svs,a_ihc.svs", "is not valid as a folder name"),
        (HEAD, "P,a\tb,a_he.svs,a_ihc.svs", "is not valid as a folder name"),
        (HEAD, f"P,{'é' * 80},a_he.svs,a_ihc.svs", "is longer than 150 bytes"),
        (f"{HEAD},her2", "P,S,a_he.svs,a_ihc.svs,4", "the HER2 level is '4', not one of 0, 1+, 2+, 3+"),
        (f"{HEAD},her2", "P,S,a_he.svs,a_ihc.svs,positive", "the HER2 level is 'positive'"),
        (f"{HEAD},he_mpp", "P,S,a_he.svs,a_ihc.svs,250", "he_mpp is '250', not a number of µm/px between 0.02 and"),
        (f"{HEAD},ihc_mpp", "P,S,a_he.svs,a_ihc.svs,0_5", "ihc_mpp is '0_5', not a number"),
        (f"{HEAD},ihc_mpp", "P,S,a_he.svs,a_ihc.svs,nan", "ihc_mpp is 'nan', not a number"),
        (f"{HEAD},ihc_mpp", "P,S,a_he.svs,a_ihc.svs,-1", "ihc_mpp is '-1', not a number"),
        (f"{HEAD},split", "P,S,a_he.svs,a_ihc.svs,holdout", "the split is 'holdout', not one of train, val, test"),
        (f"{HEAD},landmarks", "P,S,a_he.svs,a_ihc.svs,h.csv", "not two tables separated by a semicolon"),
        (f"{HEAD},landmarks", "P,S,a_he.svs,a_ihc.svs,h.csv;a_he.svs", "the table of H&E landmarks"),
        (f"{HEAD},he_landmarks", "P,S,a_he.svs,a_ihc.svs,h.csv", "landmarks are given of the H&E alone"),
        (f"{HEAD},ihc_landmarks", "P,S,a_he.svs,a_ihc.svs,h.csv", "landmarks are given of the IHC alone"),
        (f"{HEAD},landmarks,he_landmarks", "P,S,a_he.svs,a_ihc.svs,h;i,h", "landmarks are given twice"),
        (f"{HEAD},transform", "P,S,a_he.svs,a_ihc.svs,rigid", "neither identity, nor six numbers, nor an existing"),
        (f"{HEAD},transform", "P,S,a_he.svs,a_ihc.svs,1 0 0 0 1", "must be six numbers"),
        (f"{HEAD},transform", "P,S,a_he.svs,a_ihc.svs,1 0 0 0 1 inf", "must be six numbers"),
        (f"{HEAD},transform", "P,S,a_he.svs,a_ihc.svs,1 0 0 0 1 x", "must be six numbers"),
        (f"{HEAD},transform", "P,S,a_he.svs,a_ihc.svs,1 2 0 2 4 0", "is singular"),
        (f"{HEAD},transform", "P,S,a_he.svs,a_ihc.svs,.", "contains no transform.json"),
    ],
)
def test_a_bad_row_leaves_the_others_alone(tmp_path: Path, head: str, cells: str, message: str) -> None:
    good = "Q,T,b_he.svs,b_ihc.svs"
    read = read_manifest(manifest(tmp_path, [cells, good], head))
    assert [row.slide for row in read.rows] == ["T"]
    (problem,) = read.problems
    assert problem.row == 2
    assert message in problem.message
    assert "\n" not in problem.message


def test_all_that_is_wrong_with_a_row_is_said(tmp_path: Path) -> None:
    read = read_manifest(manifest(tmp_path, [",S,gone.svs,a_ihc.svs,7,x"], f"{HEAD},her2,split"))
    assert len(read.problems) == 4
    assert {problem.slide for problem in read.problems} == {"S"}
    assert read.rows == ()


def test_rows_whose_files_are_not_there_are_known_all_the_same(tmp_path: Path) -> None:
    rows = [
        "P1,S1,gone.svs,lost.svs,3+,gone/transform.json",
        "P2,S2,gone2.svs,b_ihc.svs,7,",
        "P3,S3,c_he.svs,c_ihc.svs,0,identity",
        "P4,S4,d_he.svs,away.svs,,",
        "P5,S4,e_he.svs,e_ihc.svs,,",
    ]
    read = read_manifest(manifest(tmp_path, rows, f"{HEAD},her2,transform"))
    assert [row.slide for row in read.rows] == ["S3"]
    assert read.unreachable == (
        SlidePair(
            2,
            "P1",
            "S1",
            tmp_path / "gone.svs",
            tmp_path / "lost.svs",
            "3+",
            transform=tmp_path / "gone/transform.json",
        ),
    )  # the second has another fault, the fourth another's id
    assert [number for number, _ in found(read)] == [2, 2, 2, 3, 3, 5, 5, 6]


@pytest.mark.parametrize("name", ["splitt", "her_2", "transformation", "ihcmpp", "landmark"])
def test_columns_that_are_misspelt(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"has an unknown column '{name}', similar to .*; rename it"):
        read_manifest(manifest(tmp_path, [line("a", "x")], f"{HEAD},{name}"))
    # what is there by its right name cannot be meant
    assert read_manifest(manifest(tmp_path, [line("a", "x", "test")], f"{HEAD},splitting,split")).ignored


def test_rows_that_contradict_each_other_all_fall(tmp_path: Path) -> None:
    rows = [
        "P1,S1,a_he.svs,a_ihc.svs",
        "P2,s1,b_he.svs,b_ihc.svs",
        "P3,S3,c_he.svs,c_ihc.svs",
        "P4,S4,./c_he.svs,d_ihc.svs",
        "P5,S5,e_he.svs,d_ihc.svs",
        "P6,S6,f_he.svs,f_ihc.svs",
    ]
    read = read_manifest(manifest(tmp_path, rows))
    assert found(read) == [
        (2, "rows 2, 3 have the slide_id 'S1'; give each its own"),
        (3, "rows 2, 3 have the slide_id 'S1'; give each its own"),
        (4, "rows 4, 5 have the same H&E slide c_he.svs; keep one"),
        (5, "rows 4, 5 have the same H&E slide c_he.svs; keep one"),
        (5, "rows 5, 6 have the same IHC slide d_ihc.svs; keep one"),
        (6, "rows 5, 6 have the same IHC slide d_ihc.svs; keep one"),
    ]
    assert [row.slide for row in read.rows] == ["S6"]


def test_a_patient_in_two_splits(tmp_path: Path) -> None:
    rows = [line("a", "train", patient="P"), line("b", "", patient="P"), line("c", "test", patient="P"), line("d", "")]
    read = read_manifest(manifest(tmp_path, rows, f"{HEAD},split"))
    message = "the patient 'P' is in test and train (rows 2, 3, 4); give them one split"
    assert found(read) == [(2, message), (3, message), (4, message)]
    assert [row.slide for row in read.rows] == ["Sd"]
    agreeing = [line("a", "val", patient="P"), line("b", "validation", patient="P"), line("c", "", patient="P")]
    assert len(read_manifest(manifest(tmp_path, agreeing, f"{HEAD},split")).rows) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows below its column names"),
        (f"{HEAD}\n", "has no rows below its column names"),
        ("patient_id,slide_id,he_path\nP,S,a\n", "has no column ihc_path (it needs patient_id, slide_id, he_path, ihc"),
        (f"{HEAD},patient\nP,S,a,b,P\n", "has both columns patient_id and patient; keep one of them"),
        ("patient_id;slide_id;he_path;ihc_path\nP;S;a;b\n", "separated by semicolons; separate them by commas"),
    ],
)
def test_a_table_that_is_no_manifest(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(content)
    with pytest.raises(DatasetError) as caught:
        read_manifest(path)
    assert message in str(caught.value)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_manifest(tmp_path / "m.csv")


def test_columns_choose_the_images_of_the_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e", "f"):
        (tmp_path / name).touch()
    rows = ("P,S,a,b,1,", "P,T,c,d,,2", "P,U,e,f,-1,")
    (tmp_path / "pairs.csv").write_text("\n".join(("patient,slide,he,ihc,he_series,ihc_page", *rows)))
    manifest = read_manifest(tmp_path / "pairs.csv")
    assert [(pair.he_image, pair.ihc_image) for pair in manifest.rows] == [
        (Choice(1, None), Choice()), (Choice(), Choice(None, 2))
    ]  # fmt: skip
    assert "he_series is '-1', not a number from 0" in manifest.problems[0].message
