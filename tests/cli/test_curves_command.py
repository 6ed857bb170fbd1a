"""``wsi2ihc curves`` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from wsi2ihc.cli.curves import command
from wsi2ihc.errors import OutputError, OutputExistsError, TrainingError
from wsi2ihc.training.history import RunRecord

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    with RunRecord(folder, 0, 0, False, step_names=("generator",), validation_names=("psnr",)) as record:
        for step in range(1, 9):
            record.step(step, 1, {"generator": 1 / step})
        record.validation(1, 8, {"psnr": 20.0})
    return folder


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_plot_is_written_and_named(run: Path, tmp_path: Path) -> None:
    result = invoke(run, "--out", tmp_path / "c.png")
    assert result.exit_code == 0
    assert result.output == f"{tmp_path / 'c.png'}: 2 panels, 1 run\n"
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"


def test_without_a_name_it_is_made_here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(run, "-q").output == ""
    assert (tmp_path / "curves.png").is_file()


def test_a_plot_is_replaced_only_with_overwrite(run: Path, tmp_path: Path) -> None:
    plot = tmp_path / "c.png"
    plot.write_bytes(b"other")
    assert isinstance(invoke(run, "--out", plot).exception, OutputExistsError)
    assert plot.read_bytes() == b"other"
    assert invoke(run, "--out", plot, "--overwrite").exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_reported(run: Path, tmp_path: Path) -> None:
    assert invoke().exit_code == 2
    assert invoke(run, "--smooth", "-1").exit_code == 2
    other = invoke(run, tmp_path, "--out", tmp_path / "c.png").exception
    assert isinstance(other, TrainingError)
    assert "is not the folder of a training run" in str(other)
    assert isinstance(invoke(run, "--out", tmp_path / "c.jpg").exception, OutputError)
    assert not (tmp_path / "c.png").exists()
