"""Worker processes on one machine: by default one for each GPU, or one on the CPU."""

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
from dataclasses import dataclass, field
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
"""Number of recent tasks whose paths are redacted in the log."""

_LONGEST_LINE = 1 << 16
"""Longest line of the log in bytes; longer ones are split."""


class LocalWorker:
    """Worker process on this machine, and its tasks in flight.

    ``receive`` is called with every event, in the thread that reads the messages of the process. What the process
    writes to stderr is appended to ``log``.
    """

    def __init__(self, number: int, receive: Receive, environment: Mapping[str, str], log: Path) -> None:
        self.number, self.environment = number, environment
        self.is_exclusive = False  # whether its task must not share the worker
        self.in_flight: dict[int, SlideTask] = {}
        self._clocks: dict[int, _Clock] = {}
        self.is_tainted = False  # whether a task reported a crash, after which the process ends
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
        """Return a task that exceeded its timeout, if any.

        Only the time from `Started` on counts, without waiting for the device or for another batch.
        """
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
            self._clocks[event.number] = _Clock()
        elif isinstance(event, Waiting) and event.number in self._clocks:
            self._clocks[event.number].set_waiting(event.is_waiting)
        elif isinstance(event, Done | Failed):
            self.in_flight.pop(event.number, None)
            self._clocks.pop(event.number, None)
            self.is_tainted = self.is_tainted or (isinstance(event, Failed) and event.kind == "crash")

    def end(self, *, now: bool = False) -> int:
        """End the process; return its exit code (negative: a signal).

        It is killed after `END_TIMEOUT_S`, or at once with ``now``.
        """
        code = self._process.end(0.0 if now else END_TIMEOUT_S)
        self._log_thread.join(END_TIMEOUT_S)  # it ends with the stderr of the process
        return code

    def give_up_tasks(self, reason: ProcessEnd, overdue_task: int | None = None) -> list[Event]:
        """Clear the tasks in flight, after the process has ended, and return whether each failed or is requeued.

        An overdue task failed, and the others are requeued. Otherwise a task failed only if nothing else can have ended
        the process: it was the only one in flight, the worker was ready, and no other task had reported a crash.
        """
        numbers = list(self.in_flight)
        self.in_flight.clear()
        if overdue_task is not None:
            return [
                Failed(overdue_task, "timeout", reason.text),
                *(Requeued(number, reason.text) for number in numbers if number != overdue_task),
            ]
        if len(numbers) == 1 and self.is_ready and not self.is_tainted:
            # systems kill processes when memory runs out, so that it may succeed with less
            return [Failed(numbers[0], "memory" if reason.was_killed else "crash", reason.text)]
        return [Requeued(number, reason.text) for number in numbers]

    def _keep_log(self, log: BinaryIO) -> None:
        """Append the stderr of the process to its log.

        Paths are redacted, because the log is in the output folder, which may be shared without the slides.
        """
        stderr = self._process.stderr
        assert stderr is not None
        with contextlib.suppress(OSError), log, stderr:  # closing the log may fail as well
            while line := stderr.readline(_LONGEST_LINE):
                known = [path for paths in list(self._paths) for path in paths]
                text = anonymize(line.decode("utf-8", "replace").rstrip("\r\n"), *known)
                with contextlib.suppress(OSError):  # a full disk must not block the process
                    log.write(f"{printable(text)}\n".encode())
                    log.flush()


@dataclass(slots=True)
class _Clock:
    """Working time of a slide, without waiting."""

    spent_s: float = 0.0  # until the last change between working and waiting
    since: float | None = field(default_factory=time.monotonic)  # start of the present work; None while it waits

    def seconds(self) -> float:
        return self.spent_s + (0.0 if self.since is None else time.monotonic() - self.since)

    def set_waiting(self, is_waiting: bool) -> None:
        self.spent_s = self.seconds()
        self.since = None if is_waiting else time.monotonic()


_MAX_FAILED_STARTS = 3
"""Number of workers that end before they are ready, without a finished slide in between, at which the batch fails."""

_POLL_S = 1.0
"""Interval at which timeouts are checked."""


class LocalEngine:
    """Engine of worker processes on this machine; each is replaced when it ends, and after a number of slides.

    ``environments`` are the environment variables of the workers, one mapping for each; by default those of
    `worker_environments`. Each worker writes to a log ``{log_name}-{number}.log``, below the folder of the outputs.

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
        remove_old_copies(options.cache)  # of slides, left by processes that were killed
        for environment in worker_environments(device, options) if environments is None else environments:
            self._start(environment)

    def has_room(self, *, alone: bool) -> bool:
        """See `scheduler.Engine`."""
        return self._least_busy(alone) is not None

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """See `scheduler.Engine`."""
        worker = self._least_busy(alone)
        assert worker is not None, "no worker has room"
        worker.is_exclusive = alone
        worker.submit(task.with_share(len(self._workers)))  # of the memory bound

    def next_event(self, timeout_s: float) -> Event | None:
        """See `scheduler.Engine`."""
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
        """See `scheduler.Engine`."""
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
            if len(worker.in_flight) < room and not worker.is_exclusive and not self._is_due_for_restart(worker)
        ]
        return min(able, key=lambda worker: len(worker.in_flight), default=None)

    def _is_due_for_restart(self, worker: LocalWorker) -> bool:
        return worker.submitted >= self._options.restart_every

    def _handle(self, number: int, event: Event | None) -> None:
        worker = self._workers.get(number)
        if worker is None:  # it was replaced before this event was received
            return
        if event is None:
            self._replace(worker, how_it_ended(worker.end()))
            return
        worker.update(event)
        if isinstance(event, Done | Failed):
            self._failed_starts = 0
            worker.is_exclusive = False
        self._events.append(event)
        if self._is_due_for_restart(worker) and not worker.in_flight:
            worker.end()
            self._replace(worker, ProcessEnd("restarted"))  # no task is in flight to report it

    def _replace(self, worker: LocalWorker, reason: ProcessEnd, overdue_task: int | None = None) -> None:
        """Replace a worker whose process has ended; first remove its files, before its tasks start elsewhere."""
        remove_leftovers_of(worker.pid, list(worker.in_flight.values()), self._options.cache)
        self._events.extend(worker.give_up_tasks(reason, overdue_task))
        del self._workers[worker.number]
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                logs = f"{self._logs.parent.name}/{self._logs.name}"
                raise DeviceError(f"worker processes ended before they were ready ({reason.text}); see {logs}")
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
        self._workers[number] = LocalWorker(
            number, lambda sender, event: self._received.put((sender, event)), environment, log
        )


def worker_environments(device: str, options: BatchOptions) -> list[dict[str, str]]:
    """Return the environment variables of each worker: visible GPU, number of threads, cache folder.

    ``device`` is "auto", "cpu", "mps", "cuda", or numbers of GPUs, as in "cuda:0,1".

    Raises
    ------
    DeviceError
        If a GPU is required and none is found.
    """
    common = {CACHE_VARIABLE: str(cache_folder(options.cache) or "")}
    gpus = [] if device in ("cpu", "mps") else visible_gpus()
    if device.startswith("cuda"):
        if not gpus:
            raise DeviceError(f"--device {device}: no NVIDIA GPU was found; use --device cpu")
        if ":" in device:
            indices = [int(number) for number in device.partition(":")[2].split(",")]
            if missing := [number for number in indices if number >= len(gpus)]:
                raise DeviceError(
                    f"--device {device}: there is no GPU {missing[0]}; the number of visible GPUs is {len(gpus)}"
                )
            gpus = [gpus[number] for number in indices]
    count = options.children or len(gpus) or 1
    threads = str(max(1, cores() // count))
    common |= {THREADS_VARIABLE: threads, "OMP_NUM_THREADS": threads}
    if not gpus:
        return [dict(common) for _ in range(count)]
    return [{**common, "CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]


def visible_gpus() -> list[str]:
    """Return the GPUs that a worker may use, as `CUDA_VISIBLE_DEVICES` names them, without loading CUDA."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    # Only their number is used: CUDA may count GPUs in another order than nvidia-smi (CUDA_DEVICE_ORDER).
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]
