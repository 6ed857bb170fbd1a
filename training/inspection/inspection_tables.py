"""The tables of an inspection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..reporting.document import Cell, Column, Table
from .describing import ALL, STAINS, Description, Stain
from .leaks import BETWEEN, TURNS, Leak
from .results import Inspection

MOST_ROWS = 100
"""Of a table of findings; ``report.json`` has them all."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Figures that are drawn together.

    figures:  names of `Looks`, and what tells them apart in the legend
    least:    value that none of them can have less of
    """

    title: str
    unit: str
    figures: Mapping[str, str]
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """Figures that belong together in a table.

    columns:  names of `Looks`, and their heads and digits
    """

    name: str
    title: str
    columns: Mapping[str, Column]
    plots: tuple[Plot, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)


FAMILIES = (
    Family(
        "colour",
        "Mean colour",
        {name: Column(name, 1) for name in ("red", "green", "blue")},
        (Plot("Mean colour", "level, 0 to 255", {name: name for name in ("red", "green", "blue")}),),
        ("Levels of 0 to 255.",),
    ),
    Family(
        "sharpness",
        "Sharpness",
        {"laplacian_variance": Column("variance of the Laplacian", 0), "sharpness": Column("fine over coarse", 2)},
        (
            Plot("Variance of the Laplacian", "squared grey levels", {"laplacian_variance": ""}),
            Plot("Fine over coarse structure", "ratio", {"sharpness": ""}),
        ),
        (
            "Variance of the Laplacian of luminance (3×3, four neighbours), in squared grey levels: what the field "
            "reports. It rises with contrast and with the share of tissue.",
            "Fine over coarse: standard deviations of optical density below 1 µm and from there to 4 µm; neither stain "
            "nor tissue changes it. About 0.35 to 1.3 in focus, 0.2 and less out of focus. It needs µm per px.",
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
            Plot("Dynamic range", "grey levels", {"dynamic_range": ""}),
            Plot("RMS contrast", "grey levels", {"rms_contrast": ""}),
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
            "Co-occurrence of luminance in 64 grey levels at distance 1, symmetric, mean of 0°, 45°, 90° and 135° "
            "(Haralick 1973; equal to scikit-image's graycomatrix and graycoprops).",
        ),
    ),
)


def count_table(descriptions: Sequence[Description]) -> Table:
    """How many pairs, groups, slides and patients each split and level has."""
    rows = tuple(
        (one.split, one.level, one.pairs, one.groups, one.slides, one.patients) for one in descriptions if not one.group
    )
    heads = ("split", "HER2", "pairs", "groups", "slides", "patients")
    return Table("counts", "Counts", tuple(Column(head, 0) for head in heads), rows)


def look_tables(descriptions: Sequence[Description]) -> list[Table]:
    """One table for each family of figures: a row for each split, level and stain."""
    has_groups = any(one.group for one in descriptions)
    return [
        Table(
            family.name,
            family.title,
            _heads(family, has_groups),
            tuple(_look_row(one, stain, family, has_groups) for one in descriptions for stain in STAINS),
            ("Means over images, and their standard deviations (SD).", *family.notes),
        )
        for family in FAMILIES
    ]


def _heads(family: Family, has_groups: bool) -> tuple[Column, ...]:
    figures = [
        head for column in family.columns.values() for head in (column, Column(f"{column.title} SD", column.digits))
    ]
    groups = [Column("group")] if has_groups else []
    return (Column("split"), Column("HER2"), *groups, Column("stain"), Column("pairs", 0), *figures)


def _look_row(one: Description, stain: Stain, family: Family, has_groups: bool) -> tuple[Cell, ...]:
    looks = one.looks[stain]
    figures = [value for name in family.names for value in (looks[name].mean, looks[name].deviation)]
    groups = [one.group or ALL] if has_groups else []
    return (one.split, one.level, *groups, stain, one.pairs, *(known(value) for value in figures))


def leak_tables(inspection: Inspection) -> list[Table]:
    """What shares tissue: between splits, between groups, and within them."""
    titles = {
        "splits": "Between splits",
        "groups": "Between groups of one split" if inspection.is_split else "Between groups",
        "": "Within one group" if inspection.data.grouped_by else "Within one split",
    }
    if not inspection.is_split and not inspection.data.grouped_by:
        titles[""] = "In the whole data set"
    tables = []
    for between in BETWEEN:
        if leaks := [one for one in inspection.leaks if one.between == between]:
            name = f"same_tissue_between_{between}" if between else "same_tissue_within"
            tables.append(_leak_table(inspection, name, titles[between], leaks))
    return tables


def _leak_table(inspection: Inspection, name: str, title: str, leaks: Sequence[Leak]) -> Table:
    rows = tuple(_leak_row(inspection, leak) for leak in leaks[:MOST_ROWS])
    heads = (
        Column("first"), Column("second"), Column("splits"), Column("groups"), Column("what"), Column("stain"),
        Column("turn of the first"), Column("shift x (px)", 0), Column("shift y (px)", 0), Column("common share", 2),
        Column("correlation", 2),
    )  # fmt: skip
    more = len(leaks) - len(rows)
    notes = (f"The {more:,} others are in report.json.",) if more else ()
    return Table(name, f"{title}: {len(leaks):,}", heads, rows, notes)


def _leak_row(inspection: Inspection, leak: Leak) -> tuple[Cell, ...]:
    first, second = inspection.data.pairs[leak.first], inspection.data.pairs[leak.second]
    return (
        inspection.name(leak.first),
        inspection.name(leak.second),
        _both(first.role, second.role),
        _both(first.group, second.group),
        leak.kind,
        leak.stains,
        TURNS[leak.turn],
        round(leak.shift_px[0]),
        round(leak.shift_px[1]),
        leak.share,
        leak.correlation,
    )


def _both(one: str | None, other: str | None) -> str:
    return (one or "") if one == other else f"{one or '–'}, {other or '–'}"


def misaligned_table(inspection: Inspection) -> Table | None:
    """The pairs that do not agree, the worst first; None if all do."""
    found = inspection.alignment.misaligned
    if not found:
        return None
    rows = tuple(
        (inspection.name(one.number), one.correlation, one.chance, inspection.residual(one.residual_um), one.reason)
        for one in found[:MOST_ROWS]
    )
    heads = (
        Column("pair"), Column("correlation", 2), Column("by chance", 2), Column(f"residual ({inspection.unit})", 1),
        Column("why"),
    )  # fmt: skip
    more = len(found) - len(rows)
    notes = (
        "By chance: correlation that one in 100 of the IHC of other pairs reaches with this H&E.",
        "Empty: nothing in it that could be compared.",
    )
    return Table("misaligned", f"Misaligned pairs: {len(found):,}", heads, rows,
                 (*notes, f"The {more:,} others are in report.json.") if more else notes)  # fmt: skip


def known(value: float) -> float | None:
    """None for what is not finite."""
    return value if math.isfinite(value) else None
