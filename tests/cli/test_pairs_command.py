"""The pairs command: what it says, its exit codes, and one clear line for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from make_slides import halves, write_slide

sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "pairs"))
from make_slide_pairs import SIZE, SMALL, row, tree, write_manifest, write_pairs

from wsi2ihc.cli.main import main


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("slides"), 2)


@pytest.fixture(scope="module")
def manifest(slides: Path) -> Path:
    return write_manifest(slides / "manifest.csv", [row(0, split="train"), row(1, split="val")])


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["pairs", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_data_set_is_made_checked_and_left_alone(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    code, out, err = run(capsys, manifest, folder, *SMALL, "--stain", "HER2", "--license", "CC0")
    assert code == 0
    assert "8 pairs of patches from 2 pairs of slides, 2 of them new" in out
    assert "train    4 pairs, 1 slide, 1 patient (HER2 0: 4)" in out
    assert f"next: wsi2ihc train {folder}" in out
    assert "extracting patches" in err
    assert "\r" not in err  # no redrawing where there is no terminal
    statement = json.loads((folder / "dataset.json").read_text())
    assert (statement["stain"], statement["license"], statement["options"]["patch_size"]) == ("HER2", "CC0", 128)
    assert statement["name"] == "data"
    code, out, _ = run(capsys, manifest, folder, *SMALL, "--stain", "HER2", "--license", "CC0")
    assert (code, "already complete, 8 pairs; nothing was done" in out) == (0, True)
    code, out, err = run(capsys, "--check", folder)
    assert (code, "8 pairs, no problems" in out) == (0, True)
    next(folder.glob("patches/*/*/*_ihc.png")).unlink()
    code, out, err = run(capsys, "--check", folder, "--json")
    assert code == 1
    assert any("is missing" in problem for problem in json.loads(out)["problems"])
    code, _, err = run(capsys, "--check", folder)
    assert (code, err.count("Error: ") >= 1, err.count("To fix it: ")) == (1, True, 1)


def test_some_failed(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_manifest(slides / "bad.csv", [row(0), row(1, he_path="lost.tif", her2="7")])
    code, out, err = run(capsys, bad, tmp_path / "data", *SMALL, "--json", "-q")
    facts = json.loads(out)
    assert code == 3
    assert facts["kept"] == 4
    (line,) = err.splitlines()
    assert line.startswith("Error: row 3 (S1): ")
    assert "lost.tif does not exist" in line
    assert "the HER2 level is '7'" in line


def test_a_registration_that_fails(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mismatched = write_manifest(
        slides / "mismatched.csv", [row(0), row(1, ihc_path="empty.tif", transform="", slide_id="S9")]
    )
    empty = np.random.default_rng(0).normal(240, 2, (SIZE[1], SIZE[0], 3)).clip(0, 255).astype(np.uint8)
    write_slide(slides / "empty.tif", halves(empty, 2))
    folder = tmp_path / "data"
    code, out, err = run(capsys, mismatched, folder, *SMALL, "--spacing-um", "100")
    assert code == 3
    assert "4 pairs of patches from 1 pair of slides" in out
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "row 3 (S9): empty.tif could not be registered to he1.tif: no tissue was found on the IHC slide" in line
    (failed,) = folder.glob("patches/S9/*/registration")
    assert line.endswith(f"see {failed.relative_to(folder).as_posix()}/before.png")
    assert {path.name for path in failed.iterdir()} == {"before.png", "registration.json"}
    assert list(failed.parent.iterdir()) == [failed]
    facts = json.loads((failed / "registration.json").read_text())
    assert (facts["status"], facts["options"]["spacing_um"]) == ("failed", 100)
    assert len(list(folder.glob("patches/S0/*/*_he.png"))) == 4
    assert run(capsys, "--check", folder)[0] == 0
    code, _, err = run(capsys, mismatched, folder, *SMALL)
    assert (code, "a dataset made with spacing_um 100.0; this run asks for 64.0" in err) == (1, True)


def test_all_failed(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_manifest(slides / "worse.csv", [row(0, ihc_path="lost.tif")])
    code, out, err = run(capsys, bad, tmp_path / "data", *SMALL)
    assert code == 1
    assert out == f"{tmp_path / 'data'}: no slide pair can be used\n"
    assert "row 2 (S0)" in err
    assert run(capsys, bad, tmp_path / "data", *SMALL, "--dry-run")[0] == 1


def test_the_next_step_is_named(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = write_manifest(slides / "alone.csv", [row(0, split="train")])
    code, out, _ = run(capsys, alone, tmp_path / "data", *SMALL)
    assert (code, "next:" in out) == (0, False)
    assert "not ready for wsi2ihc train: no patches for validation; add slides" in out


def test_side_by_side(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    assert run(capsys, manifest, folder, *SMALL, "--side-by-side")[0] == 0
    assert len(list(folder.glob("patches/S0/*/*.png"))) == 4
    assert run(capsys, "--check", folder)[0] == 0


def test_a_dry_run(slides: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(tmp_path.iterdir())
    code, out, err = run(capsys, manifest, tmp_path / "data", "--dry-run", *SMALL)
    assert code == 0
    assert "checking slides" in err
    assert "cutting" not in err
    assert "2 pairs of slides can be used" in out
    assert "train: 1 of 1 patient (HER2 0: 1)" in out
    bad = write_manifest(slides / "dry.csv", [row(0), row(1, ihc_path="manifest.csv")])
    code, out, err = run(capsys, bad, tmp_path / "data", "--dry-run", "--json", *SMALL)
    assert code == 3
    assert [slide["slide"] for slide in json.loads(out)["slides"]] == ["S0"]
    assert "row 3 (S1): manifest.csv" in err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "name a manifest and the folder"),
        (("only.csv",), 2, "name a manifest and the folder"),
        (("m.csv", "--check", "data"), 2, "--check takes only the folder of a dataset"),
        (("lost.csv", "data"), 1, "the table lost.csv does not exist"),
        ((".", "data"), 1, ". is a folder; name a CSV file"),
        (("lost.csv", "data", "--min-tissue", "2"), 1, "--min-tissue must be"),
        (("lost.csv", "data", "--patch-size", "1"), 1, "--patch-size must lie between"),
        (("--check", "lost"), 1, "lost is not there"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *arguments)
    assert (found, message in err) == (code, True), err
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = run(capsys, manifest, tmp_path, *SMALL)
    assert code == 1
    assert "is neither empty nor a dataset" in err
    assert tree(tmp_path) == {"notes.txt": b"mine"}
