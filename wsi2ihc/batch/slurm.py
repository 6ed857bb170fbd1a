"""Workers as SLURM jobs: one worker and one GPU a job, submitted again when a job ends before the batch does."""

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

_LOOK_S, _LOOK_AT_LEAST_S = 2.0, 60.0
"""Between two looks at the queue while workers are missing: soon, and then ever later, since jobs may wait for days."""

_CLOSE_S = 15.0

_TELL_S = 300.0
"""Between two words about jobs that wait in the queue."""

_FRUITLESS = 3
"""So many jobs that end one after the other without a worker have something wrong that another one will not mend."""

_CORES, _MEMORY = 8, "32GB"
"""Of a job, where dask-jobqueue's settings do not say."""

_log = logging.getLogger(__name__)


class SlurmJobs:
    """A scheduler in this process, and jobs that bring its workers.

    Parameters
    ----------
    logs
        Folder for what jobs print, unless dask-jobqueue's settings name one.
    count
        Of jobs, and so of workers.
    needs_gpu
        Whether each job asks for a GPU.

    Raises
    ------
    BatchError
        If dask-jobqueue or ``sbatch`` is missing, or a job is refused.
    """

    def __init__(self, logs: Path, count: int, *, needs_gpu: bool) -> None:
        self._count = count
        self._looked_at = self._told_at = time.monotonic()
        self._pause_s, self._there = _LOOK_S, 0
        self._numbers = itertools.count()
        self._fruitful: set[str] = set()
        self._fruitless: set[str] = set()
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise BatchError(
                    f"--slurm: there is no {program} here; run this on a machine from which jobs are submitted, or see "
                    "docs/cluster.md for other ways"
                )
        make_cluster, site = _jobqueue()
        settings = job_settings(site, logs, needs_gpu=needs_gpu)
        if listens_everywhere(site):
            _log.warning(
                "the scheduler and its workers can be reached by all machines of the network: set interface in "
                "dask-jobqueue's settings, or use certificates (docs/cluster.md, Security)"
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
        """Of the scheduler."""
        return str(self._cluster.scheduler_address)

    def look(self, names: Collection[str]) -> None:
        """Submit jobs again in place of those that have ended.

        Parameters
        ----------
        names
            Of the workers that are there.

        Raises
        ------
        BatchError
            If jobs end and bring no workers, or are refused.
        """
        now, jobs = time.monotonic(), self._job_ids()
        self._fruitful.update(job for name, job in jobs.items() if name in names)
        if len(names) != self._there:
            self._there, self._pause_s = len(names), _LOOK_S
        if len(names) >= self._count or now - self._looked_at < self._pause_s:
            return
        self._looked_at = now
        self._pause_s = min(2 * self._pause_s, _LOOK_AT_LEAST_S)
        if (queued := queued_jobs()) is None:
            return
        ended = {name: job for name, job in jobs.items() if job not in queued and name not in names}
        self._judge(ended, is_queue_empty=len(ended) == len(jobs))
        if not names and now - self._told_at >= _TELL_S:
            self._told_at = now
            _log.warning("still waiting for workers; SLURM jobs: %s", _listed(jobs.values()))
        if ended or len(jobs) < self._count:
            self._submit_again(ended, is_vital=not names)

    def close(self) -> None:
        """Cancel all jobs, and end the scheduler."""
        from distributed.core import Status

        for job in self._cluster.workers.values():
            job.status = Status.closed  # dask-jobqueue does not say so itself, and Dask insists on it
        try:
            self._cluster.close(timeout=_CLOSE_S)
        except (OSError, RuntimeError, TimeoutError) as error:
            _log.warning("SLURM jobs may be left (%s); see squeue", _line(error))

    def _judge(self, ended: Mapping[str, str], *, is_queue_empty: bool) -> None:
        """End the batch if jobs bring no workers."""
        if set(ended.values()) & self._fruitful:
            self._fruitless.clear()  # a job that had a worker: what was wrong is so no more
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
            _log.warning("%s; the batch goes on with the workers that are left", error)
        else:
            _log.info("submitted again, in place of: %s", _listed(ended.values()))

    def _submit(self) -> None:
        """Submit as many jobs as are missing."""
        from distributed.core import Status

        cluster = self._cluster
        while len(cluster.worker_spec) < self._count:
            # a name that was used before would have a job cancelled when Dask gives up the worker that had it
            cluster.worker_spec[f"wsi2ihc-{next(self._numbers)}"] = cluster.new_spec
        try:
            cluster.sync(_settled, cluster)
        except (OSError, RuntimeError, ValueError) as error:
            for name, job in list(cluster.workers.items()):
                if not job.job_id:
                    job.status = Status.failed
                    del cluster.workers[name], cluster.worker_spec[name]
            raise BatchError(f"--slurm: a job was refused ({_line(error)})") from error

    def _job_ids(self) -> dict[str, str]:
        """Of submitted jobs, by the name of the worker."""
        return {str(name): str(job.job_id) for name, job in self._cluster.workers.items() if job.job_id}


def _jobqueue() -> tuple[Callable[..., SLURMCluster], Mapping[str, Any]]:
    """What makes a cluster of SLURM jobs, and the site's settings for it.

    Raises
    ------
    BatchError
        If dask-jobqueue is not installed.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = {one: signal.getsignal(one) for one in signals}
    try:
        import dask
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise BatchError("--slurm needs dask-jobqueue: pip install 'wsi2ihc[cluster]'") from error
    finally:
        # importing dask-jobqueue 0.9 sets handlers that leave with exit code 0, as if all were done
        if threading.current_thread() is threading.main_thread():
            for one, handler in handlers.items():
                signal.signal(one, handler)
    return SLURMCluster, dask.config.get("jobqueue.slurm")


async def _settled(cluster: SLURMCluster) -> None:
    """Until all jobs are submitted."""
    await cluster


def queued_jobs() -> set[str] | None:
    """Numbers of this user's jobs that wait or run; None if SLURM does not answer."""
    try:
        listed = subprocess.run(
            ["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("squeue does not answer: %s", error)
        return None
    return set(listed.stdout.split())


def job_settings(settings: Mapping[str, Any], logs: Path, *, needs_gpu: bool) -> dict[str, Any]:
    """What a job asks for, in the words of `dask_jobqueue.SLURMCluster`: its settings, and what they leave open.

    Parameters
    ----------
    settings
        ``jobqueue.slurm`` of Dask's configuration.
    logs
        Folder for what jobs print.
    needs_gpu
        Whether each job asks for a GPU, and its worker offers it.

    Raises
    ------
    BatchError
        If the walltime cannot be read.
    """
    arguments = [str(one) for one in settings.get("worker-extra-args") or []]
    if not any("dashboard" in one for one in arguments):
        arguments.append("--no-dashboard")
    if not _mentions(arguments, "--dashboard-address"):
        # without a dashboard a worker still serves HTTP, by default on all networks
        arguments += ["--dashboard-address", "127.0.0.1:0"]
    directives = list(settings.get("job-extra-directives") or [])
    if needs_gpu and not _mentions(arguments, "--resources"):
        arguments += ["--resources", "GPU=1"]
    if needs_gpu and not any("gres" in one or "gpu" in one for one in directives):
        directives.append("--gres=gpu:1")
    if settings.get("walltime") and not _mentions(arguments, "--lifetime"):
        walltime_s = seconds_of(str(settings["walltime"]))
        # it has to leave before SLURM ends it, or the scheduler learns of it by a timeout
        stagger_s = min(60, walltime_s // 20)
        lifetime_s = walltime_s - max(2 * stagger_s, min(300, walltime_s // 10))
        arguments += ["--lifetime", f"{lifetime_s}s", "--lifetime-stagger", f"{stagger_s}s"]
    name = settings.get("name")
    # workers have to reach the scheduler, but nobody has to reach the dashboard
    scheduler = {"dashboard_address": "127.0.0.1:0", **(settings.get("scheduler-options") or {})}
    if listens_everywhere(settings):
        from distributed.utils import get_ip

        scheduler["host"] = get_ip()  # the address that Dask gives to workers; no other has to be open
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
    """Whether these settings (``jobqueue.slurm``) name no interface, and certificates are not required either."""
    import dask

    own = settings.get("scheduler-options") or {}
    is_bound = settings.get("interface") or own.get("interface") or own.get("host")
    return not is_bound and not dask.config.get("distributed.comm.require-encryption", False)


def seconds_of(walltime: str) -> int:
    """Seconds of a time as SLURM writes it: minutes, minutes:seconds, hours:minutes:seconds, or days-hours[:…].

    Raises
    ------
    BatchError
        If it is no such time.
    """
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", walltime.strip())
    if parts is None:
        raise BatchError(
            f"walltime {walltime!r:.40} (dask-jobqueue's settings) is no time of SLURM's, such as 12:00:00"
        )
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
    """The end of what an error says, in one line: sbatch's own words come last."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"…{text[-200:]}"
