# ruff: noqa: RUF009 (`_option` only makes a field)
"""How to inspect a data set: one configuration, whose fields are the options of ``wsi2ihc dataset``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OptionError
from wsi2ihc.notation import MOST_WORKERS, check_bounds
from wsi2ihc.slide.resolution import MPP_RANGE

from ..data import Order
from ..data.groups import names_table


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """Options of `inspect_dataset`; each field's text is the help of its command-line option.

    pictures: whether the report gets plots and pictures of patches, or tables only; the command line derives it

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    order: Order = _option(
        "AB", "Of side-by-side images, and of folders A and B: AB has the H&E to the left, and in A."
    )
    group_by: str | None = _option(
        None, "What must not be parted: a regular expression with one named group, or a CSV file (as in training)."
    )
    mpp: float | None = _option(None, "µm per px of the patches, where the data does not say.")
    workers: int = _option(0, "Threads (0: as many as there are cores, up to 8).")
    pictures: bool = True

    def __post_init__(self) -> None:
        if self.order not in ("AB", "BA"):
            raise OptionError(f"--order is AB or BA, not {self.order!r:.40}")
        if self.mpp is not None and not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            low, high = MPP_RANGE
            raise OptionError(f"--mpp must lie between {low:g} and {high:g} µm per px, not {self.mpp:g}")
        check_bounds(self, {"workers": (0, MOST_WORKERS)})

    def stated(self) -> dict[str, Any]:
        """All that can change a figure, as JSON values; of files the base names, since folders may name people."""
        values = dataclasses.asdict(self)
        if self.group_by is not None and names_table(self.group_by):
            values["group_by"] = Path(self.group_by).name
        return {name: value for name, value in values.items() if name not in ("workers", "pictures")}
