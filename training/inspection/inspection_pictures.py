"""The pictures of an inspection: plots of what images look like, and patches to see a finding with one's own eyes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from wsi2ihc.arrays import RGBImage

from ..data import read_pair
from ..pairing.optical import FloatPlane, haematoxylin_of_he, haematoxylin_of_ihc
from ..pictures import picture_grid
from ..reporting.document import Estimate, Picture
from ..reporting.plots import bars
from .describing import ALL, STAINS, Description, Stain
from .fingerprints import turned
from .inspection_tables import FAMILIES, Family, Plot
from .leaks import TURNS, Leak
from .results import Inspection

SHOWN = 8
"""Rows of a grid."""

CHECKS = 8
"""Fields along each side of the checkerboard of two patches."""

DENSE_OD = 0.8
"""Density of haematoxylin above the patch's background that is shown in full colour."""

MOST_CATEGORIES = 12
"""Groups that one plot has room for."""


def look_pictures(descriptions: Sequence[Description]) -> list[Picture]:
    """Bars of every figure over levels; over splits or groups where no level is known."""
    title, chosen = _categories(descriptions)
    if len(chosen) < 2:
        return []
    return [
        Picture(
            f"plot_{family.name}_{number}",
            f"{plot.title} by {title}",
            bars(_series(plot, chosen), f"{plot.title} by {title}", plot.unit, x_title=title),
            "Mean over images; whiskers are one standard deviation, as far as there can be such values.",
        )
        for family in FAMILIES
        for number, plot in enumerate(family.plots, 1)
        if _is_known(family, chosen)
    ]


def _categories(descriptions: Sequence[Description]) -> tuple[str, dict[str, Description]]:
    whole = [one for one in descriptions if not one.group]
    if any(one.level != ALL for one in whole):
        last = whole[-1].split
        return "HER2 level", {one.level: one for one in whole if one.split == last}
    groups = {one.group: one for one in descriptions if one.group}
    if 2 <= len(groups) <= MOST_CATEGORIES:
        return "group", groups
    return "split", {one.split: one for one in whole}


def _is_known(family: Family, chosen: Mapping[str, Description]) -> bool:
    return any(
        np.isfinite(one.looks[stain][name].mean) for one in chosen.values() for stain in STAINS for name in family.names
    )


def _series(plot: Plot, chosen: Mapping[str, Description]) -> dict[str, dict[str, Estimate]]:
    return {
        f"{stain} {label}".strip(): {
            category: _estimate(one, stain, name, plot.least) for category, one in chosen.items()
        }
        for stain in STAINS
        for name, label in plot.figures.items()
    }


def _estimate(one: Description, stain: Stain, name: str, least: float) -> Estimate:
    spread = one.looks[stain][name]
    if not np.isfinite(spread.mean):
        return Estimate(None, reason="no images" if not one.pairs else "µm per px unknown")
    if not np.isfinite(spread.deviation):
        return Estimate(spread.mean)
    return Estimate(spread.mean, max(spread.mean - spread.deviation, least), spread.mean + spread.deviation)


def misaligned_picture(inspection: Inspection) -> Iterator[Picture]:
    """The worst pairs: both images, and the haematoxylin of both over each other."""
    chosen = inspection.alignment.misaligned[:SHOWN]
    if not chosen:
        return
    rows, captions = [], []
    for one in chosen:
        he, ihc = (np.ascontiguousarray(image) for image in read_pair(inspection.data.pairs[one.number]))
        rows.append((he, ihc, haematoxylin_overlay(he, ihc)))
        correlation = "not known" if one.correlation is None else f"{one.correlation:.2f}"
        residual = inspection.residual(one.residual_um)
        offset = "not known" if residual is None else f"{residual:.1f}"
        captions.append(f"{inspection.name(one.number)}: correlation {correlation}, residual {offset}")
    yield Picture(
        "misaligned",
        "The worst pairs",
        picture_grid(rows, ("H&E", "IHC", "haematoxylin of both"), captions),
        "Right: haematoxylin of the H&E in red, that of the IHC in cyan; where both lie on each other they are dark. "
        f"Residuals are in {inspection.unit}.",
        "photograph",
    )


def haematoxylin_overlay(he: RGBImage, ihc: RGBImage) -> RGBImage:
    """Haematoxylin of the H&E in red over that of the IHC in cyan, on white: (rows, columns, 3)."""
    first, second = (1 - _amount(plane) for plane in (haematoxylin_of_he(he), haematoxylin_of_ihc(ihc)))
    return np.rint(255 * np.stack([second, first, first], axis=-1)).astype(np.uint8)


def _amount(density: FloatPlane) -> FloatPlane:
    """0 for the background, 1 for what is dense."""
    return np.asarray(np.clip((density - np.percentile(density, 5)) / DENSE_OD, 0, 1), np.float32)


def leak_picture(inspection: Inspection) -> Iterator[Picture]:
    """Patches that share tissue, those that matter most first, and how they lie on each other."""
    chosen = inspection.leaks[:SHOWN]
    if not chosen:
        return
    rows, captions = [], []
    for leak in chosen:
        place = 1 if leak.stains == "IHC" else 0
        first, second = (read_pair(inspection.data.pairs[number])[place] for number in (leak.first, leak.second))
        first = np.stack([turned(first[..., channel], leak.turn) for channel in range(3)], axis=-1)
        rows.append((first, np.ascontiguousarray(second), checkerboard(first, second, leak.shift_px)))
        captions.append(_caption(inspection, leak))
    yield Picture(
        "same_tissue",
        "Patches that show the same tissue",
        picture_grid(rows, ("first", "second", "both"), captions),
        "The first is turned into the second's orientation. Right: the second, with fields of the first where both "
        "lie on each other; structures go on across the fields' borders if it is the same tissue.",
        "photograph",
    )


def checkerboard(first: RGBImage, second: RGBImage, shift_px: tuple[float, float]) -> RGBImage:
    """The second image, with fields of the first, whose centre comes to lie so far (x, y) from the second's."""
    height, width = second.shape[:2]
    left = shift_px[0] + (width - first.shape[1]) / 2
    above = shift_px[1] + (height - first.shape[0]) / 2
    matrix = np.array([[1, 0, left], [0, 1, above]])
    shifted = cv2.warpAffine(np.ascontiguousarray(first), matrix, (width, height))
    # only px that lie wholly in the first: others are mixed with the black around it
    is_covered = cv2.warpAffine(np.full(first.shape[:2], 255, np.uint8), matrix, (width, height)) == 255
    side = max(1, -(-max(width, height) // CHECKS))
    y, x = np.indices((height, width)) // side
    return np.where((is_covered & ((x + y) % 2 == 0))[..., np.newaxis], shifted, second).astype(np.uint8)


def _caption(inspection: Inspection, leak: Leak) -> str:
    where = f"different {leak.between}" if leak.between else "the same split and group"
    turn = f", {TURNS[leak.turn]}" if leak.turn else ""
    return (
        f"{inspection.name(leak.first)} and {inspection.name(leak.second)} ({leak.stains}): {where}, {leak.kind}, "
        f"{leak.share:.0%}{turn}, correlation {leak.correlation:.2f}"
    )
