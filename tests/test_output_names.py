"""Names of outputs work, or are refused before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from make_slides import texture, write_slide

import wsi2ihc
from wsi2ihc.atomic_files import check_output, hidden_files, hidden_path, published
from wsi2ihc.cli.main import main
from wsi2ihc.errors import OutputError
from wsi2ihc.pyramid import check_zarr_output
from wsi2ihc.pyramid.ome_zarr import publish_folder
from wsi2ihc.translation.options import TranslateOptions


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "s.svs", texture(300, 280), style="aperio", tile=256)


@pytest.mark.parametrize("suffix", [".ome.tiff", ".ome.zarr"])
@pytest.mark.parametrize("length", [200, 221, 232, 233, 237, 245, 250])
@pytest.mark.parametrize("resume", [False, True])
def test_a_name_as_long_as_the_file_system_allows_works(
    slide_file: Path, tmp_path: Path, suffix: str, length: int, resume: bool
) -> None:
    out = tmp_path / ("é" * 20 + "x" * (length - 40 - len(suffix)) + suffix)
    assert len(out.name.encode()) == length
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, wsi2ihc.load_model("identity"), out, TranslateOptions(tissue="none", resume=resume))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, f"{out.name}.json"])


@pytest.mark.parametrize("length", [251, 255, 256, 300, 5000])
@pytest.mark.parametrize("suffix", [".ome.tiff", ".ome.zarr"])
def test_a_name_that_is_too_long_is_refused_before_any_work(
    slide_file: Path, tmp_path: Path, length: int, suffix: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("wsi2ihc.translation.translate.prepare", lambda *_, **__: pytest.fail("work began"))
    out = tmp_path / ("x" * (length - len(suffix)) + suffix)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["translate", str(slide_file), str(out), "--model", "identity", "-q"])
    error = capfd.readouterr().err
    assert "choose a shorter one" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b.ome.tiff", os.fsdecode(b"caf\xe9.ome.tiff")])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (check_output, check_zarr_output):
        with pytest.raises(OutputError):
            check(Path(name), False)
    with pytest.raises(OutputError), published(Path(name), overwrite=True):
        pytest.fail("it was given a file")


@pytest.mark.parametrize("name", ["", ".", os.fsdecode(b"caf\xe9.ome.tiff")])
def test_the_command_refuses_them_in_one_line(
    slide_file: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^[12]$"):
        main(["translate", str(slide_file), name, "--model", "identity", "-q"])
    error = capfd.readouterr().err
    assert "unexpected" not in error
    assert error.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_hidden_names_fit_and_are_found_again(tmp_path: Path) -> None:
    names = {"short", "x" * 200, "x" * 240, "y" * 240, "é" * 120}
    for name in names:
        hidden = hidden_path(tmp_path / name, "partial")
        assert len(hidden.name.encode()) <= 255
        hidden.touch()
    for name in names:
        assert len(hidden_files(tmp_path / name, "partial")) == 1


def test_a_folder_of_a_long_name_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / ("z" * 246 + ".ome.zarr")
    for value in (1, 2):
        made = tmp_path / f"made{value}"
        made.mkdir()
        (made / "zarr.json").write_text("{}")
        np.save(made / "value.npy", value)
        publish_folder(made, out, overwrite=True)
    assert int(np.load(out / "value.npy")) == 2
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
