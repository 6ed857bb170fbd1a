"""What a child tells of its work, one JSON object a line, and the kinds of failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from ..errors import DeviceError, DeviceMemoryError, OutputError, Wsi2IhcError

FailureKind = Literal["permanent", "transient", "memory", "crash", "timeout"]
"""permanent: it will fail again; transient: it may not (a disk, a network); memory: it may not with less; crash: the
child is gone, or its device is; timeout: it took too long, and its child was ended.
"""


@dataclass(frozen=True, slots=True)
class Ready:
    """A child can be given slides. ``device``: where it computes, in words."""

    device: str


@dataclass(frozen=True, slots=True)
class Began:
    """A slide is being opened and looked at."""

    number: int


@dataclass(frozen=True, slots=True)
class Turned:
    """A slide waits (for the device, or for another batch that is at it), or is worked on again: only that counts as
    its time.
    """

    number: int
    is_waiting: bool


@dataclass(frozen=True, slots=True)
class Translating:
    """How far a slide is, in px of windows."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Done:
    """A slide is done; facts as in its marker. It is not new if another batch has done it meanwhile."""

    number: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """A slide has failed; the message is one line."""

    number: int
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A slide comes back unfinished, and nobody knows that it is to blame: its child ended with another one in hand.

    is_elsewhere: the worker that it was meant for is gone, and another process has its name
    """

    number: int
    message: str
    is_elsewhere: bool = False


Event: TypeAlias = Ready | Began | Turned | Translating | Done | Failed | Returned

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def to_line(event: Event) -> str:
    """An event as a line of JSON."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_line(line: str) -> Event | None:
    """The event of a line; None for a line that is none."""
    try:
        facts = json.loads(line)
        return _KINDS[facts.pop("event")](**facts)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def kind_of(error: BaseException) -> FailureKind:
    """What kind of failure an exception is."""
    if isinstance(error, DeviceMemoryError | MemoryError):
        return "memory"
    text = str(error).lower()
    if isinstance(error, RuntimeError) and not isinstance(error, Wsi2IhcError) and ("cuda" in text or "device" in text):
        return "crash"  # a device error spoils the process for every later slide
    if isinstance(error, OutputError):
        return "transient"
    if isinstance(error, Wsi2IhcError):
        return "transient" if isinstance(error, DeviceError) else "permanent"
    return "transient"
