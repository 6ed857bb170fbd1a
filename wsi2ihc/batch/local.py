"""Workers on one machine: one for each GPU, or some on the CPU."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ..concurrency import END_TIMEOUT_S, WorkerProcess
from ..errors import DeviceError
from ..files import open_without_following
from ..system import ProcessEnd, cores, how_it_ended
from ..text import anonymize, printable
from .task import BatchOptions, Done, Event, Failed, Ready, Requeued, SlideTask, Started, Waiting, logs_folder
from .worker import (
    CACHE_VARIABLE,
    MAX_IN_FLIGHT,
    THREADS_VARIABLE,
    cache_folder,
    remove_leftovers_of,
    remove_old_copies,
    serve,
)

Receive = Callable[[int, Event | None], None]
"""Receives the number of a worker and its event; None when its pipe has ended."""

_KNOWN_TASKS = 8
"""Recent slides whose paths are redacted in the log."""

_LONGEST_LINE = 1 << 16
"""Longest line of the log in bytes; longer ones are split."""


class LocalWorker:
    """Worker of this machine and its tasks in flight.

    ``receive`` is called by a thread with every event; stderr of the process is appended to ``log``.
    """

    def __init__(self, number: int, receive: Receive, environment: Mapping[str, str], log: Path) -> None:
        self.number, self.environment = number, environment
        self.is_alone = False
        self.in_flight: dict[int, SlideTask] = {}
        self._clocks: dict[int, _Clock] = {}
        self.is_tainted = False
        self.submitted = 0
        self.is_ready = False
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = os.fdopen(open_without_following(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
        try:
            self._process = WorkerProcess(serve, partial(receive, number), environment, subprocess.PIPE)
        except BaseException:
            stream.close()
            raise
        self._paths: deque[tuple[str, ...]] = deque(maxlen=_KNOWN_TASKS)
        self._log_thread = threading.Thread(target=self._keep_log, args=(stream,), daemon=True)
        self._log_thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, task: SlideTask) -> None:
        """Send a task."""
        self._paths.append((task.slide, str(task.output), task.model, str(task.options.tissue)))
        self.in_flight[task.number] = task
        self.submitted += 1
        self._process.send(task)

    def overdue(self, timeout_s: float) -> SlideTask | None:
        """Return a task that exceeded its timeout, if any. Starting and waiting do not count."""
        if timeout_s:
            for number, clock in self._clocks.items():
                if clock.seconds() > timeout_s:
                    return self.in_flight[number]
        return None

    def update(self, event: Event) -> None:
        """Update the tasks in flight, their clocks, and whether the process is ready or tainted."""
        if isinstance(event, Ready):
            self.is_ready = True
        elif isinstance(event, Started) and event.number in self.in_flight:
            self._clocks[event.number] = _Clock(0.0, time.monotonic())
        elif isinstance(event, Waiting) and event.number in self._clocks:
            self._clocks[event.number].set_waiting(event.is_waiting)
        elif isinstance(event, Done | Failed):
            self.in_flight.pop(event.number, None)
            self._clocks.pop(event.number, None)
            self.is_tainted = self.is_tainted or (isinstance(event, Failed) and event.kind == "crash")

    def end(self, *, now: bool = False) -> int:
        """End the process, at once or after some seconds; return its exit code (negative: a signal)."""
        code = self._process.end(0.0 if now else END_TIMEOUT_S)
        self._log_thread.join(END_TIMEOUT_S)  # its pipe has ended with the process
        return code

    def unfinished_tasks(self, reason: ProcessEnd, failed_task: int | None = None) -> list[Event]:
        """Return events for the tasks in flight of a worker that has ended.

        A named task failed, and so did one that was alone in a worker that was ready. With two tasks in flight the
        cause is unknown. If the worker was tainted or never ready, no task is the cause.
        """
        numbers = list(self.in_flight)
        self.in_flight.clear()
        if failed_task is not None:
            return [
                Failed(failed_task, "timeout", reason.text),
                *(Requeued(number, reason.text) for number in numbers if number != failed_task),
            ]
        if len(numbers) == 1 and self.is_ready and not self.is_tainted:
            return [Failed(numbers[0], "memory" if reason.was_killed else "crash", reason.text)]
        return [Requeued(number, reason.text) for number in numbers]

    def _keep_log(self, log: BinaryIO) -> None:
        """Append the stderr of the process to its log, with paths redacted: the log is in the output folder."""
        stderr = self._process.stderr
        assert stderr is not None
        with log, stderr, contextlib.suppress(OSError, ValueError):
            while line := stderr.readline(_LONGEST_LINE):
                known = [path for paths in list(self._paths) for path in paths]
                text = anonymize(line.decode("utf-8", "replace").rstrip("\r\n"), *known)
                with contextlib.suppress(OSError):  # a full disk must not block the process
                    log.write(f"{printable(text)}\n".encode())
                    log.flush()


@dataclass(slots=True)
class _Clock:
    """Working time of a slide: seconds so far, and when the present work began, if any."""

    spent_s: float
    since: float | None

    def seconds(self) -> float:
        return self.spent_s + (0.0 if self.since is None else time.monotonic() - self.since)

    def set_waiting(self, is_waiting: bool) -> None:
        self.spent_s, self.since = self.seconds(), None if is_waiting else time.monotonic()


_FAILED_STARTS = 3
"""Consecutive workers that end before they are ready, after which the batch fails."""

_POLL_S = 1.0
"""Interval at which timeouts are checked."""


class LocalEngine:
    """Engine of worker processes on this machine; each is replaced after a crash and after a number of slides.

    The folder of the outputs also holds the logs of the workers, whose names start with ``log_name``. The environment
    variables of the workers follow from the device and the options by default.

    Raises
    ------
    DeviceError
        If a GPU is required and none is found; later, if workers cannot be started.
    """

    def __init__(
        self, folder: Path, device: str, options: BatchOptions, *,
        environments: Sequence[Mapping[str, str]] | None = None, log_name: str = "child",
    ) -> None:  # fmt: skip
        self._options, self._log_name = options, log_name
        self._logs = logs_folder(folder)
        self._received: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()
        self._events: deque[Event] = deque()
        self._numbers = itertools.count()
        self._failed_starts = 0
        self._workers: dict[int, LocalWorker] = {}
        remove_old_copies(options.cache)
        for environment in worker_environments(device, options) if environments is None else environments:
            self._start(environment)

    def has_room(self, *, alone: bool) -> bool:
        """See `Engine`."""
        return self._least_busy(alone) is not None

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """See `Engine`."""
        worker = self._least_busy(alone)
        assert worker is not None, "no worker has room"
        worker.is_alone = alone
        worker.submit(task.with_share(len(self._workers)))

    def next_event(self, timeout_s: float) -> Event | None:
        """See `Engine`."""
        until = time.monotonic() + timeout_s
        while not self._events:
            self._end_overdue()
            remaining_s = until - time.monotonic()
            try:
                self._handle(*self._received.get(timeout=max(0.0, min(_POLL_S, remaining_s))))
            except queue.Empty:
                if remaining_s <= 0:
                    return None
        return self._events.popleft()

    def close(self) -> None:
        """See `Engine`."""
        for worker in self._workers.values():
            worker.end(now=True)
            remove_leftovers_of(worker.pid, list(worker.in_flight.values()), self._options.cache)
        self._workers.clear()

    def _least_busy(self, alone: bool) -> LocalWorker | None:
        """Return the worker with the fewest tasks in flight that has room."""
        room = 1 if alone else MAX_IN_FLIGHT
        able = [
            worker
            for worker in self._workers.values()
            if len(worker.in_flight) < room and not worker.is_alone and not self._is_due_for_restart(worker)
        ]
        return min(able, key=lambda worker: len(worker.in_flight), default=None)

    def _is_due_for_restart(self, worker: LocalWorker) -> bool:
        return worker.submitted >= self._options.restart_every

    def _handle(self, number: int, event: Event | None) -> None:
        worker = self._workers.get(number)
        if worker is None:  # it was ended on purpose
            return
        if event is None:
            self._replace(worker, how_it_ended(worker.end()))
            return
        worker.update(event)
        if isinstance(event, Done | Failed):
            self._failed_starts = 0
            worker.is_alone = False
        self._events.append(event)
        if self._is_due_for_restart(worker) and not worker.in_flight:
            worker.end()
            self._replace(worker, ProcessEnd(""))

    def _replace(self, worker: LocalWorker, reason: ProcessEnd, failed_task: int | None = None) -> None:
        remove_leftovers_of(worker.pid, list(worker.in_flight.values()), self._options.cache)
        self._events.extend(worker.unfinished_tasks(reason, failed_task))
        del self._workers[worker.number]
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                logs = f"{self._logs.parent.name}/{self._logs.name}"
                raise DeviceError(f"processes that translate end before they begin ({reason.text}); see {logs}")
        self._start(worker.environment)

    def _end_overdue(self) -> None:
        timeout_s = self._options.timeout_min * 60
        for worker in list(self._workers.values()):
            if (task := worker.overdue(timeout_s)) is not None:
                worker.end(now=True)
                why = f"it took more than {self._options.timeout_min:g} minutes (--timeout-min)"
                self._replace(worker, ProcessEnd(why), task.number)

    def _start(self, environment: Mapping[str, str]) -> None:
        number = next(self._numbers)
        log = self._logs / f"{self._log_name}-{number}.log"
        self._workers[number] = LocalWorker(number, lambda *received: self._received.put(received), environment, log)


def worker_environments(device: str, options: BatchOptions) -> list[dict[str, str]]:
    """Return the environment variables of each worker: visible GPU, number of threads, cache folder.

    Raises
    ------
    DeviceError
        If a GPU is required and none is found.
    """
    # a cluster worker may set the cache folder itself
    common = {CACHE_VARIABLE: str(cache_folder(options.cache) or "")}
    gpus = [] if device in ("cpu", "mps") else visible_gpus()
    if device.startswith("cuda"):
        if not gpus:
            raise DeviceError(f"--device {device}: no NVIDIA GPU was found; use --device cpu")
        if ":" in device:
            indices = [int(number) for number in device.partition(":")[2].split(",")]
            if missing := [number for number in indices if number >= len(gpus)]:
                raise DeviceError(f"--device {device}: there is no GPU {missing[0]}, only {len(gpus)}")
            gpus = [gpus[number] for number in indices]
    if gpus:
        count = options.children or len(gpus)
        own = [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]
    else:
        own = [{} for _ in range(options.children or 1)]
    threads = str(max(1, cores() // len(own)))
    return [{**common, **one, **dict.fromkeys((THREADS_VARIABLE, "OMP_NUM_THREADS"), threads)} for one in own]


def visible_gpus() -> list[str]:
    """Return the GPUs that a worker may use, as in `CUDA_VISIBLE_DEVICES`, without loading CUDA."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
