# ruff: noqa: RUF009 (`_option` only makes a field)
"""How to run a batch: every choice a user has, checked when it is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..notation import check_bounds


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """Options of `batch`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    attempts: int = _option(3, "How often a slide is tried before it has failed; permanent errors are not tried again.")
    timeout_min: float = _option(0.0, "Minutes after which a slide is given up (0: never).")
    children: int = _option(0, "Processes that translate (0: one per GPU, or one on the CPU).")
    restart_every: int = _option(200, "Slides after which a child is replaced by a new one.")
    cache: Path | None = _option(None, "Folder on a local disk: slides are copied there before they are read.")

    def __post_init__(self) -> None:
        check_bounds(
            self,
            {"attempts": (1, 100), "timeout_min": (0, 10**6), "children": (0, 4096), "restart_every": (1, 10**9)},
        )
        if self.cache is not None and not self.cache.is_dir():
            raise OptionError(f"--cache {self.cache} is no folder; make it, or name another one")
        if self.cache is not None and not os.access(self.cache, os.W_OK):
            raise OptionError(f"--cache {self.cache} cannot be written; change its permissions, or name another one")
