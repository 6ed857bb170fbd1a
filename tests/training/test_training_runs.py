"""Complete tiny runs: their files, reproducibility, and exact resumption after SIGKILL."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from make_pairs import side_by_side
from PIL import Image
from tiny_runs import STEPS_PER_EPOCH, TINY, tiny, tiny_pairs
from torch import Tensor, nn

import wsi2ihc
from wsi2ihc.cli.main import main
from wsi2ihc.concurrency import Progress
from wsi2ihc.errors import DatasetError, DeviceMemoryError, OutputError, OutputExistsError, TrainingError
from wsi2ihc.models.model_file import build_network, load_checkpoint
from wsi2ihc.text import flag
from wsi2ihc.training import checkpoint, trainer
from wsi2ihc.training import train_step as step_module
from wsi2ihc.training import trainer as trainer_module
from wsi2ihc.training.checkpoint import RunFolder, read_state
from wsi2ihc.training.data import Pair
from wsi2ihc.training.history import read_steps, read_validation
from wsi2ihc.training.options import TrainOptions, config_text, read_config
from wsi2ihc.training.train_step import Networks
from wsi2ihc.training.trainer import train
from wsi2ihc.training.training_setup import prepare
from wsi2ihc.training.validation import uses_running_statistics, validate, with_estimated_statistics


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def finished(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs of three steps."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(prepare(pairs, tiny()), run)
    return run


@pytest.fixture(autouse=True)
def without_curves(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as all else in a run; only the finished one has curves."""
    monkeypatch.setattr(trainer, "draw_curves", lambda *_: 0)


def weights(run: Path, name: str = "last.pt") -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_state(run / "checkpoints" / name)["generator"]
    return state


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def summary_of(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return value


def test_files_of_a_run(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert names == {
        "config.toml", "data.json", "steps.csv", "validation.csv", "curves.png", "model.safetensors", "summary.json",
        "checkpoints/last.pt", "checkpoints/best.pt",
        *(f"samples/epoch-{epoch:04d}.png" for epoch in (1, 2, 3)),
    }  # fmt: skip
    assert TrainOptions(**read_config(finished / "config.toml")) == tiny()
    # a row every two steps, and at checkpoints and the ends of epochs
    assert read_steps(finished)["step"].tolist() == [2, 3, 4, 6, 8, 9]
    assert read_validation(finished)["epoch"].tolist() == [1, 2, 3]
    data = json.loads((finished / "data.json").read_text())
    assert data["counts"]["train"]["pairs"] == 7
    assert {one["role"] for one in data["pairs"]} == {"train", "validation", "test"}


def test_images_can_be_decoded(finished: Path) -> None:
    for name in ("samples/epoch-0003.png", "curves.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 40
            assert np.asarray(image.convert("RGB")).std() > 5


def test_model_can_be_used_by_translate(finished: Path) -> None:
    generator = wsi2ihc.load_model(str(finished / "model.safetensors"))
    assert (generator.stain, generator.mpp) == ("HER2", 0.5)
    assert generator.dependency.is_local
    assert generator.spec is not None
    provenance = generator.spec.training
    assert provenance["recipe"] == "variance"
    assert provenance["data"]["counts"]["validation"]["pairs"] == 3
    assert provenance["results"]["steps"] == 3 * STEPS_PER_EPOCH
    assert provenance["results"]["validation"].keys() == trainer_module.VALIDATION_METRICS.keys()
    assert torch.__version__.startswith(provenance["versions"]["torch"].split("+")[0])


def test_provenance_of_the_model(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", "show", "-v", str(finished / "model.safetensors")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ended.value.code == 0
    assert ["recipe", "variance"] in lines
    assert ["pairs", "7"] in lines
    assert ["epochs", "3"] in lines


def test_samples_are_selected_by_pair_not_by_name(tmp_path: Path) -> None:
    side_by_side(tmp_path, {"a": ["0", "1"], "b": ["0", "1"]}, size=(32, 32))
    pairs = [Pair(f"{name}", path := tmp_path / slide / f"{name}.png", path, "left", "validation", slide)
             for slide in "ab" for name in "01"]  # fmt: skip
    _, shown = validate(nn.Identity(), pairs, torch.device("cpu"), batch_size=3, multiple=4, samples=2)
    assert [pair for pair, _ in shown] == [pairs[0], pairs[2]]
    for pair, (he, _, virtual) in shown:
        np.testing.assert_array_equal(he, np.asarray(Image.open(pair.he))[:, :32])
        np.testing.assert_array_equal(he, virtual)


def test_model_contains_no_paths(pairs: Path, finished: Path) -> None:
    content = (finished / "model.safetensors").read_bytes()
    assert pairs.name.encode() in content  # the dataset's name
    for folder in (*pairs.parents, *finished.parents):
        assert str(folder) == "/" or str(folder).encode() not in content


def test_statistics_are_re_estimated_and_compared(finished: Path) -> None:
    summary = summary_of(finished)
    chosen = read_state(finished / "checkpoints" / "best.pt")["generator"]
    generator = wsi2ihc.load_model(str(finished / "model.safetensors"))
    assert generator.module is not None
    model = generator.module.state_dict()
    assert torch.equal(model["model.1.weight"], chosen["model.1.weight"])
    assert not torch.allclose(model["model.2.running_mean"], chosen["model.2.running_mean"])
    assert summary["training_mode"]["l1"] != summary["validation"]["l1"] != summary["running_statistics"]["l1"]
    assert summary["interior"] is None  # patches of 48 px are all border
    assert summary["model_sha256"] == generator.sha256


def test_best_is_recorded(finished: Path) -> None:
    best = summary_of(finished)["best"]
    values = read_validation(finished)["stain_r_blocks"]
    assert best["by"] == "stain_r_blocks"
    assert best["value"] == pytest.approx(np.nanmax(values), rel=1e-9)
    assert best["epoch"] == 1 + int(np.nanargmax(values))


def test_early_epochs_are_validated_with_re_estimated_statistics(finished: Path) -> None:
    summary = summary_of(finished)
    assert "re-estimated" in summary["validated_with"]
    assert summary["best"]["value"] == pytest.approx(summary["validation"]["stain_r_blocks"], rel=1e-5)


def test_samples_of_the_first_epoch_are_not_gray(pairs: Path) -> None:
    job = prepare(pairs, tiny())
    torch.manual_seed(0)
    module = build_network(job.spec).eval()
    before = torch.get_rng_state()
    estimated = with_estimated_statistics(module, job)
    assert torch.equal(torch.get_rng_state(), before)
    spread = []
    for one in (module, estimated):
        _, shown = validate(one, job.validation, torch.device("cpu"), batch_size=2, multiple=4, samples=1)
        spread.append(float(shown[0][1][2].std((0, 1)).max()))
    assert spread[0] < 1 < 5 * spread[0] < spread[1]
    assert not uses_running_statistics(job, 3)
    assert uses_running_statistics(job, 1000)
    assert uses_running_statistics(prepare(pairs, tiny(norm="instance")), 3)


def test_same_seed_gives_the_same_weights(pairs: Path, finished: Path, tmp_path: Path) -> None:
    train(prepare(pairs, tiny()), tmp_path / "again")
    train(prepare(pairs, tiny(seed=1)), tmp_path / "other")
    assert_equal(weights(finished), weights(tmp_path / "again"))
    assert not torch.equal(weights(finished)["model.1.weight"], weights(tmp_path / "other")["model.1.weight"])


class StoppedError(Exception):
    """What ends a run from outside."""


def stop_at(step: int) -> Any:
    def progress(event: Progress) -> None:
        if event.unit == "step" and event.done == step:
            raise StoppedError

    return progress


@pytest.mark.parametrize("step", [5, 6, 8])
def test_interrupted_run_resumes_exactly(pairs: Path, finished: Path, tmp_path: Path, step: int) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(prepare(pairs, tiny()), run, progress=stop_at(step))
    assert not (run / "model.safetensors").exists()
    train(prepare(pairs, tiny()), run, resume=True)
    assert_equal(weights(finished), weights(run))
    for name in ("generator_optimizer", "discriminator_optimizer"):
        one, other = (read_state(folder / "checkpoints" / "last.pt")[name] for folder in (finished, run))
        assert str(one) == str(other)
    for table, reader in (("steps.csv", read_steps), ("validation.csv", read_validation)):
        one, other = reader(finished), reader(run)
        assert one.keys() == other.keys()
        for column in one.keys() - {"images_per_s"}:
            np.testing.assert_array_equal(one[column], other[column], err_msg=f"{table} {column}")
    assert summary_of(finished)["validation"] == summary_of(run)["validation"]


def test_model_can_be_a_moving_average(pairs: Path, finished: Path, tmp_path: Path) -> None:
    """Training is the same; the average is saved, and it is resumed exactly."""
    options = tiny(ema_decay=0.9)
    train(prepare(pairs, options), tmp_path / "whole")
    state, plain = (read_state(run / "checkpoints" / "last.pt") for run in (tmp_path / "whole", finished))
    assert_equal(state["generator"], plain["generator"])
    assert_equal(state["discriminator"], plain["discriminator"])
    name = "model.1.weight"
    assert state["averaged_steps"] == 3 * STEPS_PER_EPOCH
    assert 0 < (state["model"][name] - plain["generator"][name]).abs().max() < 0.05
    with pytest.raises(StoppedError):
        train(prepare(pairs, options), tmp_path / "stopped", progress=stop_at(5))
    train(prepare(pairs, options), tmp_path / "stopped", resume=True)
    stopped = read_state(tmp_path / "stopped" / "checkpoints" / "last.pt")
    assert_equal(state["model"], stopped["model"])
    assert_equal(weights(tmp_path / "whole", "best.pt"), weights(tmp_path / "stopped", "best.pt"))
    model, _, _ = load_checkpoint(tmp_path / "whole" / "model.safetensors")
    assert torch.equal(model.state_dict()[name], weights(tmp_path / "whole", "best.pt")[name])
    assert not torch.equal(model.state_dict()[name], weights(finished, "best.pt")[name])


def test_average_includes_all_steps(pairs: Path, tmp_path: Path) -> None:
    """By its definition, of weights after each step, the first of which it begins with; warmed up."""
    seen: list[Tensor] = []
    name, decay = "model.1.weight", 0.25
    step = step_module.training_step

    def recorded(fabric: Fabric, networks: Networks, *more: Any) -> Tensor:
        losses = step(fabric, networks, *more)
        seen.append(networks.generator_module.state_dict()[name].double().clone())
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "training_step", recorded)
        train(prepare(pairs, tiny(ema_decay=decay, epochs=1)), tmp_path)
    expected = seen[0]
    for n, weight in enumerate(seen[1:], 1):
        kept = min(decay, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * weight
    assert min(decay, 2 / 11) < decay, "the warm-up is part of what is tested"
    assert STEPS_PER_EPOCH > 2, "and so is the decay itself"
    state = read_state(tmp_path / "checkpoints" / "last.pt")
    torch.testing.assert_close(state["model"][name].double(), expected, rtol=1e-5, atol=1e-7)


def test_killed_run_resumes_exactly(pairs: Path, tmp_path: Path) -> None:
    options = tiny(epochs=30, validate_every=30, checkpoint_every=4, workers=1)
    (tmp_path / "c.toml").write_text(config_text(options))
    command = [sys.executable, "-m", "wsi2ihc.cli.main", "train", str(pairs), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(
        [*command, "--config", str(tmp_path / "c.toml")],
        stderr=subprocess.DEVNULL,
        # another number of threads would add up in another order; some test before may have changed it here
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    last = tmp_path / "killed" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = read_state(last)["step"]
    assert 0 < reached < 30 * STEPS_PER_EPOCH
    train(prepare(pairs, options), tmp_path / "killed", resume=True)
    train(prepare(pairs, tiny(**{**dataclasses.asdict(options), "workers": 0})), tmp_path / "whole")
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_resuming_a_finished_run_changes_nothing(pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(prepare(pairs, tiny(epochs=1)), run)
    first, first_spec, _ = load_checkpoint(run / "model.safetensors")
    train(prepare(pairs, tiny(epochs=1)), run, resume=True)
    again, again_spec, _ = load_checkpoint(run / "model.safetensors")
    assert_equal(first.state_dict(), again.state_dict())
    assert first_spec == again_spec


def test_resuming_with_another_configuration_shows_the_difference(pairs: Path, finished: Path) -> None:
    with pytest.raises(TrainingError, match=r"other options \(--epochs 3 -> 4; --learning-rate 0\.0002 -> 0\.001\)"):
        train(prepare(pairs, tiny(epochs=4, learning_rate=1e-3)), finished, resume=True)


def test_resuming_with_other_data_is_an_error(finished: Path, tmp_path: Path) -> None:
    other = tiny_pairs(tmp_path / "pairs")
    (other / "train" / "t3.png").rename(other / "train" / "t9.png")
    with pytest.raises(TrainingError, match="other patches"):
        train(prepare(other, tiny()), finished, resume=True)


def test_resuming_in_another_precision_is_an_error(pairs: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state = read_state(run / "checkpoints" / "last.pt")
    torch.save({**state, "precision": "bf16-mixed"}, run / "checkpoints" / "last.pt")
    with pytest.raises(TrainingError, match="started in bf16-mixed and would be resumed in 32-true"):
        train(prepare(pairs, tiny()), run, resume=True)


def test_run_folder_is_locked(pairs: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(OutputError, match="another process is training"):
        train(prepare(pairs, tiny()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_run_folder_inside_the_dataset_is_an_error(tmp_path: Path) -> None:
    folder = tiny_pairs(tmp_path / "pairs")
    with pytest.raises(OutputError, match="lies inside the dataset"):
        train(prepare(folder, tiny()), folder / "train" / "run")


def test_run_without_checkpoint_can_be_restarted(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(prepare(pairs, tiny()), tmp_path / "run", progress=stop_at(1))
    train(prepare(pairs, tiny(epochs=1)), tmp_path / "run")
    assert read_steps(tmp_path / "run")["step"].tolist() == [2, 3]


def test_run_is_not_overwritten(pairs: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="--resume"):
        train(prepare(pairs, tiny()), finished)
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.toml").write_text("# mine")
    with pytest.raises(OutputExistsError, match="not empty"):
        train(prepare(pairs, tiny()), tmp_path / "own")
    with pytest.raises(OutputExistsError, match="not empty"):
        train(prepare(pairs, tiny()), tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        train(prepare(pairs, tiny()), tmp_path / "mine.txt")
    with pytest.raises(TrainingError, match="no run to resume"):
        train(prepare(pairs, tiny()), tmp_path / "none", resume=True)


def test_damaged_checkpoint_is_an_error(pairs: Path, tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    for content in (b"", b"PK\x03\x04 and so on", b"\x80\x04K\x01."):
        last.write_bytes(content)
        with pytest.raises(TrainingError, match=r"last\.pt is (damaged or invalid|no checkpoint)"):
            train(prepare(pairs, tiny()), tmp_path / "run", resume=True)


def test_infinite_loss_stops_the_run(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = trainer_module.training_step, []

    def poisoned(*arguments: Any) -> Tensor:
        seen.append(real(*arguments))
        return seen[-1] * (math.nan if len(seen) == 7 else 1.0)

    monkeypatch.setattr(trainer_module, "training_step", poisoned)
    with pytest.raises(TrainingError, match=r"generator loss is not finite at step 7 \(epoch 3 of 3\).*checkpoint"):
        train(prepare(pairs, tiny()), tmp_path / "run")
    state = read_state(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["step"] == 6
    assert all(bool(torch.isfinite(value).all()) for value in state["generator"].values())
    assert read_steps(tmp_path / "run")["step"][-1] == 6


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_infinite_weights_are_neither_scored_nor_saved(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real, seen = trainer_module.training_step, []

    def poisoned(fabric: Any, networks: Any, *rest: Any) -> Tensor:
        seen.append(real(fabric, networks, *rest))
        if len(seen) == 6:
            with torch.no_grad():
                next(getattr(networks, f"{kind}_module").parameters()).fill_(math.nan)
        return seen[-1]

    monkeypatch.setattr(trainer_module, "training_step", poisoned)
    with pytest.raises(TrainingError, match=rf"the {kind}'s weights are not finite after step 6"):
        train(prepare(pairs, tiny()), tmp_path / "run")
    assert read_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 4
    assert read_validation(tmp_path / "run")["epoch"].tolist() == [1]


def test_full_disk_keeps_the_last_checkpoint(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.save

    def full(state: Any, path: Any) -> None:
        if state.get("step") == 6:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")
        real(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OutputError, match=r"last\.pt cannot be written.*the previous one is kept"):
        train(prepare(pairs, tiny()), tmp_path / "run")
    assert read_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 4
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"last.pt", "best.pt"}


def test_out_of_memory_error_suggests_options(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> Tensor:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(trainer_module, "training_step", greedy)
    with pytest.raises(DeviceMemoryError, match="--batch-size, --crop-size or --ngf"):
        train(prepare(pairs, tiny()), tmp_path / "run")


def test_patch_damaged_during_training_is_named(tmp_path: Path) -> None:
    folder = tiny_pairs(tmp_path / "pairs")
    job = prepare(folder, tiny())
    bad = folder / "train" / "t2.png"
    bad.write_bytes(bad.read_bytes()[:-300])
    with pytest.raises(DatasetError, match=r"t2\.png"):
        train(job, tmp_path / "run")


def test_batch_larger_than_the_data(pairs: Path) -> None:
    with pytest.raises(DatasetError, match="batch of 8 is larger than the 7"):
        prepare(pairs, tiny(batch_size=8))


def test_overfitting_learns_a_few_patches(pairs: Path, tmp_path: Path) -> None:
    options = tiny(overfit=2, epochs=60, validate_every=60, learning_rate=2e-3, dropout=False, ngf=8, crop_size=48,
                   octaves=3)  # fmt: skip
    job = prepare(pairs, options)
    assert job.train == job.validation
    assert len(job.train) == 2
    train(job, tmp_path / "run")
    steps = read_steps(tmp_path / "run")["l1"]
    assert steps[-1] < steps[0] / 3


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "pix2pix", "depth": 5},
        {"recipe": "pyramid", "batch_size": 1},
        {"upsampling": "bilinear", "augmentation": "hflip", "variance_kind": "biased"},
        {"norm": "instance"},
        {"precision": "bf16"},
    ],
)
def test_all_generators_can_be_trained(pairs: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    if changes.get("recipe") == "pix2pix":
        changes = {**changes, "ngf": 2}
    summary = train(prepare(pairs, tiny(epochs=1, **changes)), tmp_path / "run")
    generator = wsi2ihc.load_model(str(tmp_path / "run" / "model.safetensors"))
    assert generator.spec is not None
    assert generator.spec.norm == changes.get("norm", "batch")
    assert summary["validation"]["psnr"] > 3


TRAIN_AND_CHECK_THE_EXIT = """
import atexit, os, sys
import torch.distributed

@atexit.register
def report() -> None:
    with open(os.path.join(os.path.dirname(__file__), "left"), "a") as file:
        file.write("no\\n" if torch.distributed.is_initialized() else "yes\\n")

from wsi2ihc.cli.main import main
sys.exit(main())
"""


def test_two_processes_train_one_model(pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = tmp_path / "program.py"
    program.write_text(TRAIN_AND_CHECK_THE_EXIT)
    (tmp_path / "c.toml").write_text(config_text(tiny(processes=2, epochs=2)))
    command = [sys.executable, str(program), "train", str(pairs), "--config", str(tmp_path / "c.toml")]
    done = subprocess.run([*command, "--out", str(run), "--json"], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "left").read_text().split() == ["yes", "yes"], "a process exits as a member of the group"
    summary = json.loads(done.stdout)
    assert summary["processes"] == 2
    assert summary["steps"] == 2 * STEPS_PER_EPOCH
    assert np.isfinite(read_steps(run)["variance"]).all()


def test_options_of_the_command_line_are_those_of_the_configuration() -> None:
    from wsi2ihc.cli.train import command

    offered = {option for parameter in command.params for option in parameter.opts}
    assert {flag(one.name) for one in dataclasses.fields(TrainOptions)} <= offered
    assert TINY.keys() <= {one.name for one in dataclasses.fields(TrainOptions)}
