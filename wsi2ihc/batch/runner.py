"""The batch itself: what is done stays, what fails is tried again where that can help, and no slide harms another.

Attempts are counted here, and not by whatever runs the slides: only failures that a slide is to blame for count.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from .engine import Engine
from .events import Done, Event, Failed, Returned, Translating
from .marker import is_of_another, read_done
from .options import BatchOptions
from .task import SlideTask

Status = Literal["waiting", "running", "done", "done before", "failed"]

MOST_RETURNS = 8
"""How often a slide may come back unfinished without being to blame, before it is to blame."""

_WAIT_S = 1.0

_LOOKING = 8
"""Outputs that are looked at together: on network file systems each takes some tenths of a second."""


@dataclass(frozen=True, slots=True)
class SlideState:
    """How far a slide is.

    task:      as it is tried next: with less memory after it has run out
    status:    "done before": by an earlier run or by another batch, and not touched by this one
    attempts:  that were made and count
    returns:   times that it came back and was not to blame
    is_alone:  whether it must not share a child any more
    share:     of its windows that are translated, 0 to 1
    facts:     of a finished one, as in its marker
    error:     of a failed one, or the last one of one that is tried again
    """

    task: SlideTask
    status: Status = "waiting"
    attempts: int = 0
    returns: int = 0
    is_alone: bool = False
    share: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


Board = Sequence[SlideState]
"""All slides of a batch, in the manifest's order."""


def run_batch(
    tasks: Sequence[SlideTask],
    make_engine: Callable[[], Engine],
    options: BatchOptions,
    on_change: Callable[[Board, SlideState | None], None] = lambda _board, _slide: None,
    *,
    verify: bool = False,
) -> list[SlideState]:
    """Translate all slides that are not done.

    Parameters
    ----------
    tasks
        With distinct numbers and outputs.
    make_engine
        Called only where there is something to do.
    options
        How often a slide is tried.
    on_change
        Told of the board after every event, often; with the slide that has ended or has to be tried again, if one has.
    verify
        Read the outputs that are done already, and translate those again that are damaged.

    Returns
    -------
    list
        All slides, "done", "done before" or "failed".

    Raises
    ------
    BatchError, DeviceError
        If nothing can run slides.
    """
    states = {state.task.number: state for state in states_at_first(tasks, verify=verify)}
    on_change(list(states.values()), None)
    todo = deque(number for number, state in states.items() if state.status == "waiting")
    if not todo:
        return list(states.values())
    engine = make_engine()
    try:
        running: set[int] = set()
        while todo or running:
            _hand_out(todo, states, running, engine)
            event = engine.next_event(_WAIT_S)
            number = getattr(event, "number", None)
            if event is None or number not in states:
                on_change(list(states.values()), None)
                continue
            before, after = states[number], _after(states[number], event, options)
            states[number] = after
            if isinstance(event, Done | Failed | Returned):
                running.discard(number)
                if after.status == "waiting":
                    (todo.appendleft if after.is_alone else todo.append)(number)
            has_news = isinstance(event, Done | Failed | Returned) and after != before
            on_change(list(states.values()), after if has_news else None)
    finally:
        engine.close()
    return [_in_the_end(state) for state in states.values()]


def states_at_first(tasks: Sequence[SlideTask], *, verify: bool = False, renew: bool = True) -> list[SlideState]:
    """What is done of these slides, and what waits: markers and outputs are looked at, a few at once.

    See `read_done` for ``verify`` and ``renew``.
    """
    with ThreadPoolExecutor(_LOOKING, "look") as pool:
        return list(pool.map(partial(_at_first, verify=verify, renew=renew), tasks))


def to_be_replaced(states: Sequence[SlideState]) -> list[str]:
    """Names of outputs that are there and not what is asked for: made otherwise, cut short, or not by a batch."""
    return [one.task.name for one in states if one.status == "waiting" and one.task.output.exists()]


def _at_first(task: SlideTask, *, verify: bool, renew: bool) -> SlideState:
    facts = read_done(task, verify=verify, renew=renew)
    return SlideState(task) if facts is None else SlideState(task, "done before", facts=facts)


def _in_the_end(state: SlideState) -> SlideState:
    """A slide when all are done: another batch may have made its output again, in another way."""
    if not state.status.startswith("done") or not is_of_another(state.task):
        return state
    error = "another batch has replaced its output, made with another model or other options"
    return dataclasses.replace(state, status="failed", error=error)


def _hand_out(todo: deque[int], states: dict[int, SlideState], running: set[int], engine: Engine) -> None:
    """Give slides as long as there is room. One that has to be alone is in front, and waits for an empty child."""
    while todo:
        state = states[todo[0]]
        if not engine.has_room(alone=state.is_alone):
            return
        number = todo.popleft()
        states[number] = dataclasses.replace(state, status="running", share=0.0, attempts=state.attempts + 1)
        running.add(number)
        engine.take(state.task, alone=state.is_alone)


def _after(state: SlideState, event: Event, options: BatchOptions) -> SlideState:
    """The state of a slide after an event of it."""
    if isinstance(event, Translating):
        return dataclasses.replace(state, share=event.done / max(1, event.total))
    if isinstance(event, Done):
        # one that has lost a child and is then found done was done as that child died and could not tell
        status: Status = "done" if event.is_new or state.is_alone else "done before"
        return dataclasses.replace(state, status=status, share=1.0, facts=event.facts, error="")
    if isinstance(event, Returned):
        return _returned(state, event)
    if isinstance(event, Failed):
        return _failed(state, event, options)
    return state


def _returned(state: SlideState, event: Returned) -> SlideState:
    """Not to blame, as far as anybody knows: the attempt does not count, and the next one is made alone."""
    if state.returns >= MOST_RETURNS:
        return dataclasses.replace(state, status="failed", error=event.message)
    return dataclasses.replace(
        state, status="waiting", attempts=state.attempts - 1, returns=state.returns + 1, is_alone=True,
        share=0.0, error=event.message,
    )  # fmt: skip


def _failed(state: SlideState, event: Failed, options: BatchOptions) -> SlideState:
    if event.kind == "permanent" or state.attempts >= options.attempts:
        return dataclasses.replace(state, status="failed", error=event.message)
    task = state.task.smaller() if event.kind == "memory" else state.task
    return dataclasses.replace(
        state, task=task, status="waiting", share=0.0, error=event.message,
        is_alone=state.is_alone or event.kind in ("crash", "memory", "timeout"),
    )  # fmt: skip
