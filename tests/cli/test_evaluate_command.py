"""``wsi2ihc evaluate`` from the command line: what it prints, writes, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi2ihc.cli.main import main

QUICK = ("--resamples", "100", "--examples", "1")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("real", "virtual"):
        (tmp_path / name).mkdir()
    for number in range(3):
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "real" / f"{number}.png")
        Image.fromarray(255 - image).save(tmp_path / "virtual" / f"{number}.png")
    return tmp_path


def test_folders_to_a_report(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folders / "report"
    command = ("evaluate", "--reference", folders / "real", "--virtual", folders / "virtual", "--out", out, *QUICK)
    assert run(*command) == 0
    printed = capsys.readouterr().out
    assert not any(name in printed for name in ("FID  ", "KID")), "rows without any value"
    assert "PSNR, dB" in printed
    assert "not for diagnosis" in printed
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in out.iterdir()}
    assert run(*command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(*command, "--overwrite", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["methods"]["virtual"]["images"] == 3


@pytest.mark.parametrize(
    "arguments",
    [(), ("DATA",), ("--model", "identity"), ("--reference", "a"), ("--virtual", "a"), ("--reference-slide", "a"),
     ("DATA", "--model", "identity", "--reference", "a", "--virtual", "b"), ("--transform", "t")],
)  # fmt: skip
def test_half_a_call_is_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run("evaluate", *arguments, "--out", tmp_path / "report") == 2
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_scored_is_one_line_and_nothing_is_written(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "virtual" / "1.png").unlink()
    out = folders / "report"
    assert run("evaluate", "--reference", folders / "real", "--virtual", folders / "virtual", "--out", out) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("Error: ")
    assert "lacks partners of 1" in error
    assert not out.exists()
    wrong = ("--stained-from", "7")
    assert run("evaluate", "--reference", folders / "real", "--virtual", folders / "real", "--out", out, *wrong) == 1
    assert "--stained-from" in capsys.readouterr().err


def test_other_peoples_folders_are_left_alone(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folders / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = ("evaluate", "--reference", folders / "real", "--virtual", folders / "virtual", "--out", out, *QUICK)
    assert run(*command, "--overwrite") == 1
    assert "notes.txt" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
