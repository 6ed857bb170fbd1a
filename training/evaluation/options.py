# ruff: noqa: RUF009 (`_option` only makes a field)
"""How to evaluate: every choice a user has, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OptionError
from wsi2ihc.notation import MOST_SEED, check_bounds
from wsi2ihc.slide.resolution import MPP_RANGE

from ..data import Order, Role

STAINED_FROM_RANGE = (0.02, 2.0)
MOST_RESAMPLES = 100_000
"""A gigabyte, with all figures of each."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """Options of `evaluate`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    split: Role = _option("test", "Which patches are scored.")
    order: Order = _option(
        "AB", "Of side by side images, and of A and B in names: AB has the H&E on the left, and in A."
    )
    group_by: str | None = _option(
        None, "What is independent: a regular expression with one named group over the names, or a CSV."
    )
    mpp: float | None = _option(None, "µm per px of the images, where nothing says.")
    stained_from: float | None = _option(
        None, "Density of DAB from which a px is stained (default: Otsu's on the training references)."
    )
    inception_weights: Path | None = _option(None, "File of Inception's weights, for FID and KID.")
    pictures: int = _option(3, "Rows of each grid of pictures (0: none).")
    resamples: int = _option(2000, "Of the bootstrap.")
    seed: int = _option(0, "Of the bootstrap, and of the choice of pictures.")
    device: str = _option("auto", "auto, cpu, cuda or mps.")
    precision: str = _option("auto", "Number format of the networks: auto, fp32, bf16 or fp16.")
    batch_size: int = _option(8, "Patches per call of a network.")

    def __post_init__(self) -> None:
        check_bounds(self, {"pictures": (0, 1000), "resamples": (100, MOST_RESAMPLES), "seed": (0, MOST_SEED),
                            "batch_size": (1, 65_536)})  # fmt: skip
        low, high = STAINED_FROM_RANGE
        if self.stained_from is not None and not low <= self.stained_from <= high:
            raise OptionError(f"--stained-from must lie between {low} and {high} OD, not {self.stained_from:g}")
        if self.mpp is not None and not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            raise OptionError(
                f"--mpp must lie between {MPP_RANGE[0]:g} and {MPP_RANGE[1]:g} µm per px, not {self.mpp:g}"
            )

    def stated(self, *names: str) -> dict[str, Any]:
        """The options of these names, or all, as JSON values; of files the base names."""
        values = {name: getattr(self, name) for name in names} if names else dataclasses.asdict(self)
        if "group_by" in values and str(values["group_by"]).lower().endswith(".csv"):
            values["group_by"] = Path(values["group_by"])
        return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
