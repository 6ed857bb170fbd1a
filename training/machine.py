"""Devices, processes and precision, through Lightning Fabric.

A run is one process per GPU, or ``processes`` of them on the CPU (gloo). They are started by torchrun or SLURM where
one of these is at work, else by Fabric, which starts the program again for each further process.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.parallel import DistributedDataParallel

from wsi2ihc.errors import DeviceError, OptionError
from wsi2ihc.generator.device import choose_precision, parse_devices
from wsi2ihc.processes import blocked
from wsi2ihc.runtime import cores

from .options import TrainOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.strategy import Strategy

_FABRIC_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes there are: ``local`` on each of ``nodes`` machines."""

    local: int
    nodes: int

    @property
    def total(self) -> int:
        return self.local * self.nodes


def launched_processes() -> Processes | None:
    """The processes that torchrun or SLURM's srun has started, by the tests that Fabric itself makes; None: neither."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return Processes(local, int(os.environ["WORLD_SIZE"]) // local)
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return Processes(int(os.environ["SLURM_NTASKS"]) // nodes, nodes)
    return None


def is_first_process() -> bool:
    """Whether this is the only process, or will be the first. Quick: for what is to be said once."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ.get("RANK", "0") == "0"
    if "SLURM_NTASKS" in os.environ and "LOCAL_RANK" not in os.environ:
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def count_processes(options: TrainOptions) -> Processes:
    """How many processes will train: what the launcher says, else what the options say.

    Raises
    ------
    OptionError
        If the images of a step cannot be shared out equally, or lightning-fabric is not installed.
    DeviceError
        If there is no such device.
    """
    devices = parse_devices(options.device)
    if options.processes > 1 and devices[0].type != "cpu":
        raise OptionError("--processes is for the CPU; on GPUs name the devices, as in --device cuda:0,1")
    with _fabric_needed():
        processes = launched_processes()
    if processes is None:
        local = options.processes if devices[0].type == "cpu" else len(devices)
        processes = Processes(local, options.nodes)
    if options.batch_size % processes.total:
        raise OptionError(f"--batch-size {options.batch_size} is the number of images over all processes together, and "
                          f"cannot be shared out equally among {processes.total}")  # fmt: skip
    return processes


def start_fabric(options: TrainOptions) -> Fabric:
    """Start the processes; from here on each runs the same program.

    Raises
    ------
    DeviceError
        If there is no such device, it cannot work in this precision, or the processes do not find each other.
    OptionError
        As `count_processes`.
    """
    processes = count_processes(options)
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices = parse_devices(options.device)
    kind = devices[0].type
    counted = kind == "cpu" or launched_processes() is not None
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=processes.local if counted else [one.index or 0 for one in devices],
            num_nodes=processes.nodes,
            strategy=_strategy(processes, is_local=processes.nodes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ),
            precision=_FABRIC_PRECISIONS[choose_precision(options.precision, devices[0])],
        )
        with blocked("SIGINT"):  # in the processes; this one ends them
            fabric.launch()
    except (KeyboardInterrupt, SystemExit):
        end_others(fabric)
        raise
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"the training processes cannot be started ({' '.join(str(error).split())!s:.200})"
        ) from error
    if fabric.world_size != processes.total:
        raise DeviceError(f"{fabric.world_size} training processes were started instead of {processes.total}; start "
                          "them by torchrun, or by srun with one task each")  # fmt: skip
    if kind == "cpu" and processes.local > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes.local))
    return fabric


def end_others(fabric: Fabric) -> None:
    """End the processes that this one has started for training, if any."""
    if hasattr(fabric.strategy, "end_others"):
        fabric.strategy.end_others()


def in_first_process(fabric: Fabric, work: Callable[[], object]) -> None:
    """Do something in the first process only, while the others wait; if it fails there, all processes end.

    Waiting at a barrier instead, the others would hold their GPUs until it times out.
    """
    failure: Exception | None = None
    if fabric.is_global_zero:
        try:
            work()
        except Exception as error:
            failure = error
    failed = fabric.broadcast(failure is not None)
    if failure is not None:
        raise failure
    if failed:  # the first process says why
        raise SystemExit(1)


@contextlib.contextmanager
def _fabric_needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise OptionError("training needs lightning-fabric: pip install 'wsi2ihc[train]'") from error


def count_workers(options: TrainOptions) -> int:
    """How many processes decode patches for each that trains: as asked for, else one per four cores, 8 at most.

    On few cores the networks need them all, and a decoder that shares them is enough (1 to 2 ms a patch).
    """
    if options.workers >= 0:
        return options.workers
    return max(1, min(8, cores() // (4 * count_processes(options).local)))


def _strategy(processes: Processes, *, is_local: bool) -> str | Strategy:
    """How processes work together; ``is_local``: all are on this machine, and no launcher says where they meet."""
    if processes.total == 1:
        return "auto"
    from lightning_fabric.strategies.ddp import DDPStrategy

    from .loopback import LoopbackStrategy

    # Buffers are the same everywhere with SyncBatchNorm; and a broadcast between the discriminator's two passes would
    # change in place what the first one's gradient needs. (torch 2.13 has another name for it.)
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    without_broadcast: dict[str, Any] = {name: False}
    return (LoopbackStrategy if is_local else DDPStrategy)(**without_broadcast)
