"""Commands that are run in a folder of hostile Python files execute none of them, in no process that they start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from make_slides import halves, write_slide

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "pairs"))
from make_slide_pairs import row, write_manifest
from tiny_runs import TINY, tiny_pairs

from wsi2ihc.cli.main import COMMANDS
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.training.options import config_text, resolve_options

NAMES = sorted(
    {"cli", "sitecustomize", "training", "usercustomize", *sys.stdlib_module_names}
    | {name for name in packages_distributions() if name.isidentifier() and name != "wsi2ihc"}
)
"""Every module of the standard library and of every package that is installed."""

PROGRAM = """
if __name__ == "__main__":
    {before}
    import sys
    from wsi2ihc.cli.main import main
    for arguments in {commands!r}:
        try:
            main(arguments)
        except SystemExit as ended:
            if ended.code:
                sys.exit(f"{{arguments}}: exit code {{ended.code}}")
"""
"""The script of the command; a second command finds the modules that the first one has imported."""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of modules and packages; whichever is executed says so in ``executed``."""
    folder = tmp_path / "slides"
    (folder / "wsi2ihc" / "batch").mkdir(parents=True)
    text = f"open({str(tmp_path / 'executed')!r}, 'a').write(__file__ + '\\n')\nraise SystemExit(77)\n"
    for name in (*NAMES, "wsi2ihc/__init__", "wsi2ihc/__main__", "wsi2ihc/batch/__init__", "wsi2ihc/batch/child"):
        (folder / f"{name}.py").write_text(text)
    (folder / "wsi2ihc.pth").write_text(f"import os; open({str(tmp_path / 'executed')!r}, 'a').write('pth')\n")
    return folder


def run(folder: Path, *commands: list[str], before: str = "") -> None:
    """Run commands as their script does, whose folder (and not the current one) is searched for modules."""
    script = folder.parent / "bin" / "wsi2ihc"
    script.parent.mkdir(exist_ok=True)
    script.write_text(PROGRAM.format(before=before, commands=commands))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    finished = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    executed = folder.parent / "executed"
    assert not executed.exists(), executed.read_text()
    assert finished.returncode == 0, finished.stderr


def write_one(folder: Path) -> Path:
    return write_slide(folder / "case.tif", halves(synthetic_tissue(260, 260, seed=0), 2))


SMALLER_DEMO = (
    "import wsi2ihc.demo as demo; demo.make_demo_slide.__kwdefaults__['size'] = (600, 600); "
    "demo.make_demo_study.__kwdefaults__['sizes'] = ((400, 300), (300, 256))"
)
LINES = (
    "batch . {out} --model identity --device cpu -q",
    "curves {run}", "dataset {patches} --out {out}", "demo {out}", "demo {out} --pair", "doctor",
    "evaluate {patches} --model identity --out {out} --resamples 100 --device cpu", "info {he0.tif}",
    "models import {net.pth} {out}.safetensors --mpp 0.5", "models list", "models show pan-ck-demo",
    "pairs {manifest.csv} {out} --patch-size 128 --mpp 1 --validation 0.3 --test 0.3 -q",
    "register {he0.tif} {ihc0.tif} {out}", "tissue {he0.tif} {out}.png",
    "train {patches} --config {tiny.toml} --out {out} -q",
    "translate {he0.tif} {out}.ome.tiff --device cpu --max-memory 1G", "warp {ihc0.tif} {placed} {out}.ome.tiff",
)  # fmt: skip


def filled(line: str, paths: Mapping[str, Path]) -> list[str]:
    return [re.sub(r"\{(.*?)\}", lambda name: str(paths[name[1]]), word) for word in line.split()]


def test_commands_execute_nothing_of_the_current_folder(hostile: Path, tmp_path: Path, inputs: Path) -> None:
    write_one(hostile)
    manifest = write_manifest(tmp_path / "manifest.csv", [
        row(0, split="train", he_path=str(inputs / "he0.tif"), ihc_path=str(inputs / "ihc0.tif"))
    ])  # fmt: skip
    (tmp_path / "tiny.toml").write_text(config_text(resolve_options({**TINY, "epochs": 1, "workers": 1})))
    paths = {path.name: path for path in (*inputs.iterdir(), manifest, tmp_path / "tiny.toml")}
    commands = [filled(line, {**paths, "out": tmp_path / f"out{number}"}) for number, line in enumerate(LINES)]
    run(hostile, *commands, before=SMALLER_DEMO)
    assert (tmp_path / "out0" / "case.ome.tiff").is_file()
    for command, made in {"pairs": "patches/*/*/*.png", "train": "model.safetensors"}.items():
        (number,) = (number for number, line in enumerate(LINES) if line.startswith(command))
        assert list((tmp_path / f"out{number}").glob(made))


def test_no_command_is_left_out() -> None:
    assert {line.split()[0] for line in LINES} == set(COMMANDS)


def test_processes_of_train_execute_nothing_of_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(config_text(resolve_options({**TINY, "epochs": 1, "processes": 2})))
    pairs = tiny_pairs(tmp_path / "pairs")
    run(hostile, ["train", str(pairs), "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run"), "-q"])
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_module_of_the_current_folder_is_not_executed_by_the_module_command(hostile: Path) -> None:
    """What ``python -m`` itself looks for there cannot be kept out: ``./wsi2ihc`` and the standard library."""
    shutil.rmtree(hostile / "wsi2ihc")
    for path in hostile.glob("*.py"):
        if path.stem in sys.stdlib_module_names:
            path.unlink()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    finished = subprocess.run(
        [sys.executable, "-m", "wsi2ihc", "info", str(write_one(hostile.parent))],
        cwd=hostile, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not (hostile.parent / "executed").exists(), (hostile.parent / "executed").read_text()
    assert (finished.returncode, "260×260" in finished.stdout) == (0, True), finished.stderr
