"""A worker's side of a batch: what it says of itself, and how it has slides translated.

Slides never run in the worker itself: a crash would take its other work with it, and a busy decoder its heartbeat. They
run in a long-lived child, one per batch, by the engine of one machine. The child ends with its worker, with its batch,
with the client, or when it has had nothing to do for a while.
"""

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..runtime import versions
from .events import Done, Event, Failed, Returned, Translating, to_line
from .local import LocalEngine, child_environments, visible_gpus
from .options import BatchOptions
from .task import SlideTask

if TYPE_CHECKING:
    from distributed import Worker

PROCESS = uuid.uuid4().hex
"""Tells this process from one that comes back under the same address."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Nannies set them to 1, and the child would inherit that."""

_LOOK_S = 0.1
"""Between two looks for slides that have come in; a child has a second one in hand meanwhile."""

_WANTED_S = 0.5
"""Between two looks whether anybody still waits for a slide."""

_TELL_S = 2.0
"""Between two messages of progress of a slide, which all pass through the scheduler."""

_IDLE_S = 120.0
"""After which a child without slides is ended: its client was killed, or has slides elsewhere only."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """What all slides of a batch have in common.

    name:     unique; also the topic under which workers tell of progress
    folder:   of the outputs, absolute
    device:   as `TranslateOptions.device` has it
    options:  of the batch
    """

    name: str
    folder: Path = field(repr=False)
    device: str
    options: BatchOptions


@dataclass(frozen=True, slots=True)
class Errand:
    """A slide for a worker. Workers may log what they were given, so paths are not part of its text.

    key:       of the submission; never used again
    process:   for which it is meant, see `PROCESS`
    task:      as `SlideTask.to_json` has it; all paths absolute
    is_alone:  whether it must not share a child
    batch:     that it belongs to
    """

    key: str
    process: str
    task: Mapping[str, Any] = field(repr=False)
    is_alone: bool
    batch: Batch


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself.

    name:          in the cluster
    process:       see `PROCESS`
    version:       of wsi2ihc
    offers_gpu:    as a resource
    sees_gpu:      whether there is one
    sees_probe:    whether a file of the client's is there
    """

    name: str
    process: str
    version: str
    offers_gpu: bool
    sees_gpu: bool
    sees_probe: bool


def describe(probe: Path) -> WorkerFacts:
    """Say what this worker is; ``probe``: a file that the client has written into the output folder."""
    from distributed import get_worker

    worker = get_worker()
    return WorkerFacts(
        name=str(worker.name),
        process=PROCESS,
        version=versions()["wsi2ihc"],
        offers_gpu=worker.state.total_resources.get("GPU", 0) >= 1,
        sees_gpu=bool(visible_gpus()),
        sees_probe=probe.is_file(),
    )


def run_slide(errand: Errand) -> str:
    """Have a slide translated, and wait for that; its last event, as a line.

    Raises
    ------
    DeviceError, OptionError, OSError
        If this worker has no use: its child does not even start.
    """
    from distributed import get_worker, secede

    task = SlideTask.from_json(errand.task)
    if errand.process != PROCESS:
        return to_line(Returned(task.number, "its worker was lost, and has come back", is_elsewhere=True))
    worker = get_worker()
    secede()  # waiting needs no thread of the worker's, which may have just one

    def tell(event: Event) -> None:
        worker.log_event(errand.batch.name, {"key": errand.key, "line": to_line(event)})

    slot = _slot(errand.batch, worker)
    event = slot.run(task, errand.is_alone, tell, lambda: _is_wanted(worker, errand.key))
    return to_line(event)


def end_batch(name: str) -> None:
    """End the child of a batch, if this worker has one. Does not wait."""
    with _lock:
        ended = [_slots.pop(key) for key in list(_slots) if key[0] == name]
    for slot in ended:
        slot.close()


class Slot:
    """A child, or none as long as there is nothing to do; slides come from the threads of a worker.

    Parameters
    ----------
    make_engine
        Makes an engine with one child.
    """

    def __init__(self, make_engine: Callable[[], LocalEngine]) -> None:
        self._make_engine = make_engine
        self._numbers = itertools.count()
        self._waiting: SimpleQueue[_Held | None] = SimpleQueue()
        self.is_closed = False
        threading.Thread(target=self._serve, daemon=True, name="wsi2ihc-slot").start()

    def run(
        self, task: SlideTask, is_alone: bool, tell: Callable[[Event], None], is_wanted: Callable[[], bool]
    ) -> Event:
        """Hand over a slide, and wait until it is out of the child's hands; its last event.

        Parameters
        ----------
        task
            What to do.
        is_alone
            Whether it must not share the child.
        tell
            Told of other events, of progress now and then.
        is_wanted
            If nobody waits for the slide any more, the child is ended: that is what stops it.
        """
        held = _Held(replace(task, number=next(self._numbers)), is_alone, SimpleQueue())
        self._waiting.put(held)
        told_at = 0.0
        while True:
            try:
                event = held.events.get(timeout=_WANTED_S)
            except Empty:
                if self.is_closed or not is_wanted():
                    self.close()
                    return Returned(task.number, "the batch has ended")
                continue
            if isinstance(event, Exception):
                raise event
            event = replace(event, number=task.number)
            if isinstance(event, Done | Failed | Returned):
                return event
            if not isinstance(event, Translating) or time.monotonic() - told_at >= _TELL_S:
                told_at = time.monotonic()
                tell(event)

    def close(self) -> None:
        """End the child, whatever it has in hand. Does not wait."""
        self.is_closed = True
        self._waiting.put(None)

    def _serve(self) -> None:
        """Have a child as long as there are slides."""
        while not self.is_closed and (first := self._waiting.get()) is not None:
            held = {first.task.number: first}
            try:
                self._serve_child(deque([first]), held)
            except Exception as error:
                _log.warning("slides cannot be translated here: %s", error)
                for one in held.values():
                    one.events.put(error)
        while True:
            try:
                left = self._waiting.get_nowait()
            except Empty:
                return
            if left is not None:
                left.events.put(Returned(left.task.number, "the batch has ended"))

    def _serve_child(self, queued: deque[_Held], held: dict[int, _Held]) -> None:
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
                event = engine.next_event(_LOOK_S)
                number = getattr(event, "number", None)
                if event is None or number not in held:
                    continue
                used_at = time.monotonic()
                ended = isinstance(event, Done | Failed | Returned)
                (held.pop(number) if ended else held[number]).events.put(event)
        finally:
            engine.close()
        for one in held.values():
            one.events.put(Returned(one.task.number, "the batch has ended"))


@dataclass(frozen=True, slots=True)
class _Held:
    """A slide, under a number of the slot's own, since clients number theirs from 0; and where its events go."""

    task: SlideTask
    is_alone: bool
    events: SimpleQueue[Any]


_slots: dict[tuple[str, str], Slot] = {}
"""By batch and worker; of those processes that hold several workers, each has its own."""

_lock = threading.Lock()


def _slot(batch: Batch, worker: Worker) -> Slot:
    key = (batch.name, worker.address)
    with _lock:
        if key not in _slots or _slots[key].is_closed:
            own = [_environment(batch, worker.state.nthreads)]
            log = f"worker-{_label(str(worker.name))}-{os.getpid()}"
            _slots[key] = Slot(
                lambda: LocalEngine(batch.folder, batch.device, batch.options, environments=own, log_name=log)
            )
        return _slots[key]


def _label(name: str) -> str:
    """Part of a log's name: a worker's name, unless that is its address on the network, as it is by default."""
    if re.fullmatch(r"[\w-]{1,40}", name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _environment(batch: Batch, threads: int) -> dict[str, str]:
    """The variables of a child: as on one machine, but with the threads that the worker was given.

    Raises
    ------
    DeviceError
        If a GPU is asked for and none is found.
    """
    (environment,) = child_environments(batch.device, replace(batch.options, children=1))
    return {**environment, **dict.fromkeys(_THREAD_VARIABLES, str(max(1, threads)))}


def _is_wanted(worker: Worker, key: str) -> bool:
    """Whether the scheduler still wants the result: a running function cannot be cancelled, only told so."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state != "cancelled" and worker.status.name not in ("closing", "closed", "failed")
