"""Launchers, and equality of training with one and two processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_runs import tiny
from torch import Tensor, nn
from torch import multiprocessing as mp

from wsi2ihc.errors import OptionError
from wsi2ihc.models.networks import PatchDiscriminator
from wsi2ihc.training import fabric as fabric_module
from wsi2ihc.training import train_step
from wsi2ihc.training.fabric import Processes, count_processes, in_first_process, is_first_process, start_fabric
from wsi2ihc.training.options import TrainOptions

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "train"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK",
                 *(name for name in os.environ if name.startswith("SLURM_"))):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "changes", "processes"),
    [
        ({}, {}, Processes(1, 1)),
        ({}, {"processes": 2, "nodes": 2}, Processes(2, 2)),
        (TORCHRUN, {}, Processes(4, 2)),
        (SRUN, {}, Processes(2, 3)),
        ({**SRUN, **TORCHRUN}, {}, Processes(4, 2)),
        # an interactive job: its tasks are not processes of ours
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, {"processes": 2}, Processes(2, 1)),
    ],
)
def test_processes_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], changes: dict[str, Any], processes: Processes
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert count_processes(tiny(batch_size=24, **changes)) == processes


def test_batch_is_divided_equally() -> None:
    with pytest.raises(OptionError, match=r"--batch-size 4 .* equally among 3"):
        count_processes(tiny(batch_size=4, processes=3))


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({**TORCHRUN, "RANK": "4", "LOCAL_RANK": "0"}, False),
        # torchrun within srun: its rank 0 may be on any node
        ({**TORCHRUN, "RANK": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, True),
        ({**SRUN, "SLURM_PROCID": "0"}, True),
        ({**SRUN, "SLURM_PROCID": "5"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
    ],
)
def test_single_process_is_the_first(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_workers_depend_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric_module, "cores", lambda: 64)
    assert fabric_module.count_workers(tiny(workers=-1)) == 8
    assert fabric_module.count_workers(tiny(workers=-1, processes=2, batch_size=4)) == 8
    monkeypatch.setattr(fabric_module, "cores", lambda: 2)
    assert fabric_module.count_workers(tiny(workers=-1)) == 1
    assert fabric_module.count_workers(tiny(workers=0)) == 0


class Other:
    """A process that is not the first one and is notified whether that one failed."""

    is_global_zero = False

    def __init__(self, failed: bool) -> None:
        self.failed = failed

    def broadcast(self, _: bool) -> bool:
        return self.failed


def test_all_processes_end_when_the_first_one_fails() -> None:
    def never() -> None:
        raise AssertionError("only the first process does this")

    in_first_process(Other(False), never)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        in_first_process(Other(True), never)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        in_first_process(start_fabric(tiny()), lambda: 1 // 0)


class WithoutBatchNorm(PatchDiscriminator):
    """Batch norm sees each process's own part on the CPU, so that gradients would differ by right."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        for index, layer in enumerate(self.model):
            if isinstance(layer, nn.BatchNorm2d):
                self.model[index] = nn.InstanceNorm2d(layer.num_features)


def options_of(processes: int) -> TrainOptions:
    return tiny(processes=processes, batch_size=4, norm="instance", dropout=False, variance_weight=50.0)


def momenta_after_a_step(processes: int) -> list[Tensor]:
    """Adam's first averages after one step: (1 - beta1) times the gradient, parameter by parameter."""
    train_step.PatchDiscriminator = WithoutBatchNorm  # type: ignore[misc]
    options = options_of(processes)
    fabric = start_fabric(options)
    networks = train_step.build_networks(options, fabric)
    random = torch.Generator().manual_seed(5)
    he, ihc = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=random, dtype=torch.uint8)
    share = slice(fabric.global_rank * 4 // processes, (fabric.global_rank + 1) * 4 // processes)
    train_step.training_step(fabric, networks, he[share], ihc[share], options)
    optimizers = (networks.generator_optimizer, networks.discriminator_optimizer)
    return [state["exp_avg"] for one in optimizers for state in one.state_dict()["state"].values()]


def one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.save(momenta_after_a_step(2), Path(folder) / f"{rank}.pt")
    listening = [one.laddr.ip for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN]
    (Path(folder) / f"{rank}.txt").write_text("\n".join(listening))


def test_two_processes_match_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(one_of_two, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    listening = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(2)]
    assert [set(one) for one in listening] == [{"127.0.0.1"}] * 2, "a port is open to the network"
    monkeypatch.setattr(
        train_step, "PatchDiscriminator", train_step.PatchDiscriminator
    )  # put back what the next line changes
    whole = momenta_after_a_step(1)
    # biases before a norm have no gradient but rounding errors, so errors are seen against the largest gradient
    allowed = 1e-6 * max(float(one.abs().max()) for one in whole)
    for rank in range(2):
        parts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(parts) == len(whole) > 20
        for part, one in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, one, rtol=2e-5, atol=allowed)


def test_half_precision_with_one_loss_scale_for_two_optimizers() -> None:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    options = tiny(batch_size=2)
    # far too large a scale: the first steps overflow, are left out, and the scale is lowered
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    networks = train_step.build_networks(options, fabric)
    before = [one.clone() for one in networks.generator_module.parameters()]
    he, ihc = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8)
    for _ in range(40):
        losses = train_step.training_step(fabric, networks, he, ihc, options)
    assert bool(torch.isfinite(losses).all())
    assert scaler.get_scale() < 2.0**40
    after = list(networks.generator_module.parameters())
    assert all(bool(torch.isfinite(one).all()) for one in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
