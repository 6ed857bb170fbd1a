"""Code that runs inside Dask workers."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..system import versions
from .local import LocalEngine, visible_gpus, worker_environments
from .task import BatchOptions, Done, Event, Failed, Requeued, SlideTask, Translating, to_line

if TYPE_CHECKING:
    from distributed import Worker

PROCESS = uuid.uuid4().hex
"""Identifies this process; a restarted worker may have the same address."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that Dask nannies set to 1 and that child processes inherit."""

_POLL_S = 0.1
"""Interval at which new tasks are polled; the child process has a second one in flight meanwhile."""

_WANTED_S = 0.5
"""Interval at which cancellation is checked."""

_PROGRESS_INTERVAL_S = 2.0
"""Interval of progress messages of a slide, which all pass through the scheduler."""

_IDLE_S = 120.0
"""Idle time after which the child process is ended: its client was killed, or has no tasks for this worker."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Settings shared by all tasks of a batch."""

    name: str  # unique name; also the topic of progress messages
    folder: Path = field(repr=False)  # absolute folder of the outputs
    device: str  # `TranslateOptions.device`
    options: BatchOptions


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """Task for a Dask worker. Workers may log it, so its representation omits paths."""

    key: str  # unique key of the submission
    process: str  # process that shall run it, see `PROCESS`
    task: SlideTask = field(repr=False)  # task with absolute paths
    is_alone: bool  # whether it must not share a child process
    batch: Batch


@dataclass(frozen=True, slots=True)
class WorkerMetadata:
    """Metadata of a Dask worker."""

    name: str  # name in the cluster
    process: str  # see `PROCESS`
    version: str  # version of wsi2ihc
    offers_gpu: bool  # whether it has the resource GPU
    sees_gpu: bool  # whether a GPU is visible
    sees_probe: bool  # whether the probe file of the client is visible


def describe(probe: Path) -> WorkerMetadata:
    """Return the metadata of this worker; ``probe``: a file that the client wrote to the output folder."""
    from distributed import get_worker

    worker = get_worker()
    return WorkerMetadata(
        name=str(worker.name),
        process=PROCESS,
        version=versions()["wsi2ihc"],
        offers_gpu=worker.state.total_resources.get("GPU", 0) >= 1,
        sees_gpu=bool(visible_gpus()),
        sees_probe=probe.is_file(),
    )


def run_slide(worker_task: WorkerTask) -> Event:
    """Translate a slide in the child process and return its last event."""
    from distributed import get_worker, secede

    task = worker_task.task
    if worker_task.process != PROCESS:
        return Requeued(task.number, "its worker was lost and restarted", is_elsewhere=True)
    worker = get_worker()
    secede()  # waiting must not occupy a thread of the worker

    def send(event: Event) -> None:
        worker.log_event(worker_task.batch.name, {"key": worker_task.key, "line": to_line(event)})

    child = _child_process(worker_task.batch, worker)
    return child.run(task, worker_task.is_alone, send, lambda: _is_wanted(worker, worker_task.key))


def end_batch(name: str) -> None:
    """End the child process of a batch without waiting."""
    with _lock:
        ended = [_children.pop(key) for key in list(_children) if key[0] == name]
    for child in ended:
        child.close()


class ChildProcess:
    """Child process of a Dask worker, started on demand and fed by the threads of the worker."""

    def __init__(self, make_engine: Callable[[], LocalEngine]) -> None:
        self._make_engine = make_engine
        self._numbers = itertools.count()
        self._waiting: SimpleQueue[_QueuedTask | None] = SimpleQueue()
        self.is_closed = False
        threading.Thread(target=self._serve, daemon=True, name="wsi2ihc-slot").start()

    def run(
        self, task: SlideTask, is_alone: bool, send: Callable[[Event], None], is_wanted: Callable[[], bool]
    ) -> Event:
        """Run a task and return its last event; ``send`` receives the others, and progress at intervals.

        If ``is_wanted`` returns False, the task was cancelled, and the child process is ended.
        """
        held = _QueuedTask(replace(task, number=next(self._numbers)), is_alone, SimpleQueue())
        self._waiting.put(held)
        reported_at = 0.0
        while True:
            try:
                event = held.events.get(timeout=_WANTED_S)
            except Empty:
                if self.is_closed or not is_wanted():
                    self.close()
                    return Requeued(task.number, "the batch has ended")
                continue
            if isinstance(event, Exception):
                raise event
            event = replace(event, number=task.number)
            if isinstance(event, Done | Failed | Requeued):
                return event
            if not isinstance(event, Translating) or time.monotonic() - reported_at >= _PROGRESS_INTERVAL_S:
                reported_at = time.monotonic()
                send(event)

    def close(self) -> None:
        """End the child process and its tasks in flight without waiting."""
        self.is_closed = True
        self._waiting.put(None)

    def _serve(self) -> None:
        """Keep an engine while there are tasks."""
        while not self.is_closed and (first := self._waiting.get()) is not None:
            held = {first.task.number: first}
            try:
                self._serve_worker(deque([first]), held)
            except Exception as error:
                _log.warning("slides cannot be translated here: %s", error)
                for one in held.values():
                    one.events.put(error)
        while True:
            try:
                remaining = self._waiting.get_nowait()
            except Empty:
                return
            if remaining is not None:
                remaining.events.put(Requeued(remaining.task.number, "the batch has ended"))

    def _serve_worker(self, queued: deque[_QueuedTask], held: dict[int, _QueuedTask]) -> None:
        engine = self._make_engine()
        try:
            used_at = time.monotonic()
            while not self.is_closed and (held or time.monotonic() - used_at < _IDLE_S):
                while not self._waiting.empty():
                    if (one := self._waiting.get()) is not None:
                        held[one.task.number] = one
                        queued.append(one)
                while queued and engine.has_room(alone=queued[0].is_alone):
                    one = queued.popleft()
                    engine.take(one.task, alone=one.is_alone)
                event = engine.next_event(_POLL_S)
                number = getattr(event, "number", None)
                if event is None or number not in held:
                    continue
                used_at = time.monotonic()
                ended = isinstance(event, Done | Failed | Requeued)
                (held.pop(number) if ended else held[number]).events.put(event)
        finally:
            engine.close()
        for one in held.values():
            one.events.put(Requeued(one.task.number, "the batch has ended"))


@dataclass(frozen=True, slots=True)
class _QueuedTask:
    """Task with a number that is unique in this process, and the queue of its events."""

    task: SlideTask
    is_alone: bool
    events: SimpleQueue[Any]


_children: dict[tuple[str, str], ChildProcess] = {}
"""Child processes by batch and worker; a process can host several workers."""

_lock = threading.Lock()


def _child_process(batch: Batch, worker: Worker) -> ChildProcess:
    key = (batch.name, worker.address)
    with _lock:
        if key not in _children or _children[key].is_closed:
            (own,) = worker_environments(batch.device, replace(batch.options, children=1))
            own |= dict.fromkeys(_THREAD_VARIABLES, str(max(1, worker.state.nthreads)))
            log = f"worker-{_label(str(worker.name))}-{os.getpid()}"
            _children[key] = ChildProcess(
                lambda: LocalEngine(batch.folder, batch.device, batch.options, environments=[own], log_name=log)
            )
        return _children[key]


def _label(name: str) -> str:
    """Return the name of a worker for its log file, hashed if it is a network address (the default)."""
    if re.fullmatch(r"[\w-]{1,40}", name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _is_wanted(worker: Worker, key: str) -> bool:
    """Return whether the task was not cancelled; Dask cannot interrupt a running function."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state != "cancelled" and worker.status.name not in ("closing", "closed", "failed")
