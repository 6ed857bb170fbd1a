"""Report of an inspection: text, tables and figures.

`report_of` assembles the sections; each has functions for its tables and figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from wsi2ihc.geometry import RGBImage
from wsi2ihc.text import pluralize

from ..data import read_pair
from ..image_grid import image_grid_figure
from ..pairs.quality import MATCHED_AT_UM, FloatPlane, hematoxylin_of_he, hematoxylin_of_ihc
from ..reports.document import Cell, Column, Estimate, Figure, Report, Section, Table
from ..reports.plots import bars
from .alignment import (
    ASSUMED_MPP,
    MAX_RESIDUAL_UM,
    MIN_MISMATCHED_PAIRS,
    MIN_SIDE_UM,
    NO_BETTER,
    AlignmentFindings,
)
from .duplicates import BOUNDARIES, MAX_SIDE_PX, ORIENTATIONS, Duplicate, reoriented
from .findings import Inspection, warnings_of
from .image_stats import ALL, STAINS, Description, Stain
from .options import InspectOptions

MAX_ROWS = 100
"""Maximum rows of a table of findings; ``report.json`` contains all of them."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Statistics that share a plot, with their labels in the legend, and the lowest possible value."""

    title: str
    unit: str
    statistics: Mapping[str, str]
    minimum: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """Statistics that share a table, with their column headers."""

    name: str
    title: str
    columns: Mapping[str, Column]
    plots: tuple[Plot, ...]
    notes: tuple[str, ...] = ()


FAMILIES = (
    Family(
        "color",
        "Mean color",
        {name: Column(name, 1) for name in ("red", "green", "blue")},
        (Plot("Mean color", "level, 0 to 255", {name: name for name in ("red", "green", "blue")}),),
        ("Levels of 0 to 255.",),
    ),
    Family(
        "sharpness",
        "Sharpness",
        {"laplacian_variance": Column("variance of the Laplacian", 0), "sharpness": Column("fine over coarse", 2)},
        (
            Plot("Variance of the Laplacian", "squared gray levels", {"laplacian_variance": ""}),
            Plot("Fine over coarse structure", "ratio", {"sharpness": ""}),
        ),
        (
            "Variance of the Laplacian of luminance (3×3, four neighbors), in squared gray levels: commonly reported. "
            "It increases with contrast and with the amount of tissue.",
            "Fine over coarse: ratio of the standard deviations of optical density below 1 µm and from 1 to 4 µm, "
            "independent of stain and amount of tissue. About 0.35 to 1.3 in focus, below 0.2 out of focus. It "
            "requires the resolution.",
        ),
    ),
    Family(
        "range",
        "Dynamic range and contrast",
        {
            "dynamic_range": Column("dynamic range", 1),
            "rms_contrast": Column("RMS contrast", 1),
            "michelson_contrast": Column("Michelson contrast", 3),
        },
        (
            Plot("Dynamic range", "gray levels", {"dynamic_range": ""}),
            Plot("RMS contrast", "gray levels", {"rms_contrast": ""}),
        ),
        (
            "Of luminance (Rec. 601). Dynamic range: from the 1st to the 99th percentile. RMS contrast: standard "
            "deviation. Michelson contrast: difference of these percentiles over their sum.",
        ),
    ),
    Family(
        "texture",
        "Texture",
        {
            "texture_contrast": Column("contrast", 2),
            "texture_homogeneity": Column("homogeneity", 3),
            "texture_energy": Column("energy", 3),
            "texture_correlation": Column("correlation", 3),
        },
        (
            Plot("Texture: contrast", "squared levels of 64", {"texture_contrast": ""}),
            Plot("Texture: homogeneity", "0 to 1", {"texture_homogeneity": ""}),
            Plot("Texture: energy", "0 to 1", {"texture_energy": ""}),
            Plot("Texture: correlation", "-1 to 1", {"texture_correlation": ""}, -1.0),
        ),
        (
            "Co-occurrence of luminance in 64 gray levels at distance 1, symmetric, mean of 0°, 45°, 90° and 135° "
            "(Haralick 1973; equal to scikit-image's graycomatrix and graycoprops).",
        ),
    ),
)


def count_table(descriptions: Sequence[Description]) -> Table:
    """Return the numbers of pairs, groups, slides and patients by split and level."""
    rows = tuple(
        (one.split, one.level, one.pairs, one.groups, one.slides, one.patients) for one in descriptions if not one.group
    )
    heads = ("split", "HER2", "pairs", "groups", "slides", "patients")
    return Table("counts", "Counts", tuple(Column(head, 0) for head in heads), rows)


def statistics_tables(descriptions: Sequence[Description]) -> Iterator[Table]:
    """Yield one table per family of statistics, with a row for each split, level and stain."""
    has_groups = any(one.group for one in descriptions)
    for family in FAMILIES:
        heads = [Column("split"), Column("HER2"), *([Column("group")] if has_groups else []), Column("stain"),
                 Column("pairs", 0)]  # fmt: skip
        for column in family.columns.values():
            heads += [column, Column(f"{column.title} SD", column.digits)]
        rows: list[tuple[Cell, ...]] = []
        for one, stain in itertools.product(descriptions, STAINS):
            spreads = [one.statistics[stain][name] for name in family.columns]
            values = [known(value) for spread in spreads for value in (spread.mean, spread.deviation)]
            rows.append((one.split, one.level, *([one.group or ALL] if has_groups else []), stain, one.pairs, *values))
        notes = ("Means over images, and their standard deviations (SD).", *family.notes)
        yield Table(family.name, family.title, tuple(heads), tuple(rows), notes)


def duplicate_tables(inspection: Inspection) -> Iterator[Table]:
    """Yield tables of duplicate tissue between splits, between groups and within them."""
    titles = {
        "splits": "Between splits",
        "groups": "Between groups of one split" if inspection.is_split else "Between groups",
        "": "Within one group" if inspection.data.grouped_by else "Within one split",
    }
    if not inspection.is_split and not inspection.data.grouped_by:
        titles[""] = "In the whole dataset"
    heads = (
        Column("first"), Column("second"), Column("splits"), Column("groups"), Column("kind"), Column("stain"),
        Column("orientation of the first"), Column("shift x (px)", 0), Column("shift y (px)", 0), Column("overlap", 2),
        Column("correlation", 2),
    )  # fmt: skip
    for between in BOUNDARIES:
        if duplicates := [one for one in inspection.duplicates if one.between == between]:
            name = f"same_tissue_between_{between}" if between else "same_tissue_within"
            rows = tuple(_duplicate_row(inspection, one) for one in duplicates[:MAX_ROWS])
            yield Table(name, f"{titles[between]}: {len(duplicates):,}", heads, rows, _others(len(duplicates)))


def _others(found: int) -> tuple[str, ...]:
    return (f"The {found - MAX_ROWS:,} others are in report.json.",) if found > MAX_ROWS else ()


def _duplicate_row(inspection: Inspection, one: Duplicate) -> tuple[Cell, ...]:
    first, second = inspection.data.pairs[one.first], inspection.data.pairs[one.second]
    shift_x, shift_y = map(round, one.shift_px)
    return (
        inspection.name(one.first), inspection.name(one.second), _both(first.role, second.role),
        _both(first.group, second.group), one.kind, one.stains, ORIENTATIONS[one.orientation], shift_x, shift_y,
        one.overlap, one.correlation,
    )  # fmt: skip


def _both(one: str | None, other: str | None) -> str:
    return (one or "") if one == other else f"{one or '–'}, {other or '–'}"


def misaligned_table(inspection: Inspection) -> Table | None:
    """Return the misaligned pairs, the worst first; None if there are none."""
    found = inspection.alignment.misaligned
    if not found:
        return None
    rows = tuple(
        (inspection.name(one.number), one.correlation, one.chance, inspection.residual(one.residual_um), one.reason)
        for one in found[:MAX_ROWS]
    )
    heads = (
        Column("pair"), Column("correlation", 2), Column("by chance", 2), Column(f"residual ({inspection.unit})", 1),
        Column("reason"),
    )  # fmt: skip
    notes = (
        "By chance: 99th percentile of the correlation of this H&E with the IHC of other pairs.",
        "Empty: too little structure for a comparison.",
        *_others(len(found)),
    )
    return Table("misaligned", f"Misaligned pairs: {len(found):,}", heads, rows, notes)


def known(value: float) -> float | None:
    """Return None for NaN and infinity."""
    return value if math.isfinite(value) else None


MAX_EXAMPLES = 8
"""Maximum rows of an image grid."""

CHECKS = 8
"""Squares along each side of the checkerboard of two patches."""

DENSE_OD = 0.8
"""Density of hematoxylin above the background that is shown in full color."""

MAX_CATEGORIES = 12
"""Maximum groups in one plot."""


def statistics_figures(descriptions: Sequence[Description]) -> Iterator[Figure]:
    """Yield bar plots of every statistic by level, or by split or group if no level is known."""
    title, chosen = _categories(descriptions)
    if len(chosen) < 2:
        return
    for family in FAMILIES:
        spreads = [one.statistics[stain] for one in chosen.values() for stain in STAINS]
        if not any(math.isfinite(spread[name].mean) for spread in spreads for name in family.columns):
            continue
        for number, plot in enumerate(family.plots, 1):
            series = {
                f"{stain} {label}".strip(): {
                    category: _estimate(one, stain, name, plot.minimum) for category, one in chosen.items()
                }
                for stain in STAINS
                for name, label in plot.statistics.items()
            }
            heading = f"{plot.title} by {title}"
            image = bars(series, heading, plot.unit, x_title=title)
            caption = "Mean over images; whiskers show one standard deviation, clipped to possible values."
            yield Figure(f"plot_{family.name}_{number}", heading, image, caption)


def _categories(descriptions: Sequence[Description]) -> tuple[str, dict[str, Description]]:
    ungrouped = [one for one in descriptions if not one.group]
    if any(one.level != ALL for one in ungrouped):
        last = ungrouped[-1].split
        return "HER2 level", {one.level: one for one in ungrouped if one.split == last}
    groups = {one.group: one for one in descriptions if one.group}
    if 2 <= len(groups) <= MAX_CATEGORIES:
        return "group", groups
    return "split", {one.split: one for one in ungrouped}


def _estimate(one: Description, stain: Stain, name: str, minimum: float) -> Estimate:
    spread = one.statistics[stain][name]
    if not np.isfinite(spread.mean):
        return Estimate(None, reason="no images" if not one.pairs else "resolution unknown")
    if not np.isfinite(spread.deviation):
        return Estimate(spread.mean)
    return Estimate(spread.mean, max(spread.mean - spread.deviation, minimum), spread.mean + spread.deviation)


def misaligned_figure(inspection: Inspection) -> Figure | None:
    """Return a figure of the worst pairs: both images and an overlay of their hematoxylin; None if there are none."""
    if not inspection.alignment.misaligned:
        return None
    rows, captions = [], []
    for one in inspection.alignment.misaligned[:MAX_EXAMPLES]:
        he, ihc = (np.ascontiguousarray(image) for image in read_pair(inspection.data.pairs[one.number]))
        rows.append((he, ihc, hematoxylin_overlay(he, ihc)))
        correlation = "unknown" if one.correlation is None else f"{one.correlation:.2f}"
        residual = inspection.residual(one.residual_um)
        offset = "unknown" if residual is None else f"{residual:.1f}"
        captions.append(f"{inspection.name(one.number)}: correlation {correlation}, residual {offset}")
    return Figure(
        "misaligned",
        "The worst pairs",
        image_grid_figure(rows, ("H&E", "IHC", "hematoxylin of both"), captions),
        "Right: hematoxylin of the H&E in red and of the IHC in cyan; where both coincide, the overlay is dark. "
        f"Residuals are in {inspection.unit}.",
        "photograph",
    )


def hematoxylin_overlay(he: RGBImage, ihc: RGBImage) -> RGBImage:
    """Return an overlay of the hematoxylin of the H&E in red and of the IHC in cyan, on white: (rows, columns, 3)."""
    first, second = (1 - _amount(plane) for plane in (hematoxylin_of_he(he), hematoxylin_of_ihc(ihc)))
    return np.rint(255 * np.stack([second, first, first], axis=-1)).astype(np.uint8)


def _amount(density: FloatPlane) -> FloatPlane:
    """Scale densities to 0 for background and 1 for `DENSE_OD`."""
    return np.asarray(np.clip((density - np.percentile(density, 5)) / DENSE_OD, 0, 1), np.float32)


def duplicate_figure(inspection: Inspection) -> Figure | None:
    """Return a figure of patches with duplicate tissue and their checkerboards; None if there are none."""
    if not inspection.duplicates:
        return None
    rows, captions = [], []
    for one in inspection.duplicates[:MAX_EXAMPLES]:
        stain = 1 if one.stains == "IHC" else 0
        first, second = (read_pair(inspection.data.pairs[number])[stain] for number in (one.first, one.second))
        first = np.stack([reoriented(first[..., channel], one.orientation) for channel in range(3)], axis=-1)
        rows.append((first, np.ascontiguousarray(second), checkerboard(first, second, one.shift_px)))
        where = f"different {one.between}" if one.between else "the same split and group"
        orientation = f", {ORIENTATIONS[one.orientation]}" if one.orientation else ""
        captions.append(
            f"{inspection.name(one.first)} and {inspection.name(one.second)} ({one.stains}): {where}, {one.kind}, "
            f"{one.overlap:.0%}{orientation}, correlation {one.correlation:.2f}"
        )
    return Figure(
        "same_tissue",
        "Patches that show the same tissue",
        image_grid_figure(rows, ("first", "second", "both"), captions),
        "The first patch is shown in the orientation of the second. Right: checkerboard of both in the common area; "
        "structures continue across the edges of the squares if the tissue is the same.",
        "photograph",
    )


def checkerboard(first: RGBImage, second: RGBImage, shift_px: tuple[float, float]) -> RGBImage:
    """Return a checkerboard of the second image and the first, shifted by (x, y) between the centers."""
    height, width = second.shape[:2]
    left = shift_px[0] + (width - first.shape[1]) / 2
    above = shift_px[1] + (height - first.shape[0]) / 2
    matrix = np.array([[1, 0, left], [0, 1, above]])
    shifted = cv2.warpAffine(np.ascontiguousarray(first), matrix, (width, height))
    # only px entirely inside the first: others are mixed with the black border
    is_covered = cv2.warpAffine(np.full(first.shape[:2], 255, np.uint8), matrix, (width, height)) == 255
    side = max(1, -(-max(width, height) // CHECKS))
    y, x = np.indices((height, width)) // side
    return np.where((is_covered & ((x + y) % 2 == 0))[..., np.newaxis], shifted, second).astype(np.uint8)


STATISTICS_TEXT = (
    "Color, sharpness, dynamic range, contrast and texture of both stains, as in figures 6 to 9 of Rehmat et al. 2025 "
    "(arXiv:2506.18371)."
)

ALIGNMENT_LIMITS = (
    "Not detected: rotations of the IHC about the center of the patch of up to 10° (of 65 patches of 128 µm, 3 were "
    "found at 10°, 37 at 15°, 60 at 20°) and changes of scale of up to 20%, since the residual is a median over the "
    "patch."
)


def report_of(inspection: Inspection, options: InspectOptions) -> Report:
    """Return the report of an inspection, with figures if the options request them."""
    warnings = warnings_of(inspection)
    sections = (
        Section("Problems", warnings or ("No problems were found.",)),
        Section("Counts", contents=(count_table(inspection.descriptions),)),
        _same_tissue(inspection, options),
        _alignment(inspection, options),
        Section(
            "Image statistics",
            (STATISTICS_TEXT,),
            (
                *(statistics_figures(inspection.descriptions) if options.figures else ()),
                *statistics_tables(inspection.descriptions),
            ),
        ),
    )
    data = inspection.data
    resolution = "µm/px unknown" if data.mpp is None else f"{data.mpp:g} µm/px"
    grouped = f", grouped by {data.grouped_by}" if data.grouped_by else ""
    subject = (
        f"{data.folder.resolve().name}: {pluralize(len(data.pairs), 'pair')} of {inspection.sizes} px, {resolution}; "
        f"{data.layout}{grouped}."
    )
    lead = (subject, *_findings(inspection))
    return Report("Dataset inspection", lead, sections, _data(inspection, options, warnings))


def _findings(inspection: Inspection) -> tuple[str, str]:
    """Return one line on duplicate tissue and one on alignment."""
    counts = {between: sum(one.between == between for one in inspection.duplicates) for between in BOUNDARIES}
    within = "within one group or split" if inspection.is_split or inspection.data.grouped_by else "in all"
    alignment, pairs = inspection.alignment, len(inspection.data.pairs)
    median = "" if alignment.median_correlation is None else f" (median correlation {alignment.median_correlation:.2f})"
    return (
        f"Pairs of patches with the same tissue: {counts['splits']:,} between splits, {counts['groups']:,} between "
        f"groups, {counts['']:,} {within}.",
        f"Misaligned: {len(alignment.misaligned):,} of {pluralize(pairs, 'pair')}{median}.",
    )


def _same_tissue(inspection: Inspection, options: InspectOptions) -> Section:
    text = (
        "Structures of about the size of a nucleus are matched between all H&E patches; matches are confirmed by the "
        "correlation of the common area. Mirrored patches and rotations by right angles are found, too. Not detected: "
        "rotations by other angles from 3° (of 100 patches, 97 were found at 2°, 16 at 3°, 3 at 4°), changes of scale "
        f"from 5% (98 were found at 3%, 24 to 40 at 5%, 3 at 8%), common strips narrower than 30 px (in patches "
        f"reduced to at most {MAX_SIDE_PX} px), and empty background. The overlap is relative to the smaller patch."
    )
    figure = duplicate_figure(inspection) if options.figures else None
    contents: tuple[Table | Figure, ...] = (*([figure] if figure else []), *duplicate_tables(inspection))
    return Section("Same tissue in several patches", (text,), contents)


def _alignment(inspection: Inspection, options: InspectOptions) -> Section:
    alignment = inspection.alignment
    limit = inspection.residual(MAX_RESIDUAL_UM)
    text = [
        "The hematoxylin of H&E and IHC is compared at the scale of nuclei and groups of cells. The table lists pairs "
        f"with a residual above {limit:g} {inspection.unit}"
        + (
            "; there are too few pairs to detect outliers of the correlation."
            if alignment.least_correlation is None
            else f", and those with a correlation below {alignment.least_correlation:.2f}: 3.5 robust standard "
            "deviations below the median, after Fisher's transform, unless it is closer to 1 than to chance and the "
            f"residual is at most {inspection.residual(MATCHED_AT_UM):g} {inspection.unit}."
        ),
        _chance(alignment),
        ALIGNMENT_LIMITS,
    ]
    if inspection.data.mpp is None:
        text.append(
            f"The resolution is unknown; {ASSUMED_MPP:g} µm/px is assumed, and residuals are given in px. Specify "
            "the resolution with --mpp."
        )
    if alignment.unknown:
        text.append(f"Pairs with too little structure for a comparison: {alignment.unknown:,}.")
    figure = misaligned_figure(inspection) if options.figures else None
    table = misaligned_table(inspection)
    contents: tuple[Table | Figure, ...] = (*([figure] if figure else []), *([table] if table else []))
    return Section("Alignment of H&E and IHC", tuple(text), contents)


def _chance(alignment: AlignmentFindings) -> str:
    if alignment.median_chance is None:
        return (
            "The comparison with chance is not possible: it requires "
            f"{MIN_MISMATCHED_PAIRS + 1} pairs of the same size with structure, of at least {MIN_SIDE_UM:g} µm."
        )
    return (
        f"It also lists pairs that correlate {NO_BETTER}: their correlation does not exceed the 99th percentile (for "
        "fewer than 100 pairs, the maximum) of the correlations of their H&E with the IHC of other pairs, "
        f"{alignment.median_chance:.2f} in the median. This detects 99% of mismatched pairs, however many there are. "
        "Correct pairs of small patches of serial sections, with low correlation, may also be listed."
    )


def _data(inspection: Inspection, options: InspectOptions, warnings: tuple[str, ...]) -> dict[str, Any]:
    data, alignment = inspection.data, inspection.alignment
    unit = "px" if data.mpp is None else "um"
    return {
        "folder": data.folder.resolve().name,
        "layout": data.layout,
        "grouped_by": data.grouped_by or None,
        "mpp": data.mpp,
        "pairs": len(data.pairs),
        "smallest_px": [inspection.sizes.smallest.width, inspection.sizes.smallest.height],
        "largest_px": [inspection.sizes.largest.width, inspection.sizes.largest.height],
        "options": options.stated(),
        "warnings": list(warnings),
        "counts": [
            {
                "split": one.split, "her2": one.level, "group": one.group or None, "pairs": one.pairs,
                "groups": one.groups, "slides": one.slides, "patients": one.patients,
                "statistics": {
                    stain: {
                        name: {"mean": known(spread.mean), "sd": known(spread.deviation)}
                        for name, spread in spreads.items()
                    }
                    for stain, spreads in one.statistics.items()
                },
            }
            for one in inspection.descriptions
        ],
        "same_tissue": [
            {
                "first": inspection.name(one.first), "second": inspection.name(one.second),
                "between": one.between or None, "kind": one.kind, "stains": one.stains,
                "orientation": ORIENTATIONS[one.orientation] or None, "shift_px": list(one.shift_px),
                "overlap": one.overlap, "correlation": one.correlation,
            }
            for one in inspection.duplicates
        ],
        "alignment": {
            "median_correlation": alignment.median_correlation,
            f"median_residual_{unit}": inspection.residual(alignment.median_residual_um),
            "least_correlation": alignment.least_correlation,
            "median_chance_correlation": alignment.median_chance,
            "no_better_than_chance": alignment.no_better,
            "not_comparable": alignment.unknown,
            "misaligned": [
                {
                    "pair": inspection.name(one.number), "correlation": one.correlation,
                    "chance_correlation": one.chance, f"residual_{unit}": inspection.residual(one.residual_um),
                    "reason": one.reason,
                }
                for one in alignment.misaligned
            ],
        },
    }  # fmt: skip
