"""The engine of a Dask cluster: slides go to workers by name, and each of them has a child that translates.

Dask's own idea of failure is not used: what was on a worker that dies would be tried again elsewhere, together with
what it died of. Instead, a slide is given to one worker and no other, under a key that is never used again, and only
when this worker has room. So it is known what a worker had in hand when it was lost; all else is the runner's to say.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
import uuid
from collections import deque
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..errors import BatchError
from ..generator.registry import list_models
from .checking import check_folder
from .connecting import address_of, connected, prepare_dask
from .events import Began, Done, Event, Failed, Returned, from_line
from .options import BatchOptions
from .places import BATCH_FOLDER, logs_folder
from .roster import Remote, Roster
from .slurm import SlurmJobs
from .task import SlideTask
from .worker_slot import Batch, Errand, end_batch, run_slide

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT_S = 5.0
_FIRST_WORKER_S = 4.0
"""For a worker to be there and fit; answers of workers that are there may take longer."""

_FIRST_ANSWER_S = 60.0
"""For workers to say what they are: a first import from a network file system is slow."""

_WITHOUT_WORKERS_S = 600.0
"""In the middle of a batch: workers that were preempted may come back."""

_LOOK_S = 0.5
_ANSWER_S = 10.0
"""For a result of a few bytes to come from a worker that has said it is there."""

_log = logging.getLogger(__name__)


class DaskEngine:
    """Workers of a Dask cluster; at most two slides each.

    Parameters
    ----------
    folder
        Of the outputs, on a file system that all workers share.
    device
        As `TranslateOptions.device` has it; but for ``"cpu"``, workers have to offer the resource GPU.
    options
        Of the batch; ``children`` is the number of SLURM jobs.
    scheduler
        Address of a running scheduler, or its scheduler file.
    slurm
        Start a scheduler here, and workers as SLURM jobs.

    Raises
    ------
    BatchError
        If Dask is not installed, there is no such scheduler, or no worker of it is fit; later, if none is left.
    """

    def __init__(
        self, folder: Path, device: str, options: BatchOptions, scheduler: str | None = None, slurm: bool = False
    ) -> None:  # fmt: skip
        folder = folder.absolute()
        self._batch = Batch(f"wsi2ihc-{uuid.uuid4().hex}", folder, device, options)
        self._needs_gpu = device not in ("cpu", "mps")
        self._numbers = itertools.count()
        self._given: dict[str, _Given] = {}
        self._heard: SimpleQueue[tuple[str, str | Future[Any]]] = SimpleQueue()
        self._told: deque[Event] = deque()
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
            self._roster = Roster(self._client, address, self._probe, needs_gpu=self._needs_gpu)
            if not slurm:
                self._wait_for_a_worker()
        except BaseException:
            self.close()
            raise

    def has_room(self, *, alone: bool) -> bool:
        """See `Engine`."""
        return self._roster.roomiest(alone=alone) is not None

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """See `Engine`."""
        remote = self._roster.roomiest(alone=alone)
        assert remote is not None, "there is no room"
        assert remote.facts is not None
        assert self._client is not None
        key = f"{self._batch.name}-{next(self._numbers)}"
        errand = Errand(key, remote.facts.process, located(task).to_json(), alone, self._batch)
        future = self._client.submit(
            run_slide, errand, key=key, workers=[remote.address], allow_other_workers=False, pure=False, retries=0,
            resources={"GPU": 1 if alone else 0.5} if self._needs_gpu else None,
        )  # fmt: skip
        remote.in_hand.add(key)
        remote.is_alone = alone
        self._given[key] = _Given(task.number, remote, future)
        future.add_done_callback(lambda ended: self._heard.put((key, ended)))

    def next_event(self, timeout_s: float) -> Event | None:
        """See `Engine`."""
        until = time.monotonic() + timeout_s
        while not self._told:
            self._look_after_workers()
            left = until - time.monotonic()
            try:
                self._hear(*self._heard.get(timeout=max(0.0, min(_LOOK_S, left))))
            except Empty:
                if left <= 0:
                    return None
        return self._told.popleft()

    def close(self) -> None:
        """See `Engine`."""
        if self._client is not None:
            # a worker that does not answer must not keep anybody waiting
            ending = threading.Thread(target=self._end_children, args=(self._client,), daemon=True)
            ending.start()
            ending.join(_CONNECT_S)
            self._client.close(timeout=_CONNECT_S)
            self._client = None
        self._given.clear()
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        self._probe.unlink(missing_ok=True)

    def _end_children(self, client: Client) -> None:
        try:
            client.cancel([given.future for given in self._given.values()], force=True)
            client.run(end_batch, self._batch.name, on_error="ignore")
        except (OSError, RuntimeError, TimeoutError) as error:  # they end by themselves when the client is gone
            _log.debug("children were not told to end: %s", error)

    def _wait_for_a_worker(self) -> None:
        began = time.monotonic()
        while not self._roster.usable():
            self._roster.look()
            waited_s = time.monotonic() - began
            if waited_s > (_FIRST_ANSWER_S if self._roster.unanswered() else _FIRST_WORKER_S):
                raise BatchError(self._roster.why_none())
            time.sleep(0.1)

    def _look_after_workers(self) -> None:
        for remote in self._roster.look():
            _log.warning("worker %s was lost, with %d slides in hand", remote.name, len(remote.in_hand))
            for key in list(remote.in_hand):
                self._end(key, Returned(self._given[key].number, "its worker was lost"))
        if self._jobs is not None:
            self._jobs.look(self._roster.names())
        if self._roster.usable():
            self._without_since = None
        elif self._jobs is None:
            now = time.monotonic()
            if self._without_since is None:
                self._without_since = now
                _log.warning("no worker is left: %s", self._roster.why_none())
            if now - self._without_since > _WITHOUT_WORKERS_S:
                raise BatchError(
                    f"no worker for {_WITHOUT_WORKERS_S / 60:g} minutes: {self._roster.why_none()}; slides that are "
                    "done stay done, so run the same again"
                )

    def _on_message(self, event: tuple[float, Any]) -> None:
        """A message of a worker; in Dask's thread."""
        _, message = event
        self._heard.put((message["key"], message["line"]))

    def _hear(self, key: str, what: str | Future[Any]) -> None:
        given = self._given.get(key)
        if given is None:  # of a worker that was given up
            return
        if not isinstance(what, str):
            self._end(key, self._outcome(given))
        elif (event := from_line(what)) is not None and not isinstance(event, Done | Failed | Returned):
            self._tell(given, event)

    def _tell(self, given: _Given, event: Event) -> None:
        """Pass an event on. That a slide has begun is told before anything else of it, and once: attempts count it."""
        if not given.has_begun:
            given.has_begun = True
            self._told.append(Began(given.number))
        if not isinstance(event, Began):
            self._told.append(event)

    def _end(self, key: str, event: Event) -> None:
        given = self._given.pop(key)
        given.remote.in_hand.discard(key)
        given.remote.is_alone = False
        self._tell(given, event)

    def _outcome(self, given: _Given) -> Event:
        """What became of a slide whose submission has ended, in whatever way."""
        future, remote = given.future, given.remote
        lost = Returned(given.number, "its worker was lost")
        if future.status == "error":
            error = future.exception(timeout=_ANSWER_S)
            if type(error).__name__ != "KilledWorker":
                remote.unfit = f"worker {remote.name} cannot be used: {' '.join(str(error).split()):.300}"
                _log.warning("%s", remote.unfit)
                return Returned(given.number, "its worker cannot be used")  # details name machines, and go to stderr
            return lost
        if future.status == "cancelled":  # not by this engine: the connection was lost, and with it the subscription
            assert self._client is not None
            self._client.subscribe_topic(self._batch.name, self._on_message)
        try:
            event = from_line(future.result(timeout=_ANSWER_S)) if future.status == "finished" else None
        except Exception:  # whatever it is: the answer was on a worker that is gone now
            event = None
        if isinstance(event, Returned) and event.is_elsewhere:
            self._roster.forget(remote)
        return event or lost


@dataclasses.dataclass(slots=True)
class _Given:
    """A slide in a worker's hands: its number, where it is, and whether it was told that it has begun."""

    number: int
    remote: Remote
    future: Future[Any]
    has_begun: bool = False


def located(task: SlideTask) -> SlideTask:
    """A task whose paths mean the same in another folder; links stay, since nodes may mount other things below them."""
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
