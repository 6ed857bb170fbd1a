"""How a process ended, in words."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended; and whether it was killed, as systems do that are out of memory."""

    text: str
    was_killed: bool = False


def how_it_ended(code: int) -> Ended:
    """The end of a process by its exit code (negative: the signal that ended it)."""
    if code >= 0:
        return Ended(f"its process ended with code {code}")
    name = next((one.name for one in signal.Signals if one.value == -code), f"signal {-code}")
    if name == "SIGKILL":
        return Ended(f"its process was killed ({name}), most likely for want of memory", was_killed=True)
    return Ended(f"its process crashed ({name}), most likely over a damaged slide")
