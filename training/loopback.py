"""Rendezvous of the training processes of one machine, over its loopback interface only."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.strategies.ddp import DDPStrategy

ADDRESS = "127.0.0.1"

PATIENCE = timedelta(minutes=30)
"""Time that processes may take to start: the first import from a network file system is slow."""


class LoopbackStrategy(DDPStrategy):
    """Distributed data parallel training on one machine.

    By default, PyTorch opens the port of the rendezvous on all networks of the machine, without authentication. Here
    the first process opens it on the loopback interface, which gloo and NCCL use as well.
    """

    def setup_environment(self) -> None:
        if self.cluster_environment is not None and self.cluster_environment.local_rank() == 0:
            let_interrupts_through()  # `machine.start_fabric` blocked them while processes were started
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
        more: dict[str, Any] = {"device_id": self.root_device} if on_gpus else {}
        dist.init_process_group("nccl" if on_gpus else "gloo", store=store, rank=rank, world_size=world, **more)
        if on_gpus:
            atexit.register(_leave)

    def end_others(self) -> None:
        """Kill the processes that this one started: they would print tracebacks about its end."""
        for process in getattr(self._launcher, "procs", ()):
            process.kill()
            process.wait()


def open_store(port: int, rank: int, world: int) -> Any:
    """Open the `TCPStore` that processes share: the first one creates it, on the loopback interface."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if rank:
        return TCPStore(ADDRESS, port, world, is_master=False, timeout=PATIENCE)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen(world)
        return TCPStore(
            ADDRESS, port, world, is_master=True, timeout=PATIENCE, master_listen_fd=os.dup(listener.fileno())
        )


def let_interrupts_through() -> None:
    """Let Ctrl-C interrupt this thread."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def loopback_interface() -> str:
    """Name of the loopback interface: lo on Linux, lo0 on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), "lo")


def _leave() -> None:
    # as Fabric does when a process exits
    if torch.distributed.is_initialized():
        dist.destroy_process_group()
