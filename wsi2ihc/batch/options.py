"""Options of a batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError
from ..text import check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """Options of `batch`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is invalid.
    """

    attempts: int = option(3, "Attempts per slide; permanent errors are not retried.")
    timeout_min: float = option(0.0, "Timeout of a slide in minutes (0: none).")
    children: int = option(0, "Worker processes (0: one per GPU, or one on the CPU).")
    restart_every: int = option(200, "Slides after which a worker is restarted.")
    cache: Path | None = option(None, "Folder on a local disk; slides are copied there before they are read.")

    def __post_init__(self) -> None:
        check_bounds(
            self,
            {"attempts": (1, 100), "timeout_min": (0, 10**6), "children": (0, 4096), "restart_every": (1, 10**9)},
        )
        if self.cache is not None and not self.cache.is_dir():
            raise OptionError(f"--cache {self.cache} is not a folder; create it or choose another")
        if self.cache is not None and not os.access(self.cache, os.W_OK):
            raise OptionError(f"--cache {self.cache} is not writable; change its permissions or choose another")
