"""The command line as a user meets it: output, exit codes, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from make_slides import halves, write_slide

from wsi2ihc.cli.main import main
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.models.registry import DEFAULT_MODEL

BACKGROUND = (243, 241, 240)
QUICK = ("--model", "counterstain")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.full((900, 1200, 3), BACKGROUND, dtype=np.uint8)
    image[200:700, 250:950] = synthetic_tissue(700, 500, seed=1)
    path = tmp_path_factory.mktemp("cli") / "case.svs"
    return write_slide(path, halves(image, 2), style="aperio", compression="jpeg", tile=256, mpp=0.5)


def test_translate_summarizes_the_output(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.ome.tiff"
    code, stdout, stderr = run(
        capsys, "translate", slide, out, "--model", "counterstain", "--preview", tmp_path / "p.png"
    )
    assert code == 0
    assert out.is_file()
    assert (tmp_path / "p.png").is_file()
    for fact in ("1200×900", "0.5 µm/px", "counterstain", "tissue", "seams", "Mpx/s", "not for diagnosis"):
        assert fact in stdout
    assert "translating" in stderr
    assert "\r" not in stderr  # no redrawing where there is no terminal


def test_json_is_alone_on_stdout(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = run(capsys, "translate", slide, tmp_path / "out.ome.tiff", *QUICK, "--json")
    assert code == 0
    assert json.loads(stdout)["output_size"] == {"width": 1200, "height": 900}


def test_quiet_prints_nothing(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "translate", slide, tmp_path / "out.ome.tiff", "-q") == (0, "", "")


def test_a_finished_translation_is_not_reported_as_done_again(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("translate", slide, tmp_path / "out.ome.tiff", "--resume", *QUICK)
    code, first, _ = run(capsys, *command)
    assert code == 0
    assert run(capsys, *command) == (0, f"already complete: nothing was done\n{first}", "")


def test_options_without_effect_are_named(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "translate", slide, tmp_path / "a.ome.tiff", *QUICK, "--band-height", "4096", "--dry-run")
    assert err.startswith("WARNING: --band-height has no effect without --resume\n")
    compressed = ("--compression", "jpeg", "--quality", "85", "--dry-run")
    _, _, err = run(capsys, "translate", slide, tmp_path / "a.ome.zarr", *QUICK, *compressed)
    assert err.startswith("WARNING: --compression and --quality: no effect on OME-Zarr, which is lossless\n")


def test_dry_run_writes_nothing(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--dry-run", "--core-size", "128")  # the largest window is translated
    code, stdout, _ = run(capsys, "translate", slide, tmp_path / "out.ome.tiff", *small, "--json")
    assert code == 0
    outlook = json.loads(stdout)
    assert outlook["windows"] >= 1
    assert outlook["model"]["name"] == DEFAULT_MODEL
    code, stdout, _ = run(capsys, "translate", slide, tmp_path / "out.ome.tiff", *small, "--device", "cpu")
    assert code == 0
    assert f"model    {DEFAULT_MODEL}, virtual pan-CK (computed), on cpu" in stdout
    assert "coarser" not in stdout
    _, stdout, _ = run(capsys, "translate", slide, tmp_path / "out.ome.tiff", *small, "--mpp", "1.5")
    assert "3 times coarser than the training data of the model; it is enlarged" in stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["translate", "batch"])
def test_help_states_that_the_default_is_a_demonstration(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = run(capsys, command, "--help")
    assert code == 0
    assert "demonstrationonpan-cytokeratin,notHER2" in "".join(stdout.split()), "however it is wrapped"


def test_options_come_from_the_environment(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSI2IHC_TRANSLATE_MODEL", "identity")
    monkeypatch.setenv("WSI2IHC_TRANSLATE_OVERLAP", "64")
    monkeypatch.setenv("WSI2IHC_TRANSLATE_BLEND", "overlap")
    monkeypatch.setenv("WSI2IHC_TRANSLATE_JSON", "1")
    code, stdout, _ = run(capsys, "translate", slide, tmp_path / "out.ome.tiff")
    report = json.loads(stdout)
    assert code == 0
    assert report["model"]["name"] == "identity"
    assert report["blend"] == "overlap"
    assert report["plan"]["overlap_px"] == 64


def test_info_tissue_and_models(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = run(capsys, "info", slide, "--json")
    assert code == 0
    assert json.loads(stdout)["mpp"] == [0.5, 0.5]
    code, stdout, _ = run(capsys, "info", slide)
    assert code == 0
    assert "1200×900" in stdout
    outline = tmp_path / "tissue.geojson"
    code, stdout, _ = run(capsys, "tissue", slide, outline)
    assert code == 0
    assert json.loads(outline.read_text())["type"] == "FeatureCollection"
    code, stdout, _ = run(capsys, "translate", slide, tmp_path / "out.ome.tiff", "--tissue", outline, *QUICK, "--json")
    assert code == 0
    drawn = json.loads(stdout)["tissue_share"]
    code, stdout, _ = run(capsys, "translate", slide, tmp_path / "auto.ome.tiff", *QUICK, "--json")
    assert json.loads(stdout)["tissue_share"] == pytest.approx(drawn, rel=0.02)
    assert 0.4 < drawn < 0.8
    code, stdout, _ = run(capsys, "models", "list")
    assert code == 0
    lines = stdout.splitlines()
    assert {"identity", "counterstain", f"{DEFAULT_MODEL} (default)"} <= set(lines)
    assert lines[lines.index(f"{DEFAULT_MODEL} (default)") + 1].startswith("  description  Demonstration, not HER2")
    code, stdout, _ = run(capsys, "models", "show", "counterstain", "--json")
    assert code == 0
    assert json.loads(stdout)["name"] == "counterstain"


def test_doctor_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, _ = run(capsys, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(stdout)["checks"]}
    assert code == 0
    assert checks["OpenSlide"]["ok"]
    assert checks["JPEG"]["ok"]
    assert "Error: " not in checks["CUDA"]["found"]
    assert run(capsys, "doctor", "-q") == (0, "", "")
    code, stdout, _ = run(capsys, "--version")
    assert code == 0
    assert "openslide" in stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["translate"], 2, "Missing argument"),
        (["translate", "{slide}", "{out}", "--region", "1,2,3"], 2, "X,Y,W,H"),
        (["translate", "{slide}", "{out}", "--max-memory", "lots"], 2, "amount of memory"),
        (["translate", "{slide}", "{out}", "--max-memory", "1M"], 1, "--max-memory"),
        (["translate", "{slide}", "{out}", "--mpp", "-1"], 2, "is not a positive number"),
        (["translate", "{slide}", "{out}", "--model", "nonsense"], 1, "nonsense"),
        (["translate", "{slide}", "{out}", "--device", "toaster"], 1, "toaster"),
        (["translate", "{slide}", "{out}", "--tile-size", "500"], 1, "multiple of 16"),
        (["translate", "{missing}", "{out}"], 1, "missing.svs"),
        (["translate", "{folder}", "{out}"], 1, "folder"),
        (["translate", "{slide}", "{folder}/out.png"], 1, ".ome.tiff"),
        (["translate", "{slide}", "{folder}/nowhere/out.ome.tiff"], 1, "nowhere"),
        (["translate", "{slide}", "{out}", "--region", "0,0,50,50"], 1, "no tissue"),
        (["translate", "{slide}", "{out}", "--tissue", "{missing}"], 1, "missing.svs"),
        (["tissue", "{slide}", "{folder}/mask.jpg"], 1, ".png"),
        (["models", "show", "nothing"], 1, "nothing"),
        (["batch", "{folder}", "{folder}/out", "--keep-going", "--model", "nothing"], 1, "nothing"),
        (["info", "{text}"], 1, "text.svs"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], code: int, words: str, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.svs"
    text.write_text("not a slide")
    names = {
        "slide": slide, "out": tmp_path / "out.ome.tiff", "missing": tmp_path / "missing.svs", "folder": tmp_path,
        "text": text,
    }  # fmt: skip
    exit_code, stdout, stderr = run(capsys, *(argument.format(**names) for argument in arguments))
    assert exit_code == code
    if code:
        assert words in stderr
        assert "Traceback" not in stderr
        assert stdout == ""
        assert sorted(path.name for path in tmp_path.iterdir()) == ["text.svs"]
    if code == 1:
        (line,) = [line for line in stderr.splitlines() if line.startswith("Error: ")]
        assert len(line) < 400


def test_a_slide_without_resolution_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.full((400, 400, 3), BACKGROUND, dtype=np.uint8)
    image[100:300, 100:300] = synthetic_tissue(200, 200, seed=1)
    slide = write_slide(tmp_path / "bare.tif", image, compression="jpeg", tile=256, mpp=None)
    code, _, stderr = run(capsys, "translate", slide, tmp_path / "out.ome.tiff")
    assert code == 1
    assert "--mpp" in stderr
    assert run(capsys, "translate", slide, tmp_path / "out.ome.tiff", "--mpp", "0.5", "-q")[0] == 0


def _start(slide: Path, out: Path) -> subprocess.Popen[str]:
    """A translation that takes long: tiny windows."""
    return subprocess.Popen(
        [sys.executable, "-m", "wsi2ihc.cli.main", "translate", str(slide), str(out), "--core-size", "16",
         "--tissue", "none", "--model", "counterstain"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        # where the tests run in a shell's background, SIGINT is ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_result_and_the_next_one_works(
    how: signal.Signals, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.ome.tiff"
    process = _start(slide, out)
    deadline = time.monotonic() + 120
    while not _partials(tmp_path):
        assert time.monotonic() < deadline, "the run never began to write"
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.005)
    os.kill(process.pid, how)
    _, stderr = process.communicate(timeout=120)
    assert not out.exists()
    assert "Traceback" not in stderr
    if how == signal.SIGINT:
        assert process.returncode == 130
    if how != signal.SIGKILL:
        assert not list(tmp_path.iterdir())
    assert run(capsys, "translate", slide, out, *QUICK, "-q")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.tiff", "out.ome.tiff.json"]


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from wsi2ihc.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "not for diagnosis" in finished.stdout
