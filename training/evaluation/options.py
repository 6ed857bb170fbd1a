"""Options of an evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OptionError
from wsi2ihc.slide.metadata import MPP_RANGE
from wsi2ihc.text import MOST_SEED, check_bounds, option

from ..data import Order, Role

STAINED_FROM_RANGE = (0.02, 2.0)
MAX_RESAMPLES = 100_000
"""They take a gigabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """Options of `evaluate`; the text of each field is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is invalid.
    """

    split: Role = option("test", "Split whose patches are scored.")
    order: Order = option(
        "AB", "Position of the H&E: AB if it is the left half of side-by-side images, or A in file and folder names."
    )
    group_by: str | None = option(
        None, "Groups of patches: a regular expression with one named group for the file names, or a CSV file."
    )
    mpp: float | None = option(None, "µm/px of the images, if the dataset does not state it.")
    stained_from: float | None = option(
        None, "DAB density from which a pixel counts as stained (default: Otsu's threshold of the training references)."
    )
    inception_weights: Path | None = option(None, "Weights file of Inception v3, for FID and KID.")
    examples: int = option(3, "Rows of each grid of example images (0: none).")
    resamples: int = option(2000, "Number of bootstrap resamples.")
    seed: int = option(0, "Random seed of the bootstrap and of the example images.")
    device: str = option("auto", "auto, cpu, cuda or mps.")
    precision: str = option("auto", "Number format of the networks: auto, fp32, bf16 or fp16.")
    batch_size: int = option(8, "Patches per forward pass.")

    def __post_init__(self) -> None:
        check_bounds(self, {"examples": (0, 1000), "resamples": (100, MAX_RESAMPLES), "seed": (0, MOST_SEED),
                            "batch_size": (1, 65_536)})  # fmt: skip
        low, high = STAINED_FROM_RANGE
        if self.stained_from is not None and not low <= self.stained_from <= high:
            raise OptionError(f"--stained-from must lie between {low} and {high} OD, not {self.stained_from:g}")
        if self.mpp is not None and not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            raise OptionError(f"--mpp must lie between {MPP_RANGE[0]:g} and {MPP_RANGE[1]:g} µm/px, not {self.mpp:g}")

    def stated(self, *names: str) -> dict[str, Any]:
        """Return the options of these names, or all, as JSON values; of files the base names."""
        values = {name: getattr(self, name) for name in names} if names else dataclasses.asdict(self)
        if "group_by" in values and str(values["group_by"]).lower().endswith(".csv"):
            values["group_by"] = Path(values["group_by"])
        return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
