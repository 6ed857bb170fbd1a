"""The train command: what it shows, and one clear line for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_runs import TINY, tiny_pairs

from wsi2ihc.cli.main import main
from wsi2ihc.training.options import config_text, resolve_options


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(config_text(resolve_options({**TINY, "epochs": 1})))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_dry_run_shows_everything_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], pairs: Path, config: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    code, out, _ = run(capsys, pairs, "--config", config, "--dry-run", "--variance-weight", "3")
    assert code == 0
    assert "variance_weight = 3.0" in out
    assert "train: 7 pairs; validation: 3 pairs; test: 2 pairs" in out
    assert "ResNet-1 of width 4" in out
    assert "3 an epoch, 3 in all" in out
    assert "memory: about" in out
    assert set(tmp_path.iterdir()) == before


def test_a_dry_run_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path, config: Path) -> None:
    folder = tiny_pairs(tmp_path / "pairs")
    for path in (folder / "test").iterdir():
        path.unlink()
    (folder / "test").rmdir()
    code, out, _ = run(capsys, folder, "--config", config, "--dry-run", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["data"]["counts"].keys() == {"train", "validation"}
    assert facts["estimate"]["memory_bytes"] > 0
    assert facts["options"]["epochs"] == 1


def test_a_dry_run_finds_a_patch_that_cannot_be_decoded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, config: Path
) -> None:
    folder = tiny_pairs(tmp_path / "pairs")
    bad = folder / "val" / "v1.png"
    bad.write_bytes(bad.read_bytes()[:-200])
    code, _, err = run(capsys, folder, "--config", config, "--dry-run")
    assert code == 1
    assert "v1.png" in err


def test_a_run_ends_with_a_summary(
    capsys: pytest.CaptureFixture[str], pairs: Path, config: Path, tmp_path: Path
) -> None:
    code, out, err = run(capsys, pairs, "--config", config, "--out", tmp_path / "run")
    assert code == 0
    assert "side by side" in err
    for said in ("model.safetensors: epoch 1, the best by stain_r_blocks", "in training mode", "translate SLIDE",
                 "not for diagnosis"):  # fmt: skip
        assert said in out
    code, out, _ = run(capsys, pairs, "--out", tmp_path / "run", "--resume", "--json", "-q")
    assert json.loads(out)["steps"] == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "99"], "batch of 99 is larger than the 7"),
        (["--batch-size", "1"], "variance term needs at least 2"),
        (["--crop-size", "64"], "smaller than the crop"),
        (["--group-by", "("], "not a regular expression"),
        (["--order", "AB", "--octaves", "9"], "--octaves 9 is too large"),
        (["--device", "cuda:77"], "CUDA"),
        (["--processes", "3"], "equally among 3"),
        (["--resume"], "no run to resume"),
        (["--config", "none.toml"], "none.toml cannot be read"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], pairs: Path, config: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    given = options if "--config" in options else ["--config", str(config), *options]
    code, _, err = run(capsys, pairs, "--out", tmp_path / "run", "-q", *given)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_images_of_other_kinds_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, config: Path, mode: str
) -> None:
    folder = tiny_pairs(tmp_path / "pairs")
    if mode == "I;16":
        Image.fromarray(np.zeros((48, 96), np.uint16)).save(folder / "train" / "t2.png")
    else:
        Image.new(mode, (96, 48)).save(folder / "train" / "t2.png")
    code, _, err = run(capsys, folder, "--config", config, "--out", tmp_path / "run", "-q")
    assert code == 1
    assert "t2.png" in err
    assert "8-bit RGB" in err


def test_resuming_a_run_without_checkpoint_starts_it_and_a_finished_one_says_so(
    capsys: pytest.CaptureFixture[str], pairs: Path, tmp_path: Path, config: Path
) -> None:
    out = tmp_path / "my run"
    out.mkdir()
    code, _, err = run(capsys, pairs, "--out", out, "--config", config, "--resume")
    assert code == 1
    assert "holds no run to resume" in err
    (out / "data.json").write_text("{}")
    (out / "config.toml").write_bytes(config.read_bytes())
    code, stdout, err = run(capsys, pairs, "--out", out, "--resume")
    assert code == 0
    assert f"the run in {out} has no checkpoint yet; it starts from the beginning" in err
    assert "already complete" not in stdout
    assert f"next: wsi2ihc translate SLIDE OUT.ome.tiff --model '{out}/model.safetensors'" in stdout
    code, stdout, _ = run(capsys, pairs, "--out", out, "--resume")
    assert code == 0
    assert stdout.startswith("already complete: no step was left to train\n")


def test_a_run_needs_a_folder(capsys: pytest.CaptureFixture[str], pairs: Path) -> None:
    code, _, err = run(capsys, pairs)
    assert code == 2
    assert "--out" in err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
@pytest.mark.parametrize(("changes", "how"), [({"workers": 2}, signal.SIGINT), ({"processes": 2}, signal.SIGTERM)])
def test_an_interrupted_training_leaves_no_process_and_no_traceback(
    pairs: Path, tmp_path: Path, changes: dict[str, int], how: signal.Signals
) -> None:
    """SIGINT goes to all processes, as from a terminal; SIGTERM to the first one alone."""
    (tmp_path / "c.toml").write_text(config_text(resolve_options({**TINY, "epochs": 10_000, **changes})))
    command = [sys.executable, "-m", "wsi2ihc", "train", str(pairs), "--config", str(tmp_path / "c.toml")]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "checkpoints").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        others = psutil.Process(process.pid).children(recursive=True)
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        try:
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert others
    _, left = psutil.wait_procs(others, timeout=60)
    assert left == []
    assert process.returncode == 128 + how
    assert "Traceback" not in err
    assert "Error" not in err
