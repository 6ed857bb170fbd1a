"""Invalid arguments end in one clear line."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from wsi2ihc.cli.main import main
from wsi2ihc.errors import OptionError
from wsi2ihc.training.options import TrainOptions, resolve_options


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", ""], ["translate", "a.tif", ""], ["batch", "", "out"], ["batch", "a.tif", ""],
        ["train", "", "--dry-run"],
        ["models", "show", ""], ["models", "import", "", "out", "--mpp", "1"], ["curves", "a", ""],
        ["batch", "--status", ""],
        ["register", "a", "b", "c", "--landmarks", "", "x"], ["evaluate", "--virtual", "", "--out", "o"],
    ],
)  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "the name is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "..", os.fsdecode(b"\xff\xfe.svs"), "x" * 300, "a\0b"])
@pytest.mark.parametrize(
    "command", [["info"], ["translate", "lost.tif"], ["batch", "--status"], ["models", "show"], ["curves"]]
)
def test_an_odd_name_is_one_clear_line(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*command, name])
    err = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert err.splitlines()[-1].startswith("Error: ")
    assert "unexpected" not in err


def test_batch_status_with_its_options_in_another_order_shows_how_it_is_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["batch", "--status", "--verify", "OUT"])
    assert ended.value.code == 2
    assert "wsi2ihc batch --status OUT_DIR [--verify]" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--dry-run"], ["--keep-going"], ["--device", "cpu"], ["--shard", "0/2"]])
def test_batch_status_refuses_options_without_effect(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["batch", "--status", "OUT", *option])
    assert ended.value.code == 2
    assert f"{option[0]} has no effect with --status" in capsys.readouterr().err


def test_batch_status_ignores_options_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WSI2IHC_BATCH_DEVICE", "cpu")
    with pytest.raises(SystemExit):
        main(["batch", "--status", str(tmp_path / "lost")])
    assert "no effect" not in capsys.readouterr().err


NUMBERS = [one.name for one in fields(TrainOptions) if type(one.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_an_absurd_number_is_refused(name: str) -> None:
    kind = type(getattr(TrainOptions(), name))
    for number in (10**30, -(10**30)):
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}"):
            resolve_options({name: kind(number)})
