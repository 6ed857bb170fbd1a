"""Devices, processes and precision, through Lightning Fabric.

A run is one process per GPU, or ``processes`` of them on the CPU (gloo). They are started by torchrun or SLURM where
one of these is at work, else by Fabric, which starts the program again for each further process.
"""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.parallel import DistributedDataParallel

from wsi2ihc.errors import DeviceError, OptionError
from wsi2ihc.generator.device import choose_precision, parse_devices

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


def count_processes(options: TrainOptions) -> Processes:
    """How many processes will train: what the launcher says, else what the options say.

    Raises
    ------
    OptionError
        If the images of a step cannot be shared out equally.
    DeviceError
        If there is no such device.
    """
    environment = os.environ
    devices = parse_devices(options.device)
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        processes = Processes(local, int(environment["WORLD_SIZE"]) // local)
    elif "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        nodes = int(environment.get("SLURM_NNODES", "1"))
        processes = Processes(int(environment["SLURM_NTASKS"]) // nodes, nodes)
    else:
        local = options.processes if devices[0].type == "cpu" else len(devices)
        processes = Processes(local, options.nodes)
    if options.processes > 1 and devices[0].type != "cpu":
        raise OptionError("--processes is for the CPU; on GPUs name the devices, as in --device cuda:0,1")
    if options.batch_size % processes.total:
        raise OptionError(f"--batch-size {options.batch_size} is the number of images over all processes together, and "
                          f"cannot be shared out equally among {processes.total}")  # fmt: skip
    return processes


def start_fabric(options: TrainOptions) -> Fabric:
    """Start the processes; from here on each runs the same program.

    Raises
    ------
    OptionError
        If lightning-fabric is not installed, or as `count_processes`.
    DeviceError
        If there is no such device, or it cannot work in this precision.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise OptionError("training needs lightning-fabric: pip install 'wsi2ihc[train]'") from error
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    processes = count_processes(options)
    devices = parse_devices(options.device)
    kind = devices[0].type
    launched = "TORCHELASTIC_RUN_ID" in os.environ or processes.local != len(devices)
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=processes.local if kind == "cpu" or launched else [one.index or 0 for one in devices],
            num_nodes=processes.nodes,
            strategy=_strategy(processes),
            precision=_FABRIC_PRECISIONS[choose_precision(options.precision, devices[0])],
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"the training processes cannot be started ({' '.join(str(error).split())!s:.200})"
        ) from error
    if kind == "cpu" and processes.local > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes.local))
    return fabric


def count_workers(options: TrainOptions) -> int:
    """How many processes decode patches for each that trains: as asked for, else one per four cores, 8 at most.

    On few cores the networks need them all, and a decoder that shares them is enough (1 to 2 ms a patch).
    """
    if options.workers >= 0:
        return options.workers
    return max(1, min(8, (os.cpu_count() or 1) // (4 * count_processes(options).local)))


def _strategy(processes: Processes) -> str | Strategy:
    if processes.total == 1:
        return "auto"
    from lightning_fabric.strategies.ddp import DDPStrategy

    # Buffers are the same everywhere with SyncBatchNorm; and a broadcast between the discriminator's two passes would
    # change in place what the first one's gradient needs. (torch 2.13 has another name for it.)
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    without_broadcast: dict[str, Any] = {name: False}
    return DDPStrategy(**without_broadcast)
