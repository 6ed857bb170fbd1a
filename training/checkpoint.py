"""Checkpoints of a run, and its folder.

`save_state` and `load_state` store everything that is needed to resume exactly; `save_best` stores the generator of the
best epoch. `RunFolder` knows the paths of a run and refuses folders that cannot be used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi2ihc.atomic_files import published, write_atomically
from wsi2ihc.errors import ModelError, ModelNotFoundError, OutputError, OutputExistsError, TrainingError
from wsi2ihc.files import json_bytes
from wsi2ihc.locks import LOCK, exclusive_lock
from wsi2ihc.models.torch_file import load_torch_file

from .history import SAMPLES, STEPS, TENSORBOARD, VALIDATION
from .options import TrainOptions, config_text, differences

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from .train_step import Networks

FORMAT = "wsi2ihc training state 2"

LARGEST_STATE_BYTES = 64 << 30
"""Size of a state with the largest networks that options allow."""

_log = logging.getLogger(__name__)

_INITIAL_FILES = {"data.json", "config.toml", "checkpoints", STEPS, VALIDATION, SAMPLES, TENSORBOARD}


@dataclass(frozen=True, slots=True)
class BestEpoch:
    """The best epoch so far (counted from 1), the metric that selects it, and its value."""

    epoch: int
    by: str
    value: float


@dataclass(slots=True)
class TrainingState:
    """Progress of a run: steps done, the best epoch so far, and the total time spent."""

    step: int = 0
    best: BestEpoch | None = None
    seconds: float = 0.0


def save_state(
    path: Path,
    networks: Networks,
    fabric: Fabric,
    training_state: TrainingState,
    options: TrainOptions,
    fingerprint: str,
) -> None:
    """Write everything that `load_state` needs to resume exactly.

    There are no random states in it: the random numbers of a step depend on the seed and the step only.
    """
    state = {
        "format": FORMAT,
        "options": dataclasses.asdict(options),
        "data": fingerprint,
        "step": training_state.step,
        "seconds": training_state.seconds,
        "best": dataclasses.asdict(training_state.best) if training_state.best else None,
        "precision": str(fabric.strategy.precision.precision),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "generator": networks.generator_module.state_dict(),
        "discriminator": networks.discriminator_module.state_dict(),
        "model": networks.model.state_dict() if networks.averaged is not None else None,
        "averaged_steps": int(networks.averaged.n_averaged) if networks.averaged is not None else 0,
        "generator_optimizer": networks.generator_optimizer.state_dict(),
        "discriminator_optimizer": networks.discriminator_optimizer.state_dict(),
        "loss_scale": fabric.strategy.precision.state_dict(),  # of fp16
    }
    _write(state, path)


def save_best(path: Path, generator: nn.Module, best: BestEpoch) -> None:
    """Write the generator of the best epoch so far."""
    _write({"format": FORMAT, "best": dataclasses.asdict(best), "generator": generator.state_dict()}, path)


def load_state(
    path: Path, networks: Networks, fabric: Fabric, options: TrainOptions, fingerprint: str
) -> TrainingState:
    """Restore the networks and optimizers of a run as `save_state` stored them.

    Raises
    ------
    TrainingError
        If it is not such a file, is damaged, or belongs to a run with other options or other data.
    """
    state = read_state(path)
    check_same_run(state, options, fingerprint, path)
    _check_same_arithmetic(state, fabric, path)
    try:
        networks.generator_module.load_state_dict(state["generator"])
        networks.discriminator_module.load_state_dict(state["discriminator"])
        if networks.averaged is not None:
            networks.model.load_state_dict(state["model"])
            networks.averaged.n_averaged.fill_(int(state["averaged_steps"]))
        networks.generator_optimizer.load_state_dict(state["generator_optimizer"])
        networks.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        fabric.strategy.precision.load_state_dict(state["loss_scale"])
        best = BestEpoch(**state["best"]) if state["best"] else None
        return TrainingState(int(state["step"]), best, float(state["seconds"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path) from error


def read_state(path: Path) -> dict[str, Any]:
    """Read a state to the CPU; a `TrainingError` if it does not exist or is damaged."""
    try:
        state = load_torch_file(path, LARGEST_STATE_BYTES)  # checks the checksums, which torch does not
    except ModelNotFoundError as error:
        raise TrainingError(f"there is no checkpoint {path} to resume from") from error
    except ModelError as error:
        raise _damaged(path) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path} is not a training checkpoint of this version")
    return state


def stored_options(state: Mapping[str, Any], path: Path) -> TrainOptions:
    """Return the options of the run that a state belongs to."""
    try:
        return TrainOptions(**state["options"])
    except (KeyError, TypeError) as error:
        raise _damaged(path) from error


def check_same_run(state: Mapping[str, Any], options: TrainOptions, fingerprint: str, path: Path) -> None:
    """Check that a run is resumed with the same options and data; a `TrainingError` lists the differences."""
    changed = differences(stored_options(state, path), options)
    if changed:
        raise TrainingError(f"the run in {path.parent.parent} was started with other options ({'; '.join(changed)}); "
                            "resume with those, or start another run")  # fmt: skip
    if state.get("data") != fingerprint:
        raise TrainingError(f"the run in {path.parent.parent} was started with other patches or another split; "
                            "resume with those, or start another run")  # fmt: skip


def _write(state: Mapping[str, Any], path: Path) -> None:
    """Save a state; an interruption or a full disk (an `OutputError`) leaves the previous file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path, overwrite=True) as partial:
            torch.save(dict(state), partial)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        why = error.strerror or str(error) if isinstance(error, OSError) else "the disk is full, or failed"
        advice = "the previous one is kept: free some space, then use --resume" if path.exists() else (
            "free some space, or choose another --out")  # fmt: skip
        raise OutputError(f"the checkpoint {path} cannot be written ({why}); {advice}") from error


def check_finite(networks: Networks, step: int) -> None:
    """Check that the weights are finite; otherwise a `TrainingError` names the step and a weight."""
    for kind, module in (
        ("generator", networks.generator_module),
        ("discriminator", networks.discriminator_module),
    ):
        for name, value in module.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise TrainingError(f"the {kind}'s weights are not finite after step {step} ({name}); the last good "
                                    "checkpoint is kept; lower --learning-rate, or use --precision fp32")  # fmt: skip


def _check_same_arithmetic(state: Mapping[str, Any], fabric: Fabric, path: Path) -> None:
    """Check the resolved precision and the number of processes and threads, which affect the result."""
    precision = str(fabric.strategy.precision.precision)
    previous, run = state.get("precision"), path.parent.parent
    if previous != precision:
        raise TrainingError(f"the run in {run} was started in {previous} and would be resumed in {precision}; use the "
                            "--precision with which it was started: fp32, bf16 or fp16")  # fmt: skip
    if state.get("processes") != fabric.world_size:
        _log.warning("the run was started by %s processes and is resumed by %d: dropout, and batch norm on CPUs, will "
                     "differ", state.get("processes"), fabric.world_size)  # fmt: skip
    if fabric.device.type == "cpu" and state.get("threads") != torch.get_num_threads():
        _log.warning(
            "the run was started with %s threads and is resumed with %d: the order of summation changes, so the "
            "weights will differ in their last bits",
            state.get("threads"),
            torch.get_num_threads(),
        )


def _damaged(path: Path) -> TrainingError:
    return TrainingError(f"the checkpoint {path} is damaged or invalid; replace it by a copy, or start another run")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of the files of one run.

    config.toml       the resolved configuration
    data.json         the patches, with their roles and groups
    steps.csv, validation.csv, samples/, tensorboard/    the training log (`history`)
    checkpoints/      last.pt to resume from, best.pt the generator of the best epoch
    curves.png        plots of all losses and metrics
    model.safetensors the generator for ``translate --model``
    summary.json      the final metrics
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def check_new(self) -> None:
        """Check that a new run can start here. Files of a run that ended before its first checkpoint are allowed."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"--out {self.path} is a file; name a folder for the run")
        if self.last.exists():
            raise OutputExistsError(f"{self.path} holds a run; resume it with --resume, or choose another --out")
        entries = {entry.name for entry in self.path.iterdir()} - {LOCK} if self.path.is_dir() else set()
        if entries and not (self.data.name in entries and entries <= _INITIAL_FILES):
            raise OutputExistsError(f"{self.path} is not empty and holds no checkpoint; choose another --out")

    def has_only_begun(self) -> bool:
        """Return whether a run ended here before its first checkpoint."""
        return self.data.is_file() and not self.last.exists()

    def check_resumable(self) -> None:
        """Check that there is a checkpoint."""
        if not self.last.is_file():
            raise TrainingError(f"{self.path} holds no run to resume (there is no {self.last.relative_to(self.path)})")

    def locked(self) -> contextlib.AbstractContextManager[bool]:
        """Make the folder, and lock out other training processes; see `exclusive_lock`."""
        return exclusive_lock(
            self.path, f"another process is training in {self.path}; wait for it, or choose another --out"
        )

    def begin(self, options: TrainOptions, data: dict[str, Any]) -> None:
        """Write the configuration and the data of the run."""
        write_json(self.data, data)
        write_atomically(self.config, config_text(options).encode())


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object atomically."""
    write_atomically(path, json_bytes(value))
