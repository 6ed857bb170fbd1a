"""Commands that are run in a folder of hostile Python files execute none of them, in no process that they start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from make_slides import halves, write_slide

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "pairs"))
from make_slide_pairs import SMALL, row, write_manifest, write_pairs
from tiny_runs import TINY, tiny_pairs

from wsi2ihc.cli.main import COMMANDS
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.training.options import config_text, resolve_options

NAMES = sorted(
    {"cli", "sitecustomize", "training", "usercustomize", *sys.stdlib_module_names}
    | {name for name in packages_distributions() if name.isidentifier() and name != "wsi2ihc"}
)
"""Every module of the standard library and of every package that is installed."""

PROGRAM = "import sys; from wsi2ihc.cli.main import main; sys.exit(main())"


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


def run(folder: Path, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as its script does, whose folder (and not the current one) is searched for modules."""
    script = folder.parent / "bin" / "wsi2ihc"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"if __name__ == '__main__':\n    {before}\n    {PROGRAM}\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    finished = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    executed = folder.parent / "executed"
    assert not executed.exists(), executed.read_text()
    assert finished.returncode == 0, finished.stderr
    return finished


def write_one(folder: Path) -> Path:
    return write_slide(folder / "case.tif", halves(synthetic_tissue(260, 260, seed=0), 2))


def test_batch_executes_nothing_of_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    write_one(hostile)
    run(hostile, "batch", ".", tmp_path / "out", "--model", "identity", "--device", "cpu", "-q")
    assert (tmp_path / "out" / "case.ome.tiff").is_file()


def test_pairs_executes_nothing_of_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    manifest = write_manifest(write_pairs(tmp_path / "in", 1) / "manifest.csv", [row(0, split="train")])
    run(hostile, "pairs", manifest, tmp_path / "data", *SMALL, "-q")
    assert list((tmp_path / "data").glob("patches/*/*/*.png"))


SMALLER_DEMO = (
    "import wsi2ihc.demo as demo; demo.make_demo_slide.__kwdefaults__['size'] = (600, 600); "
    "demo.make_demo_study.__kwdefaults__['sizes'] = ((400, 300), (300, 256))"
)
IN_ONE_PROCESS = (
    "curves {run}", "dataset {patches} --out {out}", "demo {out}", "demo {out} --pair", "doctor",
    "evaluate {patches} --model identity --out {out} --resamples 100 --device cpu", "info {he0.tif}",
    "models import {net.pth} {out}.safetensors --mpp 0.5", "models list", "models show pan-ck-demo",
    "register {he0.tif} {ihc0.tif} {out}", "tissue {he0.tif} {out}.png",
    "translate {he0.tif} {out}.ome.tiff --device cpu --max-memory 1G", "warp {ihc0.tif} {placed} {out}.ome.tiff",
)  # fmt: skip


@pytest.mark.parametrize("line", IN_ONE_PROCESS)
def test_a_command_executes_nothing_of_the_current_folder(
    line: str, hostile: Path, tmp_path: Path, inputs: Path
) -> None:
    paths = {path.name: str(path) for path in inputs.iterdir()} | {"out": str(tmp_path / "out")}
    arguments = [re.sub(r"\{(.*?)\}", lambda name: paths[name[1]], word) for word in line.split()]
    run(hostile, *arguments, before=SMALLER_DEMO if line.startswith("demo") else "")


def test_no_command_is_left_out() -> None:
    assert {line.split()[0] for line in IN_ONE_PROCESS} | {"batch", "pairs", "train"} == set(COMMANDS)


@pytest.mark.parametrize("changes", [{"workers": 1}, {"processes": 2}])
def test_train_executes_nothing_of_the_current_folder(hostile: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    (tmp_path / "c.toml").write_text(config_text(resolve_options({**TINY, "epochs": 1, **changes})))
    pairs = tiny_pairs(tmp_path / "pairs")
    run(hostile, "train", pairs, "--config", tmp_path / "c.toml", "--out", tmp_path / "run", "-q")
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
