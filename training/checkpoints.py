"""The state of a run on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi2ihc.errors import ModelError, ModelNotFoundError, OutputError, TrainingError
from wsi2ihc.generator.torch_file import load_torch_file
from wsi2ihc.pyramid import published

from .options import TrainOptions, differences

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from .step import Networks

FORMAT = "wsi2ihc training state 1"

LARGEST_STATE_BYTES = 64 << 30
"""Of a state with the widest networks that a run can have."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Best:
    """The best epoch so far (counted from 1), by which figure, and its value."""

    epoch: int
    by: str
    value: float


@dataclasses.dataclass(slots=True)
class Position:
    """How far a run is: steps done, the best epoch so far, and the time spent, all its parts together."""

    step: int = 0
    best: Best | None = None
    seconds: float = 0.0


def save_state(
    path: Path, networks: Networks, fabric: Fabric, position: Position, options: TrainOptions, fingerprint: str
) -> None:
    """Write everything that `load_state` needs to go on exactly.

    There are no random states in it: what is drawn at a step follows from the seed and the step's number.

    Raises
    ------
    OutputError
        If it cannot be written; the file that was there stays.
    """
    state = {
        "format": FORMAT,
        "options": dataclasses.asdict(options),
        "data": fingerprint,
        "step": position.step,
        "seconds": position.seconds,
        "best": dataclasses.asdict(position.best) if position.best else None,
        "precision": str(fabric.strategy.precision.precision),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "generator": networks.generator_module.state_dict(),
        "discriminator": networks.discriminator_module.state_dict(),
        "model": networks.model.state_dict() if networks.averaged is not None else None,
        "averaged_steps": int(networks.averaged.n_averaged) if networks.averaged is not None else 0,
        "generator_optimiser": networks.generator_optimiser.state_dict(),
        "discriminator_optimiser": networks.discriminator_optimiser.state_dict(),
        "loss_scale": fabric.strategy.precision.state_dict(),  # of fp16
    }
    _write(state, path)


def save_best(path: Path, generator: nn.Module, best: Best) -> None:
    """Write the generator of the best epoch so far.

    Raises
    ------
    OutputError
        If it cannot be written; the file that was there stays.
    """
    _write({"format": FORMAT, "best": dataclasses.asdict(best), "generator": generator.state_dict()}, path)


def load_state(path: Path, networks: Networks, fabric: Fabric, options: TrainOptions, fingerprint: str) -> Position:
    """Put a run's networks and optimisers back to where `save_state` found them.

    Raises
    ------
    TrainingError
        If it is no such file, is damaged, or is of a run with other options or other data.
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
        networks.generator_optimiser.load_state_dict(state["generator_optimiser"])
        networks.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])
        fabric.strategy.precision.load_state_dict(state["loss_scale"])
        best = Best(**state["best"]) if state["best"] else None
        return Position(int(state["step"]), best, float(state["seconds"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path) from error


def read_state(path: Path) -> dict[str, Any]:
    """A state as it was saved, on the CPU.

    Raises
    ------
    TrainingError
        If there is none, or it is damaged.
    """
    try:
        state = load_torch_file(path, LARGEST_STATE_BYTES)  # torch does not look at the checksums
    except ModelNotFoundError as error:
        raise TrainingError(f"there is no checkpoint {path} to resume from") from error
    except ModelError as error:
        raise _damaged(path) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path} is no checkpoint of this version's training")
    return state


def stored_options(state: Mapping[str, Any], path: Path) -> TrainOptions:
    """The options of the run that a state is of."""
    try:
        return TrainOptions(**state["options"])
    except (KeyError, TypeError) as error:
        raise _damaged(path) from error


def check_same_run(state: Mapping[str, Any], options: TrainOptions, fingerprint: str, path: Path) -> None:
    """Refuse to go on with other options or other data than a run began with.

    Raises
    ------
    TrainingError
        Naming what differs.
    """
    changed = differences(stored_options(state, path), options)
    if changed:
        raise TrainingError(f"the run in {path.parent.parent} was begun with other options ({'; '.join(changed)}); "
                            "resume with those, or begin another run")  # fmt: skip
    if state.get("data") != fingerprint:
        raise TrainingError(f"the run in {path.parent.parent} was begun with other patches, or another split of them; "
                            "resume with those, or begin another run")  # fmt: skip


def _write(state: Mapping[str, Any], path: Path) -> None:
    """Save a state so that a kill or a full disk leaves the file that was there.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path, overwrite=True) as partial:
            torch.save(dict(state), partial)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        why = error.strerror or str(error) if isinstance(error, OSError) else "the disk is full, or failed"
        then = "the one before it is kept: free some space, then go on with --resume" if path.exists() else (
            "free some space, or choose another --out")  # fmt: skip
        raise OutputError(f"the checkpoint {path} cannot be written ({why}); {then}") from error


def check_finite(networks: Networks, step: int) -> None:
    """Refuse to go on with, to score or to save networks whose training has failed.

    Raises
    ------
    TrainingError
        Naming the step, and a weight that is not finite.
    """
    for kind, module in (
        ("generator", networks.generator_module),
        ("discriminator", networks.discriminator_module),
    ):
        for name, value in module.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise TrainingError(f"the {kind}'s weights are not finite after step {step} ({name}); the last good "
                                    "checkpoint is kept; lower --learning-rate, or use --precision fp32")  # fmt: skip


def _check_same_arithmetic(state: Mapping[str, Any], fabric: Fabric, path: Path) -> None:
    """What "auto" stood for, and how many processes share a batch, are part of what is computed."""
    precision = str(fabric.strategy.precision.precision)
    begun, run = state.get("precision"), path.parent.parent
    if begun != precision:
        raise TrainingError(f"the run in {run} was begun in {begun}, and would go on in {precision}; say --precision "
                            "fp32, bf16 or fp16 as it was begun")  # fmt: skip
    if state.get("processes") != fabric.world_size:
        _log.warning("the run was begun by %s processes and goes on with %d: dropout, and batch norm on CPUs, will not "
                     "be what they would have been", state.get("processes"), fabric.world_size)  # fmt: skip
    if fabric.device.type == "cpu" and state.get("threads") != torch.get_num_threads():
        _log.warning(
            "the run was begun with %s threads and goes on with %d: sums are added up in another order, so the "
            "weights will differ in their last bits",
            state.get("threads"),
            torch.get_num_threads(),
        )


def _damaged(path: Path) -> TrainingError:
    return TrainingError(f"the checkpoint {path} is damaged, or is none; put a copy in its place, or begin another run")
