"""``wsi2ihc models``: importing weights, and what a model file may hold."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from wsi2ihc.cli.main import main
from wsi2ihc.models import import_weights
from wsi2ihc.models.networks import ResnetGenerator


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_an_import_removes_what_a_killed_one_left(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "net.safetensors"
    output.parent.mkdir()
    (output.parent / ".net.safetensors.0123abcd.partial").write_bytes(b"half of it")
    assert run(capsys, "models", "import", weights, output, "--mpp", "0.5")[0] == 0
    assert list(output.parent.iterdir()) == [output]


def test_an_import_that_is_repeated_succeeds_and_leaves_nothing_else(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "net.safetensors"
    output.parent.mkdir()
    command = ("models", "import", weights, output, "--mpp", "0.5")
    assert run(capsys, *command)[0] == 0
    content = output.read_bytes()
    os.link(output, output.with_name(".net.safetensors.0123abcd.partial"))  # killed between its last two steps
    assert run(capsys, *command)[0] == 0
    assert output.read_bytes() == content
    assert list(output.parent.iterdir()) == [output]


def test_an_import_does_not_replace_another_file_unless_asked(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    assert run(capsys, "models", "import", weights, output, "--mpp", "0.5")[0] == 0
    content = output.read_bytes()
    code, _, stderr = run(capsys, "models", "import", weights, output, "--mpp", "0.25")
    assert (code, output.read_bytes()) == (1, content)
    assert "already there" in stderr
    assert run(capsys, "models", "import", weights, output, "--mpp", "0.25", "--overwrite")[0] == 0
    assert output.read_bytes() != content


def test_an_import_does_not_replace_what_another_import_wrote_meanwhile(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "net.safetensors"
    real = import_weights.import_checkpoint

    def slower(source: Path, **options: object) -> object:
        output.write_bytes(b"from another import")
        return real(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(import_weights, "import_checkpoint", slower)
    code, _, stderr = run(capsys, "models", "import", weights, output, "--mpp", "0.5")
    assert (code, output.read_bytes()) == (1, b"from another import")
    assert "already there" in stderr


@pytest.mark.skipif(os.name == "nt", reason="file modes are of POSIX")
def test_an_imported_model_has_the_mode_that_the_umask_leaves(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "net.safetensors"
    before = os.umask(0o077)
    try:
        assert run(capsys, "models", "import", weights, output, "--mpp", "0.5")[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_a_failed_import_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.pth"
    torch.save({"encoder.weight": torch.zeros(3)}, source)
    assert run(capsys, "models", "import", source, tmp_path / "out.safetensors", "--mpp", "0.5")[0] == 1
    assert list(tmp_path.iterdir()) == [source]


def test_an_import_reports_its_model_as_json(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = run(
        capsys, "models", "import", weights, tmp_path / "a.safetensors", "--mpp", "0.5", "--stain", "HER2", "--json"
    )
    assert code == 0
    assert json.loads(stdout)["spec"]["training"]["imported_from"] == "net.pth"


def test_one_of_several_generators_is_imported_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "both.pth", tmp_path / "both.safetensors"
    torch.save({"netG_A": ResnetGenerator(1, 2).state_dict(), "netG_B": ResnetGenerator(1, 2).state_dict()}, source)
    code, _, stderr = run(capsys, "models", "import", source, output, "--mpp", "0.5")
    assert (code, output.exists()) == (1, False)
    assert "--key: netG_A, netG_B" in stderr
    assert run(capsys, "models", "import", source, output, "--mpp", "0.5", "--key", "netG_B")[0] == 0


def test_show_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = run(capsys, "models", "show", "pan-ck-demo")
    assert code == 0
    assert len(stdout.splitlines()) < 40
    assert len(run(capsys, "models", "show", "pan-ck-demo", "-v")[1].splitlines()) > 80


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"II*\0\x08\0\0\0", "a TIFF file, not model weights"),
        (b"MM\0+\0\x08\0\0", "a TIFF file, not model weights"),
        (b"\x89PNG\r\n\x1a\n", "a PNG file, not model weights"),
        (b"\xff\xd8\xff\xe0", "a JPEG file, not model weights"),
        (b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_a_file_of_another_kind_is_named(
    start: bytes, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.tiff"
    path.write_bytes(start + bytes(600))
    for command in (["show", path], ["import", path, tmp_path / "out.safetensors", "--mpp", "0.5"]):
        code, _, err = run(capsys, "models", *command)
        assert code == 1
        assert err.startswith(f"Error: file.tiff is {what}")


def test_values_are_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "models", "show", "pan-ck-demo", "-v")
    assert "False" not in out
    assert "[]" not in out


def test_the_next_command_is_quoted(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "my net.safetensors"
    _, out, _ = run(capsys, "models", "import", weights, output, "--mpp", "0.5")
    assert out.endswith(f"translate with --model '{output}'\n")
