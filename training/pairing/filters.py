"""Which patches are good enough to learn from: what is measured of each, and the limits.

Some limits leave out what is no pair (no tissue, outside of the slide, misplaced), the others what would teach the
wrong thing (out of focus, folded, under ink). The figures are kept of patches that are left out, too: they show what
another limit would have done.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from wsi2ihc.errors import OptionError
from wsi2ihc.notation import flag

Reason = Literal["tissue", "outside", "residual", "correlation", "blur", "fold", "pen"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Why a patch is left out; of several, the first in this order is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchFigures:
    """What was measured of one patch. None: not measured, or nothing there that could be.

    tissue_he:     share of the patch that is tissue of the H&E, 0 to 1: by the slide's tissue mask, or by the patch's
                   own px, whichever is less; by the mask alone where that is too little for the patch to be read
    tissue_ihc:    the same of the IHC
    valid:         share of the px that lie inside the IHC slide
    correlation:   of the haematoxylin of both, at zero offset, -1 to 1
    residual_um:   median offset that blocks of the patch still show
    sharpness_he:  fine structure relative to coarse; 0.2 and less where out of focus, 0.35 to 1.5 where not
    sharpness_ihc: the same of the IHC
    folds:         share of the patch that is far denser than the slide's tissue; the greater of both slides
    pen:           share of the patch in colours of ink; the greater of both slides
    stained:       share of the valid px whose density of DAB exceeds `measuring.STAINED_FROM`
    """

    tissue_he: float
    tissue_ihc: float
    valid: float
    correlation: float | None = None
    residual_um: float | None = None
    sharpness_he: float | None = None
    sharpness_ihc: float | None = None
    folds: float | None = None
    pen: float | None = None
    stained: float | None = None


def _limit(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a patch must fulfil; each field's text is the help of its command-line option.

    Each limit has a value that switches it off. A figure that could not be measured fails no limit, see `why_rejected`.

    Raises
    ------
    OptionError
        If a limit has an impossible value.
    """

    min_tissue: float = _limit(0.5, "Least share of tissue, in the H&E and in the IHC (0: any).")
    min_valid: float = _limit(1.0, "Least share of px that lie inside the IHC slide (0: any).")
    max_residual_um: float = _limit(10.0, "Greatest measured offset between H&E and IHC, in µm (0: any).")
    min_correlation: float = _limit(0.15, "Least correlation of the haematoxylin of both (-1: any).")
    min_sharpness: float = _limit(0.25, "Least sharpness of either (0: any).")
    max_folds: float = _limit(0.15, "Greatest share of folds, in either (1: any).")
    max_pen: float = _limit(0.05, "Greatest share of ink, in either (1: any).")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            least, most = _RANGES[one.name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise OptionError(f"{flag(one.name)} must be a number, {least:g} to {most:g}, not {value!r:.40}")


_RANGES = {
    "min_tissue": (0, 1), "min_valid": (0, 1), "max_residual_um": (0, 1e6), "min_correlation": (-1, 1),
    "min_sharpness": (0, 1e6), "max_folds": (0, 1), "max_pen": (0, 1),
}  # fmt: skip

LIMIT_OF: dict[Reason, tuple[str, str]] = {
    "tissue": ("min_tissue", "lower"),
    "outside": ("min_valid", "lower"),
    "residual": ("max_residual_um", "raise"),
    "correlation": ("min_correlation", "lower"),
    "blur": ("min_sharpness", "lower"),
    "fold": ("max_folds", "raise"),
    "pen": ("max_pen", "raise"),
}
"""The limit behind each reason, and how it is relaxed."""


def why_rejected(figures: PatchFigures, limits: Limits, *, proved: bool = True) -> Reason | Literal[""]:
    """The first reason, in the order of `REASONS`, why a patch is left out; "" if it is kept.

    What could not be measured fails no limit. Yet where nobody has ``proved`` the transform, a patch needs one of the
    figures that speak for it: of those without a residual and without a correlation nothing is known.
    """
    unknown = not proved and limits.min_correlation > -1 and figures.residual_um is None and figures.correlation is None
    failing = (reason for reason in REASONS if _fails(reason, figures, limits) or (unknown and reason == "correlation"))
    return next(failing, "")


def _fails(reason: Reason, figures: PatchFigures, limits: Limits) -> bool:
    if reason == "tissue":
        # Outside of the IHC slide there is none of its tissue either; that is told as what it is.
        lies_outside = _fails("outside", figures, limits)
        return (figures.tissue_he if lies_outside else min(figures.tissue_he, figures.tissue_ihc)) < limits.min_tissue
    if reason == "outside":
        return figures.valid < limits.min_valid
    if reason == "residual":
        return 0 < limits.max_residual_um < (figures.residual_um or 0.0)
    if reason == "correlation":
        return figures.correlation is not None and figures.correlation < limits.min_correlation
    if reason == "blur":
        known = [value for value in (figures.sharpness_he, figures.sharpness_ihc) if value is not None]
        return min(known, default=math.inf) < limits.min_sharpness
    if reason == "fold":
        return (figures.folds or 0.0) > limits.max_folds
    return (figures.pen or 0.0) > limits.max_pen
