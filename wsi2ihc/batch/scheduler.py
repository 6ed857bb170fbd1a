"""Run a batch: attempts, retries and failed tasks."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from .task import BatchOptions, Done, Event, Failed, Requeued, SlideTask, Translating, is_of_another, read_done


class Engine(Protocol):
    """Runs a bounded number of slides at a time and reports events.

    Every slide that it takes ends with exactly one `Done`, `Failed` or `Requeued`.
    """

    def has_room(self, *, alone: bool) -> bool:
        """Return whether another slide can be taken now; ``alone``: one that must not share a worker."""
        ...

    def take(self, task: SlideTask, *, alone: bool) -> None:
        """Start a slide; requires room."""
        ...

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next event, or None after the timeout."""
        ...

    def close(self) -> None:
        """Stop all workers at once."""
        ...


Status = Literal["waiting", "running", "done", "done before", "failed"]

MOST_RETURNS = 8
"""How often a slide may be requeued without counting as an attempt, before it fails."""

_WAIT_S = 1.0

_MARKER_THREADS = 8
"""Threads that check done markers: on network file systems each check takes some tenths of a second."""


@dataclass(frozen=True, slots=True)
class SlideState:
    """State of a slide in a batch."""

    task: SlideTask  # task of the next attempt; with less memory after an attempt ran out of it
    status: Status = "waiting"  # "done before" if an earlier run or another batch translated it
    attempts: int = 0  # attempts that count
    returns: int = 0  # how often it was requeued without counting as an attempt
    is_alone: bool = False  # whether it must not share a worker
    share: float = 0.0  # fraction of its windows that are translated
    facts: Mapping[str, Any] = field(default_factory=dict)  # results of a finished slide, as in its done marker
    error: str = ""  # message of the last failure


SlideStates = Sequence[SlideState]
"""All slides of a batch, in the manifest's order."""


def run_batch(
    tasks: Sequence[SlideTask],
    make_engine: Callable[[], Engine],
    options: BatchOptions,
    on_change: Callable[[SlideStates, SlideState | None], None] = lambda _states, _slide: None,
    *,
    verify: bool = False,
) -> list[SlideState]:
    """Translate all slides that are not done, and return their states: "done", "done before" or "failed".

    Numbers and outputs of tasks are distinct. ``make_engine`` is called only if slides have to be translated;
    ``on_change`` after every event, with the board, and with the slide that has ended or is retried, if any. ``verify``
    reads existing outputs and translates damaged ones again.

    Raises
    ------
    BatchError, DeviceError
        If no worker can run slides.
    """
    states = {state.task.number: state for state in initial_states(tasks, verify=verify)}
    on_change(list(states.values()), None)
    todo = deque(number for number, state in states.items() if state.status == "waiting")
    if not todo:
        return list(states.values())
    engine = make_engine()
    try:
        running: set[int] = set()
        while todo or running:
            _start_slides(todo, states, running, engine)
            event = engine.next_event(_WAIT_S)
            number = getattr(event, "number", None)
            if event is None or number not in states:
                on_change(list(states.values()), None)
                continue
            before, after = states[number], _after(states[number], event, options)
            states[number] = after
            if isinstance(event, Done | Failed | Requeued):
                running.discard(number)
                if after.status == "waiting":
                    (todo.appendleft if after.is_alone else todo.append)(number)
            has_news = isinstance(event, Done | Failed | Requeued) and after != before
            on_change(list(states.values()), after if has_news else None)
    finally:
        engine.close()
    return [_final_state(state) for state in states.values()]


def initial_states(tasks: Sequence[SlideTask], *, verify: bool = False, renew: bool = True) -> list[SlideState]:
    """Return the states of slides from their done markers; see `read_done` for ``verify`` and ``renew``."""
    with ThreadPoolExecutor(_MARKER_THREADS, "markers") as pool:
        return list(pool.map(partial(_initial_state, verify=verify, renew=renew), tasks))


def to_be_replaced(states: Sequence[SlideState]) -> list[str]:
    """Return the names of existing outputs that will be replaced: of other options, damaged, or not of a batch."""
    return [one.task.name for one in states if one.status == "waiting" and one.task.output.exists()]


def _initial_state(task: SlideTask, *, verify: bool, renew: bool) -> SlideState:
    facts = read_done(task, verify=verify, renew=renew)
    return SlideState(task) if facts is None else SlideState(task, "done before", facts=facts)


def _final_state(state: SlideState) -> SlideState:
    """Return the final state of a slide; it failed if another batch has replaced its output."""
    if not state.status.startswith("done") or not is_of_another(state.task):
        return state
    error = "another batch has replaced its output, made with another model or other options"
    return dataclasses.replace(state, status="failed", error=error)


def _start_slides(todo: deque[int], states: dict[int, SlideState], running: set[int], engine: Engine) -> None:
    """Start slides while there is room. A slide that must be alone comes first and waits for an idle worker."""
    while todo:
        state = states[todo[0]]
        if not engine.has_room(alone=state.is_alone):
            return
        number = todo.popleft()
        states[number] = dataclasses.replace(state, status="running", share=0.0, attempts=state.attempts + 1)
        running.add(number)
        engine.take(state.task, alone=state.is_alone)


def _after(state: SlideState, event: Event, options: BatchOptions) -> SlideState:
    """Return the state of a slide after an event."""
    if isinstance(event, Translating):
        return dataclasses.replace(state, share=event.done / max(1, event.total))
    if isinstance(event, Done):
        # its worker may have died after publishing the output and before reporting it
        status: Status = "done" if event.is_new or state.is_alone else "done before"
        return dataclasses.replace(state, status=status, share=1.0, facts=event.facts, error="")
    if isinstance(event, Requeued):  # the attempt does not count, and the next one runs alone
        if state.returns >= MOST_RETURNS:
            return dataclasses.replace(state, status="failed", error=event.message)
        return dataclasses.replace(
            state, status="waiting", attempts=state.attempts - 1, returns=state.returns + 1, is_alone=True,
            share=0.0, error=event.message,
        )  # fmt: skip
    if not isinstance(event, Failed):
        return state
    if event.kind == "permanent" or state.attempts >= options.attempts:
        return dataclasses.replace(state, status="failed", error=event.message)
    task = state.task.smaller() if event.kind == "memory" else state.task
    is_alone = state.is_alone or event.kind in ("crash", "memory", "timeout")
    return dataclasses.replace(state, task=task, status="waiting", share=0.0, error=event.message, is_alone=is_alone)
