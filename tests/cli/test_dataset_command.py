"""The dataset command: summary, warnings, report, and one clear line for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "inspection"))
from make_fields import patch, write

from wsi2ihc.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, "a", patch(0, 0), "train")
    write(folder, "b", patch(0, 0, 1), "train")
    write(folder, "c", patch(70, 0), "test")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["dataset", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_summary(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(data.rglob("*"))
    code, out, err = run(capsys, data, "--mpp", "0.5", "--workers", "2")
    assert code == 0  # findings are no failure
    assert f"{data.name}: 3 pairs of 192×192 px, 0.5 µm/px; HE/ and IHC/, each with train/, test/." in out
    assert "  train  2 pairs" in out
    assert "Pairs of patches with the same tissue: 1 between splits" in out
    assert "Misaligned: 0 of 3 pairs" in out
    assert (
        "WARNING: pairs of patches of different splits that show the same tissue: 1 (overlap: 1), such as HE/train/a"
        in err
    )
    assert "measuring patches" in err
    assert "WARNING" not in out
    assert sorted(data.rglob("*")) == before


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out_folder = tmp_path / "data", tmp_path / "report"
    for name, x in (("a", 0), ("b", 70)):  # without splits and levels there is nothing to plot, which takes long
        write(data, name, patch(x, 0))
    code, out, _ = run(capsys, data, "--out", out_folder)
    assert (code, f"{out_folder / 'report.html'}: full report" in out) == (0, True)
    assert (out_folder / "figures" / "same_tissue.jpg").is_file()
    code, _, err = run(capsys, data, "--out", out_folder)
    assert (code, "already contains a report" in err) == (1, True)
    assert "looking at" not in err  # told before any work
    assert run(capsys, data, "--out", out_folder, "--overwrite", "-q") == (0, "", "")


def test_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, data, "--json", "-q", "--group-by", "(?P<group>[ab])|c")
    assert (code, "matches only 2 of 3 pairs" in err) == (1, True)
    code, out, err = run(capsys, data, "--json", "-q", "--group-by", "(?P<group>.)")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["format"], facts["version"]) == ("wsi2ihc report", 2)  # as in report.json
    assert facts["grouped_by"] == "regular expression (?P<group>.)"
    assert [(one["split"], one["pairs"]) for one in facts["counts"] if not one["group"]] == [
        ("train", 2), ("test", 1), ("all", 3),
    ]  # fmt: skip
    assert facts["same_tissue"][0]["between"] == "splits"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing argument 'DATA'"),
        (("lost",), 1, "there is no folder lost"),
        (("lost", "--order", "AC"), 2, "'AC' is not one of"),
        (("lost", "--mpp", "0"), 1, "--mpp must lie between"),
        (("lost", "--mpp", "51"), 1, "--mpp must lie between 0.02 and 50 µm/px, not 51"),  # as of a slide
        (("lost", "--workers", "-1"), 1, "--workers must be at least 0"),
        ((".",), 1, "no paired patches in ."),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *arguments)
    assert (found, message in err) == (code, True), err
    assert len([line for line in err.splitlines() if line.startswith("Error")]) == 1
