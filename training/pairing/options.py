# ruff: noqa: RUF009 (`_option` only makes a field)
"""How to make a paired data set: one configuration, whose fields are the options of ``wsi2ihc pairs``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, get_args

from wsi2ihc.errors import OptionError
from wsi2ihc.notation import MOST_SEED, MOST_WORKERS, check_bounds
from wsi2ihc.registration.options import RegistrationOptions
from wsi2ihc.slide.resolution import MPP_RANGE
from wsi2ihc.translation.options import ColourPolicy, ReadErrorPolicy

from ..data.pairs import LARGEST_SIDE_PX
from .cells import Tissue
from .filters import Limits
from .splitting import Shares

LEAST_PATCH_PX = 64
"""Smaller patches hold too few cells for anything to be measured."""

LEAST_STRIDE_PX = 64
"""A slide of 100,000² px has two million places then."""

MOST_STRIDE_PX = 1_000_000


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsOptions:
    """Options of `build_pairs`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is impossible.
    """

    patch_size: int = _option(1024, "Side of the patches in px.")
    mpp: float = _option(0.46, "Resolution of the patches in µm per px.")
    stride: int = _option(0, "Distance of neighbouring patches in px (0: the side of a patch).")
    validation: float = _option(0.1, "Share of the patients for validation.")
    test: float = _option(0.1, "Share of the patients for test.")
    seed: int = _option(0, "Of the drawing of patients.")
    stain: str | None = _option(None, "Name of the IHC stain, such as HER2; models trained on the data carry it.")
    licence: str | None = _option(None, "Licence of the data; models trained on them carry it.")
    name: str | None = _option(None, "Name of the data set; models carry it (default: its folder's).")
    side_by_side: bool = _option(False, "Write each pair as one image, the H&E left, the IHC right.")
    tissue: Tissue = _option(
        "auto", "auto, or none (everything is tissue); the manifest's column tissue says otherwise of single slides."
    )
    icc: ColourPolicy = _option("keep", "Keep the slides' colors, or convert them to sRGB; translate with the same.")
    on_read_error: ReadErrorPolicy = _option(
        "fail", "What to do where a slide cannot be read: fail, or leave out the patches that lie there (glass)."
    )
    workers: int = _option(0, "Pairs of slides that are worked on at once (0: as many as there are cores, up to 8).")
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
            raise OptionError(f"--mpp must lie between {MPP_RANGE[0]} and {MPP_RANGE[1]} µm per px, not {self.mpp}")
        for name in ("validation", "test"):
            share = getattr(self, name)
            if not (math.isfinite(share) and 0 <= share < 1):
                raise OptionError(f"--{name} must be a share from 0 to below 1, not {share}")
        if self.validation + self.test >= 1:
            raise OptionError(f"--validation {self.validation:g} and --test {self.test:g} leave nothing for training")
        for name, kind in (("tissue", Tissue), ("icc", ColourPolicy), ("on_read_error", ReadErrorPolicy)):
            if getattr(self, name) not in get_args(kind):
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"{flag} is {' or '.join(get_args(kind))}, not {getattr(self, name)!r:.40}")
        check_bounds(self, {"seed": (0, MOST_SEED), "workers": (0, MOST_WORKERS)})

    @property
    def shares(self) -> Shares:
        """Of training, validation and test."""
        return (1 - self.validation - self.test, self.validation, self.test)

    @property
    def step_px(self) -> int:
        """Distance of neighbouring patches, the default filled in."""
        return self.stride or self.patch_size

    @property
    def of_patches(self) -> dict[str, Any]:
        """What all patches of a data set have in common, for JSON: a folder that was begun with others is refused.

        ``mirror`` is not among them. It widens the search, and pairs that were registered without it need no other
        one; so it can be allowed for those that failed.
        """
        return {
            "patch_size": self.patch_size,
            "mpp": self.mpp,
            "stride": self.step_px,
            "local": self.registration.local,
            "spacing_um": self.registration.spacing_um,
            "side_by_side": self.side_by_side,
            "limits": dataclasses.asdict(self.limits),
        }

    @property
    def reading(self) -> dict[str, str]:
        """How slides are read, where that is not the default; slides that were cut otherwise are cut again."""
        chosen = {"tissue": self.tissue, "icc": self.icc, "on_read_error": self.on_read_error}
        return {
            one.name: chosen[one.name]
            for one in dataclasses.fields(self)
            if chosen.get(one.name, one.default) != one.default
        }

    @property
    def stated(self) -> dict[str, Any]:
        """All options that can change the data set, for its ``dataset.json``."""
        stated = dataclasses.asdict(self) | {"stride": self.step_px}
        return {name: value for name, value in stated.items() if name != "workers"}
