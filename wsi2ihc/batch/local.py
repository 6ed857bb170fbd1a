"""The engine of one machine: a long-lived child for each GPU, or one or more on the CPU."""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DeviceError
from ..processes import Ended, how_it_ended
from ..runtime import cores
from .child import IN_HAND, THREADS_VARIABLE
from .events import Done, Event, Failed
from .options import BatchOptions
from .places import logs_folder
from .process import Child
from .staging import CACHE_VARIABLE, cache_folder, remove_leftovers_of, remove_old_copies
from .task import SlideTask

_FAILED_STARTS = 3
"""Children that die one after the other before they were ready have something wrong that a new one will not mend."""

_LOOK_S = 1.0
"""Between two looks for slides that take too long."""


class LocalEngine:
    """Children of this process; each is replaced after a crash, and after so many slides.

    Parameters
    ----------
    folder
        Of the outputs; what children print is kept there.
    device
        As `TranslateOptions.device` has it.
    options
        Of the batch.
    environments
        Variables of each child, instead of those that follow from the device and the options.
    log_name
        What the names of the children's logs begin with.

    Raises
    ------
    DeviceError
        If a GPU is asked for and none is found; later, if children cannot even be started.
    """

    def __init__(
        self, folder: Path, device: str, options: BatchOptions, *,
        environments: Sequence[Mapping[str, str]] | None = None, log_name: str = "child",
    ) -> None:  # fmt: skip
        self._options, self._log_name = options, log_name
        self._logs = logs_folder(folder)
        self._heard: queue.SimpleQueue[tuple[int, Event | None]] = queue.SimpleQueue()
        self._told: deque[Event] = deque()
        self._numbers = itertools.count()
        self._failed_starts = 0
        self._children: dict[int, Child] = {}
        self._environments: dict[int, Mapping[str, str]] = {}
        self._alone: set[int] = set()
        remove_old_copies(options.cache)
        for environment in child_environments(device, options) if environments is None else environments:
            self._start(environment)

    def has_room(self, *, alone: bool) -> bool:
        """See `Engine`."""
        return self._roomiest(alone) is not None

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """See `Engine`."""
        child = self._roomiest(alone)
        assert child is not None, "there is no room"
        if alone:
            self._alone.add(child.number)
        child.give(task.with_share(len(self._children)))

    def next_event(self, timeout_s: float) -> Event | None:
        """See `Engine`."""
        until = time.monotonic() + timeout_s
        while not self._told:
            self._end_overdue()
            left = until - time.monotonic()
            try:
                self._hear(*self._heard.get(timeout=max(0.0, min(_LOOK_S, left))))
            except queue.Empty:
                if left <= 0:
                    return None
        return self._told.popleft()

    def close(self) -> None:
        """See `Engine`."""
        for child in self._children.values():
            child.end(now=True)
            remove_leftovers_of(child.pid, list(child.in_hand.values()), self._options.cache)
        self._children.clear()

    def _roomiest(self, alone: bool) -> Child | None:
        """The child with the least in hand that takes another slide."""
        room = 1 if alone else IN_HAND
        able = [
            child
            for child in self._children.values()
            if len(child.in_hand) < room and child.number not in self._alone and not self._is_worn(child)
        ]
        return min(able, key=lambda child: len(child.in_hand), default=None)

    def _is_worn(self, child: Child) -> bool:
        return child.given >= self._options.restart_every

    def _hear(self, number: int, event: Event | None) -> None:
        child = self._children.get(number)
        if child is None:  # one that was ended on purpose
            return
        if event is None:
            self._replace(child, how_it_ended(child.end()))
            return
        child.hear(event)
        if isinstance(event, Done | Failed):
            self._failed_starts = 0
            self._alone.discard(number)
        self._told.append(event)
        if self._is_worn(child) and not child.in_hand:
            child.end()
            self._replace(child, Ended(""))

    def _replace(self, child: Child, how: Ended, to_blame: int | None = None) -> None:
        remove_leftovers_of(child.pid, list(child.in_hand.values()), self._options.cache)
        self._told.extend(child.losses(how, to_blame))
        self._alone.discard(child.number)
        del self._children[child.number]
        if not child.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                logs = f"{self._logs.parent.name}/{self._logs.name}"
                raise DeviceError(f"processes that translate end before they begin ({how.text}); see {logs}")
        self._start(self._environments.pop(child.number))

    def _end_overdue(self) -> None:
        timeout_s = self._options.timeout_min * 60
        for child in list(self._children.values()):
            if (task := child.overdue(timeout_s)) is not None:
                child.end(now=True)
                why = f"it took more than {self._options.timeout_min:g} minutes (--timeout-min)"
                self._replace(child, Ended(why), task.number)

    def _start(self, environment: Mapping[str, str]) -> None:
        number = next(self._numbers)
        self._environments[number] = environment
        self._children[number] = Child(
            number,
            lambda *heard: self._heard.put(heard),
            environment,
            self._logs / f"{self._log_name}-{number}.log",
        )


def child_environments(device: str, options: BatchOptions) -> list[dict[str, str]]:
    """The variables of every child: which GPU it sees, how many threads it may use, and where its cache is.

    Raises
    ------
    DeviceError
        If a GPU is asked for and none is found.
    """
    # a worker of a cluster that has a disk of its own says so where it starts
    common = {CACHE_VARIABLE: str(cache_folder(options.cache) or "")}
    gpus = [] if device in ("cpu", "mps") else visible_gpus()
    if device.startswith("cuda"):
        if not gpus:
            raise DeviceError(f"--device {device}: no NVIDIA GPU was found; use --device cpu")
        if ":" in device:
            wanted = [int(number) for number in device.partition(":")[2].split(",")]
            if missing := [number for number in wanted if number >= len(gpus)]:
                raise DeviceError(f"--device {device}: there is no GPU {missing[0]}, only {len(gpus)}")
            gpus = [gpus[number] for number in wanted]
    if gpus:
        count = options.children or len(gpus)
        own = [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]
    else:
        own = [{} for _ in range(options.children or 1)]
    threads = str(max(1, cores() // len(own)))
    return [{**common, **one, **dict.fromkeys((THREADS_VARIABLE, "OMP_NUM_THREADS"), threads)} for one in own]


def visible_gpus() -> list[str]:
    """The GPUs that a child may see, as `CUDA_VISIBLE_DEVICES` names them. Nothing of CUDA is loaded here."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
