"""Workers on a Dask cluster."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..errors import BatchError
from ..files import read_json
from ..models.registry import list_models
from ..system import versions
from ..text import pluralize
from .dask_worker import Batch, WorkerMetadata, WorkerTask, describe, end_batch, run_slide
from .preflight import check_folder
from .slurm import SlurmJobs
from .task import BATCH_FOLDER, BatchOptions, Done, Event, Failed, Requeued, SlideTask, Started, from_line, logs_folder
from .worker import MAX_IN_FLIGHT

if TYPE_CHECKING:
    from distributed import Client, Future

_POLL_S = 1.0
"""Interval at which the scheduler is asked for its workers."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class WorkerState:
    """State of a worker as seen by the client."""

    address: str  # address in the cluster
    request: Future[Any] | None = None  # pending request for its metadata
    metadata: WorkerMetadata | None = None  # metadata, once received
    unfit: str = ""  # why it cannot be used; "" if it can
    in_flight: set[str] = field(default_factory=set)  # keys of its tasks
    is_alone: bool = False  # whether it has a task that must not share the worker

    @property
    def name(self) -> str:
        """Name for display."""
        return self.address if self.metadata is None else self.metadata.name

    @property
    def is_usable(self) -> bool:
        """Whether it can take tasks."""
        return self.metadata is not None and not self.unfit


class WorkerRegistry:
    """Workers of a scheduler.

    ``address`` is that of the scheduler, for messages; ``probe`` a file in the output folder that workers must see.
    """

    def __init__(self, client: Client, address: str, probe: Path, *, needs_gpu: bool) -> None:
        self._client, self._address, self._probe, self._needs_gpu = client, address, probe, needs_gpu
        self._states: dict[str, WorkerState] = {}
        self._polled_at = 0.0

    def refresh(self) -> list[WorkerState]:
        """Update the workers at most once a second, request the metadata of new ones, and return those that were lost.

        Raises
        ------
        BatchError
            If the scheduler was lost.
        """
        for worker in self._states.values():
            if worker.metadata is None and not worker.unfit:
                self._ask(worker)
        now = time.monotonic()
        if now - self._polled_at < _POLL_S:
            return []
        self._polled_at = now
        try:
            threads: Mapping[str, int] = self._client.nthreads()
        except (OSError, RuntimeError, TimeoutError) as error:
            raise BatchError(
                f"the scheduler was lost ({' '.join(str(error).split()):.120}); finished slides are kept; run "
                "the same command again when it is back"
            ) from error
        lost = [self._states.pop(address) for address in list(self._states) if address not in threads]
        for address in threads:
            if address not in self._states:
                self._states[address] = WorkerState(address)
                self._ask(self._states[address])
        return lost

    def forget(self, worker: WorkerState) -> None:
        """Forget a worker that was restarted, so that its metadata is requested again."""
        self._states.pop(worker.address, None)

    def least_busy(self, *, alone: bool) -> WorkerState | None:
        """Return the worker with the fewest tasks in flight that has room."""
        able = [
            one for one in self.usable() if len(one.in_flight) < (1 if alone else MAX_IN_FLIGHT) and not one.is_alone
        ]  # fmt: skip
        return min(able, key=lambda one: len(one.in_flight), default=None)

    def usable(self) -> list[WorkerState]:
        """Return the workers that can take tasks."""
        return [one for one in self._states.values() if one.is_usable]

    def pending(self) -> int:
        """Count the workers without metadata."""
        return sum(one.metadata is None and not one.unfit for one in self._states.values())

    def names(self) -> set[str]:
        """Return the names of all workers with metadata."""
        return {one.name for one in self._states.values() if one.metadata is not None}

    def why_none(self) -> str:
        """Return why no worker can be used and what to do."""
        if not self._states:
            return f'there is no worker; start some: dask worker {self._address} --resources "GPU=1"'
        if unfit := [one for one in self._states.values() if one.unfit]:
            first = next((one for one in unfit if one.metadata and one.metadata.offers_gpu), unfit[0])
            return first.unfit if len(unfit) == 1 else f"{first.unfit} (and {len(unfit) - 1} more cannot be used)"
        return f"none of {pluralize(self.pending(), 'worker')} responds; are they busy with other work?"

    def _ask(self, worker: WorkerState) -> None:
        """Request the metadata of a worker, or receive it."""
        if worker.request is None or worker.request.status == "cancelled":
            worker.request = self._client.submit(
                describe, self._probe, key=f"wsi2ihc-metadata-{uuid.uuid4().hex}", workers=[worker.address],
                allow_other_workers=False, pure=False, priority=1,
            )  # fmt: skip
        elif worker.request.status == "finished":
            worker.metadata = worker.request.result(timeout=10)
            worker.unfit = self._unfit(worker.metadata)
        elif worker.request.status == "error":
            worker.unfit = _error_message(worker, worker.request.exception(timeout=10))
        if worker.metadata is not None or worker.unfit:
            worker.request = None
            # a cluster may have many workers without a GPU for other work
            warns = worker.unfit and not (worker.metadata and self._lacks_gpu(worker.metadata))
            (_log.warning if warns else _log.info)("%s", worker.unfit or f"worker {worker.name} can be used")

    def _unfit(self, metadata: WorkerMetadata) -> str:
        """Return why a worker cannot be used; "" if it can."""
        ours = versions()["wsi2ihc"]
        if metadata.version != ours:
            return (
                f"worker {metadata.name} has wsi2ihc {metadata.version}, but the client has {ours}; install the same "
                "version everywhere"
            )
        if not metadata.sees_probe:
            return (
                f"worker {metadata.name} does not see the output folder {self._probe.parent.parent}; slides, models "
                "and outputs must be on a file system that all workers share, under the same path"
            )
        if self._lacks_gpu(metadata):
            return (
                f"worker {metadata.name} offers no GPU; start workers that have one with --resources \"GPU=1\", or use "
                "--device cpu"
            )  # fmt: skip
        if self._needs_gpu and not metadata.sees_gpu:
            _log.warning("worker %s offers a GPU, but none can be seen there", metadata.name)
        return ""

    def _lacks_gpu(self, metadata: WorkerMetadata) -> bool:
        return self._needs_gpu and not metadata.offers_gpu


def _error_message(worker: WorkerState, error: BaseException | None) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    if isinstance(error, ImportError):
        return f"worker {worker.name} cannot import wsi2ihc ({text}); install the same version there"
    return f"worker {worker.name} cannot be used ({text})"


LARGEST_FILE_BYTES = 1 << 20
"""Largest size of a scheduler file, which has some hundred bytes."""


def address_of(scheduler: str) -> str:
    """Return the address of a scheduler, read from its scheduler file if necessary.

    Raises
    ------
    BatchError
        If it is neither an address nor a scheduler file.
    """
    if not scheduler:
        raise BatchError("--scheduler: name the address of a scheduler, or its file")
    path = Path(scheduler)
    if not (scheduler.endswith(".json") or path.exists()):
        return scheduler
    try:
        return str(read_json(path, LARGEST_FILE_BYTES)["address"])
    except FileNotFoundError as error:
        raise BatchError(
            f"there is no scheduler file {scheduler}; start one: dask scheduler --scheduler-file {scheduler}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BatchError(f"{scheduler} is not a scheduler file ({error!s:.80}); `dask scheduler` writes one") from error


def prepare_dask() -> None:
    """Import Dask and raise its default log level, since a scheduler in this process logs every connection."""
    try:
        import dask

        dask.config.update_defaults({"logging": {"distributed": "warning"}})
        import distributed  # noqa: F401
    except ImportError as error:
        raise BatchError("a cluster needs Dask: pip install 'wsi2ihc[cluster]'") from error


def connected(address: str, timeout_s: float) -> Client:
    """Connect to the scheduler at an address.

    Raises
    ------
    BatchError
        If there is no scheduler.
    """
    import dask
    from distributed import Client

    if address.startswith("tls:") and not dask.config.get("distributed.comm.tls.client.cert", None):
        raise BatchError(
            f"the scheduler at {address} requires certificates; set DASK_DISTRIBUTED__COMM__TLS__… as for its workers "
            "(docs/batch.md, Security)"
        )
    try:
        return Client(address, timeout=timeout_s, name="wsi2ihc-batch", set_as_default=False)
    except (OSError, ValueError, TimeoutError, RuntimeError, ImportError) as error:
        raise BatchError(
            f"there is no Dask scheduler at {address} ({' '.join(str(error).split()):.120}); start one with "
            "`dask scheduler`, and name its address or its --scheduler-file"
        ) from error


_CONNECT_S = 5.0
_FIRST_WORKER_S = 4.0
"""Timeout for the first usable worker if none is connected."""

_FIRST_RESPONSE_S = 60.0
"""Timeout for metadata: the first import from a network file system is slow."""

_WITHOUT_WORKERS_S = 600.0
"""Timeout without workers during a batch: preempted workers may come back."""

_RECEIVE_S = 0.5
_RESPONSE_S = 10.0
"""Timeout for small results of workers that have finished."""


class DaskEngine:
    """Engine of Dask workers with at most two tasks each.

    ``folder`` is on a file system that all workers share. Unless the device is "cpu", workers must offer the resource
    GPU. ``scheduler`` is the address of a running scheduler, or its scheduler file; with ``slurm``, a scheduler is
    started here, and ``options.children`` workers as SLURM jobs.

    Raises
    ------
    BatchError
        If Dask is not installed, the scheduler cannot be reached, or no worker can be used; later, if all are lost.
    """

    def __init__(
        self, folder: Path, device: str, options: BatchOptions, scheduler: str | None = None, slurm: bool = False
    ) -> None:  # fmt: skip
        folder = folder.absolute()
        self._batch = Batch(f"wsi2ihc-{uuid.uuid4().hex}", folder, device, options)
        self._needs_gpu = device not in ("cpu", "mps")
        self._numbers = itertools.count()
        self._submissions: dict[str, _Submission] = {}
        self._received: SimpleQueue[tuple[str, str | Future[Any]]] = SimpleQueue()
        self._events: deque[Event] = deque()
        self._without_since: float | None = None
        self._jobs: SlurmJobs | None = None
        self._client: Client | None = None
        self._probe = folder / BATCH_FOLDER / f".{self._batch.name}"
        prepare_dask()
        check_folder(folder)
        try:
            self._probe.touch()
            if slurm:
                self._jobs = SlurmJobs(logs_folder(folder), options.children or 1, needs_gpu=self._needs_gpu)
            address = self._jobs.address if self._jobs else address_of(scheduler or "")
            self._client = connected(address, _CONNECT_S)
            self._client.subscribe_topic(self._batch.name, self._on_message)
            self._registry = WorkerRegistry(self._client, address, self._probe, needs_gpu=self._needs_gpu)
            if not slurm:
                self._wait_for_a_worker()
        except BaseException:
            self.close()
            raise

    def has_room(self, *, alone: bool) -> bool:
        """See `Engine`."""
        return self._registry.least_busy(alone=alone) is not None

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """See `Engine`."""
        worker = self._registry.least_busy(alone=alone)
        assert worker is not None, "no worker has room"
        assert worker.metadata is not None
        assert self._client is not None
        key = f"{self._batch.name}-{next(self._numbers)}"
        worker_task = WorkerTask(key, worker.metadata.process, located(task), alone, self._batch)
        future = self._client.submit(
            run_slide, worker_task, key=key, workers=[worker.address], allow_other_workers=False, pure=False, retries=0,
            resources={"GPU": 1 if alone else 0.5} if self._needs_gpu else None,
        )  # fmt: skip
        worker.in_flight.add(key)
        worker.is_alone = alone
        self._submissions[key] = _Submission(task.number, worker, future)
        future.add_done_callback(lambda ended: self._received.put((key, ended)))

    def next_event(self, timeout_s: float) -> Event | None:
        """See `Engine`."""
        until = time.monotonic() + timeout_s
        while not self._events:
            self._check_workers()
            remaining_s = until - time.monotonic()
            try:
                self._handle(*self._received.get(timeout=max(0.0, min(_RECEIVE_S, remaining_s))))
            except Empty:
                if remaining_s <= 0:
                    return None
        return self._events.popleft()

    def close(self) -> None:
        """See `Engine`."""
        if self._client is not None:
            # workers that do not respond must not block
            ending = threading.Thread(target=self._stop_workers, args=(self._client,), daemon=True)
            ending.start()
            ending.join(_CONNECT_S)
            self._client.close(timeout=_CONNECT_S)
            self._client = None
        self._submissions.clear()
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        self._probe.unlink(missing_ok=True)

    def _stop_workers(self, client: Client) -> None:
        try:
            client.cancel([submission.future for submission in self._submissions.values()], force=True)
            client.run(end_batch, self._batch.name, on_error="ignore")
        except (OSError, RuntimeError, TimeoutError) as error:  # they end when the client disconnects
            _log.debug("child processes were not ended: %s", error)

    def _wait_for_a_worker(self) -> None:
        began = time.monotonic()
        while True:
            self._registry.refresh()
            if self._registry.usable():
                return
            waited_s = time.monotonic() - began
            if waited_s > (_FIRST_RESPONSE_S if self._registry.pending() else _FIRST_WORKER_S):
                raise BatchError(self._registry.why_none())
            time.sleep(0.1)

    def _check_workers(self) -> None:
        for worker in self._registry.refresh():
            _log.warning("worker %s was lost with %d slides in flight", worker.name, len(worker.in_flight))
            for key in list(worker.in_flight):
                self._end(key, Requeued(self._submissions[key].number, "its worker was lost"))
        if self._jobs is not None:
            self._jobs.look(self._registry.names())
        if self._registry.usable():
            self._without_since = None
        elif self._jobs is None:
            now = time.monotonic()
            if self._without_since is None:
                self._without_since = now
                _log.warning("no worker is left: %s", self._registry.why_none())
            if now - self._without_since > _WITHOUT_WORKERS_S:
                raise BatchError(
                    f"no worker for {_WITHOUT_WORKERS_S / 60:g} minutes: {self._registry.why_none()}; finished slides "
                    "are kept; run the same command again"
                )

    def _on_message(self, event: tuple[float, Any]) -> None:
        """Queue a message of a worker; called in a thread of Dask."""
        _, message = event
        self._received.put((message["key"], message["line"]))

    def _handle(self, key: str, what: str | Future[Any]) -> None:
        submission = self._submissions.get(key)
        if submission is None:  # its worker was lost
            return
        if not isinstance(what, str):
            self._end(key, self._outcome(submission))
        elif (event := from_line(what)) is not None and not isinstance(event, Done | Failed | Requeued):
            self._queue_event(submission, event)

    def _queue_event(self, submission: _Submission, event: Event) -> None:
        """Queue an event, preceded by one `Started` per slide, which counts as an attempt."""
        if not submission.has_started:
            submission.has_started = True
            self._events.append(Started(submission.number))
        if not isinstance(event, Started):
            self._events.append(event)

    def _end(self, key: str, event: Event) -> None:
        submission = self._submissions.pop(key)
        submission.worker.in_flight.discard(key)
        submission.worker.is_alone = False
        self._queue_event(submission, event)

    def _outcome(self, submission: _Submission) -> Event:
        """Return the final event of a slide whose future has ended."""
        future, worker = submission.future, submission.worker
        lost = Requeued(submission.number, "its worker was lost")
        if future.status == "error":
            error = future.exception(timeout=_RESPONSE_S)
            if type(error).__name__ != "KilledWorker":
                worker.unfit = f"worker {worker.name} cannot be used: {' '.join(str(error).split()):.300}"
                _log.warning("%s", worker.unfit)
                return Requeued(
                    submission.number, "its worker cannot be used"
                )  # the details name machines and are only logged
            return lost
        if future.status == "cancelled":  # the connection was lost, and with it the subscription
            assert self._client is not None
            self._client.subscribe_topic(self._batch.name, self._on_message)
        try:
            event = future.result(timeout=_RESPONSE_S) if future.status == "finished" else None
        except Exception:  # the result was on a worker that was lost
            event = None
        if isinstance(event, Requeued) and event.is_elsewhere:
            self._registry.forget(worker)
        return event or lost


@dataclasses.dataclass(slots=True)
class _Submission:
    """Task submitted to a worker, and whether its `Started` event was sent."""

    number: int
    worker: WorkerState
    future: Future[Any]
    has_started: bool = False


def located(task: SlideTask) -> SlideTask:
    """Return a task with absolute paths. Links are kept, since nodes may mount their targets differently."""
    tissue = task.options.tissue
    if tissue not in ("auto", "none"):
        tissue = Path(tissue).absolute()
    return dataclasses.replace(
        task,
        slide=task.slide if "://" in task.slide else str(Path(task.slide).absolute()),
        output=task.output.absolute(),
        model=task.model if task.model in _model_names() else str(Path(task.model).absolute()),
        options=dataclasses.replace(task.options, tissue=tissue),
    )


@lru_cache(maxsize=1)
def _model_names() -> frozenset[str]:
    return frozenset(model.name for model in list_models())
