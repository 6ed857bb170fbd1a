"""Devices, processes and precision, through Lightning Fabric.

`start_fabric` starts one process per device, or joins those that torchrun or srun has started. `in_first_process` runs
work that only one process may do.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from wsi2ihc.errors import DeviceError, OptionError
from wsi2ihc.models.device import choose_precision, parse_devices
from wsi2ihc.system import blocked, cores

from .options import TrainOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.strategy import Strategy

_FABRIC_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}

Result = TypeVar("Result")

ADDRESS = "127.0.0.1"

START_TIMEOUT = timedelta(minutes=30)
"""Time limit for processes to start: the first import from a network file system is slow."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Number of processes: ``local`` on each of ``nodes`` machines."""

    local: int
    nodes: int

    @property
    def total(self) -> int:
        return self.local * self.nodes


def launched_processes() -> Processes | None:
    """Return the processes that torchrun or srun has started, detected as Fabric does; None if neither did."""
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
    """Return whether this is the only process or the first one. It is fast: for messages that are shown once."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ.get("RANK", "0") == "0"
    if "SLURM_NTASKS" in os.environ and "LOCAL_RANK" not in os.environ:
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def count_processes(options: TrainOptions) -> Processes:
    """Return the number of training processes: that of the launcher, else that of the options.

    Raises
    ------
    OptionError
        If the batch cannot be divided equally among them, or lightning-fabric is not installed.
    DeviceError
        If a device does not exist.
    """
    devices = parse_devices(options.device)
    if options.processes > 1 and devices[0].type != "cpu":
        raise OptionError("--processes is for the CPU; on GPUs name the devices, as in --device cuda:0,1")
    try:
        processes = launched_processes()
    except ImportError as error:
        raise OptionError("training needs lightning-fabric: pip install 'wsi2ihc[train]'") from error
    if processes is None:
        local = options.processes if devices[0].type == "cpu" else len(devices)
        processes = Processes(local, options.nodes)
    if options.batch_size % processes.total:
        raise OptionError(f"--batch-size {options.batch_size} is the number of images over all processes together and "
                          f"cannot be divided equally among {processes.total}")  # fmt: skip
    return processes


def start_fabric(options: TrainOptions) -> Fabric:
    """Start the training processes; from here on each runs the same program.

    Raises
    ------
    DeviceError
        If a device does not exist or does not support the precision, or the processes cannot connect.
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
        with blocked("SIGINT"):  # in the other processes, which this one ends
            fabric.launch()
    except (KeyboardInterrupt, SystemExit):
        end_other_processes(fabric)
        raise
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"the training processes cannot be started ({' '.join(str(error).split())!s:.200})"
        ) from error
    if fabric.world_size != processes.total:
        raise DeviceError(f"{fabric.world_size} training processes were started instead of {processes.total}; start "
                          "them by torchrun, or by srun with one task each")  # fmt: skip
    if processes.total > 1:
        # while Python shuts down, a thread of gloo that still releases a tensor would abort the process
        atexit.register(_leave)
    if kind == "cpu" and processes.local > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes.local))
    return fabric


def end_other_processes(fabric: Fabric) -> None:
    """End the training processes that this one has started, if any."""
    if hasattr(fabric.strategy, "end_other_processes"):
        fabric.strategy.end_other_processes()


def in_first_process(fabric: Fabric, work: Callable[[], Result]) -> Result | None:
    """Run work in the first process only, while the others wait; if it fails there, all processes end.

    Return its result in the first process, and None in the others.

    At a barrier instead, the others would hold their GPUs until it times out.
    """
    result, failure = None, None
    if fabric.is_global_zero:
        try:
            result = work()
        except Exception as error:
            failure = error
    failed = fabric.broadcast(failure is not None)
    if failure is not None:
        raise failure
    if failed:  # the first process reports the reason
        raise SystemExit(1)
    return result


def count_workers(options: TrainOptions) -> int:
    """Return the number of decoding processes per training process: the option, else one per four cores, 8 at most.

    With few cores the networks need all of them, and one decoder that shares them is enough (1 to 2 ms per patch).
    """
    if options.workers >= 0:
        return options.workers
    return max(1, min(8, cores() // (4 * count_processes(options).local)))


def _strategy(processes: Processes, *, is_local: bool) -> str | Strategy:
    """Return the strategy of Fabric; ``is_local``: all processes run here, and no launcher states where they meet."""
    if processes.total == 1:
        return "auto"
    # SyncBatchNorm keeps buffers equal in all processes; and a broadcast between the two passes of the discriminator
    # would change values in place that the gradient of the first one needs (torch 2.13 renamed the argument)
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    without_broadcast: dict[str, Any] = {name: False}
    return (LoopbackStrategy if is_local else DDPStrategy)(**without_broadcast)


class LoopbackStrategy(DDPStrategy):
    """Distributed data parallel training on one machine.

    By default, PyTorch opens the rendezvous port on all network interfaces, without authentication. Here the first
    process opens it on the loopback interface, which gloo and NCCL use as well.
    """

    def setup_environment(self) -> None:
        if self.cluster_environment is not None and self.cluster_environment.local_rank() == 0:
            unblock_interrupts()  # `start_fabric` blocked them while processes were started
        if not dist.is_initialized():  # the parent class does not repeat it
            self._join()
        super().setup_environment()

    def _join(self) -> None:
        environment = self.cluster_environment
        if environment is None:
            raise RuntimeError("there is no cluster environment")
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback_interface())
        rank, world = environment.local_rank(), self.num_processes
        store = open_store(environment.main_port, rank, world)
        on_gpus = self.root_device.type == "cuda"
        device_id: dict[str, Any] = {"device_id": self.root_device} if on_gpus else {}
        dist.init_process_group("nccl" if on_gpus else "gloo", store=store, rank=rank, world_size=world, **device_id)

    def end_other_processes(self) -> None:
        """Kill the processes that this one has started; otherwise they would print tracebacks when it ends."""
        for process in getattr(self._launcher, "procs", ()):
            process.kill()
            process.wait()


def open_store(port: int, rank: int, world: int) -> Any:
    """Open the `TCPStore` that processes share: the first one creates it, on the loopback interface."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if rank:
        return TCPStore(ADDRESS, port, world, is_master=False, timeout=START_TIMEOUT)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen(world)
        return TCPStore(
            ADDRESS, port, world, is_master=True, timeout=START_TIMEOUT, master_listen_fd=os.dup(listener.fileno())
        )


def unblock_interrupts() -> None:
    """Unblock SIGINT in this thread."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def loopback_interface() -> str:
    """Return the name of the loopback interface: lo on Linux, lo0 on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), "lo")


def _leave() -> None:
    """Leave the process group, which ends its threads."""
    if torch.distributed.is_initialized():
        dist.destroy_process_group()
