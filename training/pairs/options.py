"""Options of a pair dataset."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, get_args

from wsi2ihc.errors import OptionError
from wsi2ihc.registration.register import RegistrationOptions
from wsi2ihc.slide.metadata import MPP_RANGE
from wsi2ihc.text import MOST_SEED, MOST_WORKERS, check_bounds, option
from wsi2ihc.translation.options import ColorPolicy, ReadErrorPolicy

from ..data.dataset import LARGEST_SIDE_PX
from .pair_manifest import Tissue
from .patient_split import Shares
from .quality import Limits

LEAST_PATCH_PX = 64
"""Minimum side of a patch; smaller ones contain too few cells to be measured."""

LEAST_STRIDE_PX = 64
"""Minimum stride; a slide of 100,000² px then has two million positions."""

MOST_STRIDE_PX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsOptions:
    """Options of `build_pairs`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    patch_size: int = option(1024, "Side of the patches in px.")
    mpp: float = option(0.46, "Resolution of the patches in µm/px.")
    stride: int = option(0, "Distance of neighboring patches in px (0: the side of a patch).")
    validation: float = option(0.1, "Fraction of the patients for validation.")
    test: float = option(0.1, "Fraction of the patients for test.")
    seed: int = option(0, "Seed of the random split of patients.")
    stain: str | None = option(None, "Name of the IHC stain, such as HER2; stored in models trained on the dataset.")
    license: str | None = option(None, "License of the dataset; stored in models trained on it.")
    name: str | None = option(None, "Name of the dataset; stored in models (default: name of its folder).")
    side_by_side: bool = option(False, "Write each pair as one image, the H&E left, the IHC right.")
    tissue: Tissue = option(
        "auto", "Tissue: auto, or none (everything is tissue); the manifest's column tissue overrides it per slide."
    )
    icc: ColorPolicy = option("keep", "Keep the slides' colors, or convert them to sRGB; translate with the same.")
    on_read_error: ReadErrorPolicy = option(
        "fail", "On unreadable areas of a slide: fail, or skip the patches that lie there (background)."
    )
    workers: int = option(0, "Pairs of slides processed in parallel (0: number of cores, up to 8).")
    registration: RegistrationOptions = field(default_factory=RegistrationOptions)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not LEAST_PATCH_PX <= self.patch_size <= LARGEST_SIDE_PX:
            raise OptionError(
                f"--patch-size must lie between {LEAST_PATCH_PX} and {LARGEST_SIDE_PX} px, not {self.patch_size}"
            )
        if self.stride and not LEAST_STRIDE_PX <= self.stride <= MOST_STRIDE_PX:
            raise OptionError(
                f"--stride must lie between {LEAST_STRIDE_PX} and {MOST_STRIDE_PX:,} px, or be 0 (the patches' side), "
                f"not {self.stride}"
            )
        if not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            raise OptionError(f"--mpp must lie between {MPP_RANGE[0]} and {MPP_RANGE[1]} µm/px, not {self.mpp}")
        for name in ("validation", "test"):
            share = getattr(self, name)
            if not (math.isfinite(share) and 0 <= share < 1):
                raise OptionError(f"--{name} must be a fraction from 0 to below 1, not {share}")
        if self.validation + self.test >= 1:
            raise OptionError(f"--validation {self.validation:g} and --test {self.test:g} leave nothing for training")
        for name, kind in (("tissue", Tissue), ("icc", ColorPolicy), ("on_read_error", ReadErrorPolicy)):
            if getattr(self, name) not in get_args(kind):
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"{flag} is {' or '.join(get_args(kind))}, not {getattr(self, name)!r:.40}")
        check_bounds(self, {"seed": (0, MOST_SEED), "workers": (0, MOST_WORKERS)})

    @property
    def shares(self) -> Shares:
        """Fractions of training, validation and test."""
        return (1 - self.validation - self.test, self.validation, self.test)

    @property
    def step_px(self) -> int:
        """Distance of neighboring patches, with the default resolved."""
        return self.stride or self.patch_size

    @property
    def of_patches(self) -> dict[str, Any]:
        """Options that all patches of a dataset share, for JSON; a folder with other values is rejected.

        ``mirror`` is not included, since it can be enabled later for pairs that failed; nor are the limits, since the
        index is derived from the metrics of all patches.
        """
        return {
            "patch_size": self.patch_size,
            "mpp": self.mpp,
            "stride": self.step_px,
            "local": self.registration.local,
            "spacing_um": self.registration.spacing_um,
            "side_by_side": self.side_by_side,
        }

    @property
    def reading(self) -> dict[str, str]:
        """Reading options that differ from the defaults; slides read with other options are extracted again."""
        chosen = {"tissue": self.tissue, "icc": self.icc, "on_read_error": self.on_read_error}
        return {
            one.name: chosen[one.name]
            for one in dataclasses.fields(self)
            if chosen.get(one.name, one.default) != one.default
        }

    @property
    def stated(self) -> dict[str, Any]:
        """All options that affect the dataset, for ``dataset.json``."""
        stated = dataclasses.asdict(self) | {"stride": self.step_px}
        return {name: value for name, value in stated.items() if name != "workers"}
