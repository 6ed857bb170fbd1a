"""Dask workers as SLURM jobs."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BatchError

if TYPE_CHECKING:
    from dask_jobqueue.slurm import SLURMCluster

_POLL_S, _LONGEST_POLL_S = 2.0, 60.0
"""First and longest interval at which the queue is polled while workers are missing; jobs may wait for days."""

_CLOSE_S = 15.0

_REPORT_S = 300.0
"""Interval of log messages about waiting jobs."""

_FRUITLESS = 3
"""Consecutive jobs that end without a worker, after which the batch fails."""

_CORES, _MEMORY = 8, "32GB"
"""Defaults of a job if the settings of dask-jobqueue do not state them."""

_log = logging.getLogger(__name__)


class SlurmJobs:
    """Dask scheduler in this process with ``count`` SLURM jobs of one worker each.

    The output of jobs is written to ``logs``, unless the settings of dask-jobqueue name another folder.

    Raises
    ------
    BatchError
        If dask-jobqueue or ``sbatch`` is missing, or a job is refused.
    """

    def __init__(self, logs: Path, count: int, *, needs_gpu: bool) -> None:
        self._count = count
        self._polled_at = self._reported_at = time.monotonic()
        self._pause_s, self._connected = _POLL_S, 0
        self._numbers = itertools.count()
        self._fruitful: set[str] = set()
        self._fruitless: set[str] = set()
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise BatchError(
                    f"--slurm: there is no {program} here; run this on a machine from which jobs are submitted, or see "
                    "docs/batch.md for other ways"
                )
        make_cluster, site = _jobqueue()
        settings = job_settings(site, logs, needs_gpu=needs_gpu)
        if listens_everywhere(site):
            _log.warning(
                "the scheduler and its workers can be reached by all machines of the network: set interface in "
                "dask-jobqueue's settings, or use certificates (docs/batch.md, Security)"
            )
        self._logs = settings["log_directory"]
        try:
            self._cluster = make_cluster(**settings)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise BatchError(f"--slurm: dask-jobqueue cannot begin ({_line(error)}); see its settings") from error
        try:
            self._submit()
        except BaseException:
            self.close()
            raise
        _log.warning("SLURM jobs submitted: %s; waiting for their workers", _listed(self._job_ids().values()))

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return str(self._cluster.scheduler_address)

    def look(self, names: Collection[str]) -> None:
        """Replace jobs that have ended; ``names`` are those of the connected workers.

        Raises
        ------
        BatchError
            If jobs end without a worker or are refused.
        """
        now, jobs = time.monotonic(), self._job_ids()
        self._fruitful.update(job for name, job in jobs.items() if name in names)
        if len(names) != self._connected:
            self._connected, self._pause_s = len(names), _POLL_S
        if len(names) >= self._count or now - self._polled_at < self._pause_s:
            return
        self._polled_at = now
        self._pause_s = min(2 * self._pause_s, _LONGEST_POLL_S)
        if (queued := queued_jobs()) is None:
            return
        ended = {name: job for name, job in jobs.items() if job not in queued and name not in names}
        self._judge(ended, is_queue_empty=len(ended) == len(jobs))
        if not names and now - self._reported_at >= _REPORT_S:
            self._reported_at = now
            _log.warning("still waiting for workers; SLURM jobs: %s", _listed(jobs.values()))
        if ended or len(jobs) < self._count:
            self._submit_again(ended, is_vital=not names)

    def close(self) -> None:
        """Cancel all jobs and end the scheduler."""
        from distributed.core import Status

        for job in self._cluster.workers.values():
            job.status = Status.closed  # dask-jobqueue does not set it, and Dask requires it
        try:
            self._cluster.close(timeout=_CLOSE_S)
        except (OSError, RuntimeError, TimeoutError) as error:
            _log.warning("SLURM jobs may be left (%s); see squeue", _line(error))

    def _judge(self, ended: Mapping[str, str], *, is_queue_empty: bool) -> None:
        """Raise an error if jobs end without workers."""
        if set(ended.values()) & self._fruitful:
            self._fruitless.clear()  # a job had a worker, so earlier failures no longer count
        self._fruitless.update(set(ended.values()) - self._fruitful)
        if not self._fruitless:
            return
        if (is_queue_empty and not self._fruitful) or len(self._fruitless) >= _FRUITLESS:
            raise BatchError(
                f"SLURM job {max(self._fruitless)} ended before its worker came; see {self._logs}, and whether jobs "
                "can reach this machine (interface in dask-jobqueue's settings)"
            )

    def _submit_again(self, ended: Mapping[str, str], *, is_vital: bool) -> None:
        self._cluster.sync(self._cluster.scale_down, list(ended))
        try:
            self._submit()
        except BatchError as error:
            if is_vital:
                raise
            _log.warning("%s; the batch continues with the remaining workers", error)
        else:
            _log.info("submitted again, in place of: %s", _listed(ended.values()))

    def _submit(self) -> None:
        """Submit the missing jobs."""
        from distributed.core import Status

        cluster = self._cluster
        while len(cluster.worker_spec) < self._count:
            # a reused name would be cancelled when Dask drops the earlier worker
            cluster.worker_spec[f"wsi2ihc-{next(self._numbers)}"] = cluster.new_spec
        try:
            cluster.sync(_submitted, cluster)
        except (OSError, RuntimeError, ValueError) as error:
            for name, job in list(cluster.workers.items()):
                if not job.job_id:
                    job.status = Status.failed
                    del cluster.workers[name], cluster.worker_spec[name]
            raise BatchError(f"--slurm: a job was refused ({_line(error)})") from error

    def _job_ids(self) -> dict[str, str]:
        """Return the numbers of submitted jobs by the names of their workers."""
        return {str(name): str(job.job_id) for name, job in self._cluster.workers.items() if job.job_id}


def _jobqueue() -> tuple[Callable[..., SLURMCluster], Mapping[str, Any]]:
    """Return the class of a cluster of SLURM jobs and the settings of the site."""
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = {one: signal.getsignal(one) for one in signals}
    try:
        import dask
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise BatchError("--slurm needs dask-jobqueue: pip install 'wsi2ihc[cluster]'") from error
    finally:
        # importing dask-jobqueue 0.9 sets handlers that exit with code 0
        if threading.current_thread() is threading.main_thread():
            for one, handler in handlers.items():
                signal.signal(one, handler)
    return SLURMCluster, dask.config.get("jobqueue.slurm")


async def _submitted(cluster: SLURMCluster) -> None:
    """Wait until all jobs are submitted."""
    await cluster


def queued_jobs() -> set[str] | None:
    """Return the numbers of waiting and running jobs of this user; None if SLURM does not respond."""
    try:
        listed = subprocess.run(
            ["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("squeue does not respond: %s", error)
        return None
    return set(listed.stdout.split())


def job_settings(settings: Mapping[str, Any], logs: Path, *, needs_gpu: bool) -> dict[str, Any]:
    """Return the arguments of `dask_jobqueue.SLURMCluster`: the settings of the site with defaults.

    ``settings`` are ``jobqueue.slurm`` of Dask's configuration. With ``needs_gpu``, each job requests a GPU, which its
    worker offers.

    Raises
    ------
    BatchError
        If the walltime cannot be read.
    """
    arguments = [str(one) for one in settings.get("worker-extra-args") or []]
    if not any("dashboard" in one for one in arguments):
        arguments.append("--no-dashboard")
    if not _mentions(arguments, "--dashboard-address"):
        # without a dashboard a worker still serves HTTP on all networks by default
        arguments += ["--dashboard-address", "127.0.0.1:0"]
    directives = list(settings.get("job-extra-directives") or [])
    if needs_gpu and not _mentions(arguments, "--resources"):
        arguments += ["--resources", "GPU=1"]
    if needs_gpu and not any("gres" in one or "gpu" in one for one in directives):
        directives.append("--gres=gpu:1")
    if settings.get("walltime") and not _mentions(arguments, "--lifetime"):
        walltime_s = seconds_of(str(settings["walltime"]))
        # a worker must close before SLURM ends its job, otherwise the scheduler notices by a timeout only
        stagger_s = min(60, walltime_s // 20)
        lifetime_s = walltime_s - max(2 * stagger_s, min(300, walltime_s // 10))
        arguments += ["--lifetime", f"{lifetime_s}s", "--lifetime-stagger", f"{stagger_s}s"]
    name = settings.get("name")
    # the scheduler must be reachable by workers, but not the dashboard
    scheduler = {"dashboard_address": "127.0.0.1:0", **(settings.get("scheduler-options") or {})}
    if listens_everywhere(settings):
        from distributed.utils import get_ip

        scheduler["host"] = get_ip()  # the address that Dask gives to workers
    return {
        "cores": settings.get("cores") or _CORES,
        "memory": settings.get("memory") or _MEMORY,
        "processes": 1,
        "job_name": "wsi2ihc" if name in (None, "dask-worker") else name,
        "log_directory": settings.get("log-directory") or str(logs),
        "worker_extra_args": arguments,
        "job_extra_directives": directives,
        # `python -m`, which starts a worker, would search the folder from which the job was submitted
        "job_script_prologue": [*(settings.get("job-script-prologue") or []), "export PYTHONSAFEPATH=1"],
        "scheduler_options": scheduler,
    }


def listens_everywhere(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings (``jobqueue.slurm``) name no interface and certificates are not required."""
    import dask

    own = settings.get("scheduler-options") or {}
    is_bound = settings.get("interface") or own.get("interface") or own.get("host")
    return not is_bound and not dask.config.get("distributed.comm.require-encryption", False)


def seconds_of(walltime: str) -> int:
    """Convert a SLURM time to seconds: minutes, minutes:seconds, hours:minutes:seconds, or days-hours[:…].

    Raises
    ------
    BatchError
        If it is invalid.
    """
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", walltime.strip())
    if parts is None:
        raise BatchError(f"walltime {walltime!r:.40} (dask-jobqueue's settings) is not a SLURM time such as 12:00:00")
    days, first, second, third = (None if part is None else int(part) for part in parts.groups())
    if days is not None:
        return ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:
        return ((first or 0) * 60 + (second or 0)) * 60 + third
    return (first or 0) * 60 + (second or 0)


def _mentions(arguments: Collection[str], name: str) -> bool:
    return any(one == name or one.startswith((f"{name}=", f"{name} ")) for one in arguments)


def _listed(jobs: Collection[str]) -> str:
    return ", ".join(sorted(jobs))


def _line(error: BaseException) -> str:
    """Return the end of a message in one line: the message of sbatch comes last."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"…{text[-200:]}"
