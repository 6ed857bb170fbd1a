"""Options of a dataset inspection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OptionError
from wsi2ihc.slide.metadata import MPP_RANGE
from wsi2ihc.text import MOST_WORKERS, check_bounds, option

from ..data import Order
from ..data.groups import names_table


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """Options of `inspect_dataset`; each field's text is the help of its command-line option.

    ``figures`` adds plots and images of patches to the report; the command line sets it if a report is written.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    order: Order = option(
        "AB", "Order of side-by-side images and of folders A and B: AB has the H&E on the left and in A."
    )
    group_by: str | None = option(
        None,
        "Groups to keep in one split: a regular expression with one named group, or a CSV file (as in training).",
    )
    mpp: float | None = option(None, "Resolution of the patches in µm/px, if the dataset does not state it.")
    workers: int = option(0, "Threads (0: number of cores, up to 8).")
    figures: bool = True

    def __post_init__(self) -> None:
        if self.order not in ("AB", "BA"):
            raise OptionError(f"--order is AB or BA, not {self.order!r:.40}")
        if self.mpp is not None and not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            low, high = MPP_RANGE
            raise OptionError(f"--mpp must lie between {low:g} and {high:g} µm/px, not {self.mpp:g}")
        check_bounds(self, {"workers": (0, MOST_WORKERS)})

    def stated(self) -> dict[str, Any]:
        """Return all options that affect the results as JSON values, with base names of files for privacy."""
        values = dataclasses.asdict(self)
        if self.group_by is not None and names_table(self.group_by):
            values["group_by"] = Path(self.group_by).name
        return {name: value for name, value in values.items() if name not in ("workers", "figures")}
