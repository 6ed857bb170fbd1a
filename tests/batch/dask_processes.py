"""A Dask scheduler and workers as processes of this machine; and a child that behaves badly over some slides."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

BADLY_BEHAVED = """
import ctypes, sys, time
if "wsi2ihc.batch.worker:serve" in sys.orig_argv:
    from wsi2ihc.translation import translate
    run = translate.translate_job
    def hooked(job, path, **more):
        if path.name.startswith("poison"):
            ctypes.string_at(0)
        if path.name.startswith("slow"):
            time.sleep(1)
        if path.name.startswith("endless"):
            time.sleep(600)
        return run(job, path, **more)
    translate.translate_job = hooked
"""
"""A ``sitecustomize`` for children: a true crash, and long work, over slides of some names."""


class DaskProcesses:
    """Processes of a cluster on loopback, all of which end with `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.environment = {**os.environ, "PYTHONPATH": hooks(folder), "DASK_CONFIG": str(folder / "config")}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start(
            "scheduler",
            "--scheduler-file",
            str(self.file),
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--dashboard-address",
            "127.0.0.1:0",
        )
        wait_until(self.file.exists)

    def start_worker(self, name: str, *more: str) -> None:
        """Does not wait for it: the engine has to."""
        self._start(
            "worker", "--scheduler-file", str(self.file), "--host", "127.0.0.1", "--name", name, "--nthreads", "1",
            "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--local-directory", str(self.folder), *more,
        )  # fmt: skip

    def children(self) -> list[psutil.Process]:
        """Processes that translate."""
        mine = [psutil.Process(one.pid) for one in self.processes if one.poll() is None]
        return [one for top in mine for one in descendants(top) if is_child(one)]

    def close(self) -> None:
        for one in self.processes:
            os.killpg(one.pid, signal.SIGKILL)
        for one in self.processes:
            one.wait(20)

    def _start(self, what: str, *arguments: str) -> None:
        log = self.folder / f"{len(self.processes)}-{what}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", what, *arguments], stdout=stream, stderr=stream,
                env=self.environment, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self.processes.append(process)


def hooks(folder: Path) -> str:
    """A folder for PYTHONPATH with the hook for children."""
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(BADLY_BEHAVED)
    return str(site)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_child(process: psutil.Process) -> bool:
    try:
        return "wsi2ihc.batch.worker:serve" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(is_time: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not is_time():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)
