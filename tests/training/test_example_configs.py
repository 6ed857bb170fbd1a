"""Example configurations and scripts for training."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from wsi2ihc.training.data import load_data
from wsi2ihc.training.options import PRESETS, RECIPES, TrainOptions, read_config, resolve_options

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.toml"))


def test_examples_exist() -> None:
    assert [path.name for path in CONFIGS] == ["train_bci.toml", "train_default_model.toml", "train_facades.toml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", RECIPES)
def test_examples_do_not_change_the_recipe(path: Path, recipe: str) -> None:
    assert resolve_options(config=path).recipe == "variance"
    own = {"architecture": "resnet"} if path.stem == "train_default_model" else {}  # it compares losses, not networks
    options = resolve_options({"recipe": recipe, **own}, config=path)
    for name, value in {**RECIPES[options.recipe], **own}.items():
        assert getattr(options, name) == value


def test_bci_example_has_the_hyperparameters_of_the_study() -> None:
    options = resolve_options(config=EXAMPLES / "train_bci.toml")
    for name, value in PRESETS["bci"].items():
        assert getattr(options, name) == value, name
    study = {"epochs": 100, "batch_size": 8, "learning_rate": 2e-4, "beta1": 0.5, "beta2": 0.999, "octaves": 4,
             "augmentation": "hflip", "l1_weight": 25.0, "upsampling": "transposed", "norm": "batch"}  # fmt: skip
    assert {name: getattr(options, name) for name in study} == study
    assert (options.mpp, options.stain) == (0.46, "HER2")
    assert "non-commercial" in str(options.data_license)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_missing_options_of_examples_are_defaults(path: Path) -> None:
    options, stated = resolve_options(config=path), tomllib.loads(path.read_text())
    assert stated == read_config(path)
    defaults = TrainOptions()
    left_out = [name for name in TrainOptions.__slots__ if name not in stated]
    assert {name: getattr(options, name) for name in left_out} == {name: getattr(defaults, name) for name in left_out}


@pytest.mark.filterwarnings("default")
def test_facades_layout(dev_data: Path) -> None:
    if not (dev_data / "facades").is_dir():
        pytest.skip("no facades among the development data")
    options = resolve_options(config=EXAMPLES / "train_facades.toml")
    data = load_data(
        dev_data / "facades",
        order=options.order,
        group_by=options.group_by,
        split_by_patch=bool(options.split_by_patch),
        validation_share=options.validation_share,
        seed=options.seed,
    )
    assert (len(data.of("train")), len(data.of("validation")), len(data.of("test"))) == (360, 40, 106)


# --- the script for SLURM, with stand-ins for SLURM's commands that note how they were called

SRUN = r"""#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
[[ $1 != wsi2ihc ]] && exec "$@"
ls "$3" >> "$CALLS"
touch "$CALLS.started"
if [[ -n ${WAITS:-} ]]; then while [[ ! -e $CALLS.requeued ]]; do sleep 0.02; done; fi
exit "${CODE:-0}"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
touch "$CALLS.requeued"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes, whose commands write into ``$CALLS``."""
    tools, data = tmp_path / "bin", tmp_path / "BCI" / "HE"
    tools.mkdir()
    data.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    subprocess.run(["tar", "-cf", tmp_path / "BCI.tar", "-C", tmp_path, "BCI"], check=True)
    return os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_TMPDIR": str(tmp_path / "scratch"),
    }


def start(tmp_path: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    script = ["bash", str(EXAMPLES / "train_slurm.sh"), str(tmp_path / "BCI.tar"), str(tmp_path / "run"), "bci.toml"]
    return subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL)


def call_of_training(tmp_path: Path) -> str:
    return next(line for line in (tmp_path / "calls").read_text().splitlines() if " wsi2ihc train " in line)


def test_slurm_script_unpacks_trains_and_cleans_up(tmp_path: Path, slurm: dict[str, str]) -> None:
    assert start(tmp_path, slurm).wait(60) == 0
    scratch = tmp_path / "scratch" / "wsi2ihc-77"
    call = call_of_training(tmp_path)
    assert f"wsi2ihc train {scratch} --out {tmp_path / 'run'} --config bci.toml" in call
    assert call.startswith("srun --cpus-per-task=8 ")
    assert "\nHE\n" in (tmp_path / "calls").read_text()  # the dataset, without the archive's own folder
    assert not scratch.exists()


def test_slurm_script_resumes(tmp_path: Path, slurm: dict[str, str]) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    assert start(tmp_path, slurm).wait(60) == 0
    assert f"--out {tmp_path / 'run'} --resume " in call_of_training(tmp_path)
    assert "--config" not in call_of_training(tmp_path)


def test_slurm_script_returns_the_exit_code(tmp_path: Path, slurm: dict[str, str]) -> None:
    assert start(tmp_path, slurm | {"CODE": "3"}).wait(60) == 3
    assert not (tmp_path / "scratch" / "wsi2ihc-77").exists()


def test_slurm_script_requeues_at_the_time_limit(tmp_path: Path, slurm: dict[str, str]) -> None:
    job = start(tmp_path, slurm | {"WAITS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "calls.started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 0
    finally:
        job.kill()
        job.wait()
    assert "scontrol requeue 77" in (tmp_path / "calls").read_text()


def test_options_of_the_slurm_script_exist(tmp_path: Path, slurm: dict[str, str]) -> None:
    from wsi2ihc.cli.train import command

    assert start(tmp_path, slurm).wait(60) == 0
    words = call_of_training(tmp_path).split(" wsi2ihc train ")[1].split()
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in [*words, "--resume"] if word.startswith("--")} <= known
