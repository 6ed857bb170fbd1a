"""An inspection as a report: what is in the data set, what is in it twice, and what does not agree."""

from __future__ import annotations

from typing import Any

from wsi2ihc.text import pluralize

from ..reporting.document import Picture, Report, Section, Table
from .describing import Spread
from .fingerprints import LONGEST_PX
from .inspection_pictures import leak_picture, look_pictures, misaligned_picture
from .inspection_tables import count_table, known, leak_tables, look_tables, misaligned_table
from .leaks import TURNS, Leak
from .misalignment import ASSUMED_MPP, MOST_RESIDUAL_UM, NO_BETTER, Alignment, Misaligned
from .options import InspectOptions
from .results import Inspection, warnings_of
from .strangers import LEAST_SIDE_UM, LEAST_STRANGERS, RARE

FIGURES = (
    "Colour, sharpness, dynamic range, contrast and texture of both stains, as in figures 6 to 9 of Rehmat et al. 2025 "
    "(arXiv:2506.18371)."
)


NOT_MISALIGNED = (
    "What is not found: an IHC that is turned about the patch's middle by 10° and less (of 65 patches of 128 µm, 3 "
    "were found at 10°, 37 at 15°, 60 at 20°), or changed in scale by 20 % and less, since the residual is a median "
    "over the patch."
)


def present(inspection: Inspection, options: InspectOptions) -> Report:
    """The report of an inspection, with pictures if the options want them."""
    warnings = warnings_of(inspection)
    sections = (
        Section("What is wrong", warnings or ("Nothing was found.",)),
        Section("Counts", contents=(count_table(inspection.descriptions),)),
        _same_tissue(inspection, options),
        _alignment(inspection, options),
        _looks(inspection, options),
    )
    lead = (_subject(inspection), *_findings(inspection))
    return Report("What is in the data set?", lead, sections, _data(inspection, options, warnings))


def _subject(inspection: Inspection) -> str:
    data = inspection.data
    resolution = "µm per px unknown" if data.mpp is None else f"{data.mpp:g} µm per px"
    grouped = f", grouped by {data.grouped_by}" if data.grouped_by else ""
    return (
        f"{_folder(inspection)}: {pluralize(len(data.pairs), 'pair')} of {inspection.sizes} px, {resolution}; "
        f"{data.layout}{grouped}."
    )


def _findings(inspection: Inspection) -> tuple[str, str]:
    """One line on tissue, and one on alignment."""
    counts = {between: sum(one.between == between for one in inspection.leaks) for between in ("splits", "groups", "")}
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
        "Places of about the size of a nucleus are compared between all H&E patches, and what several of them agree on "
        "is confirmed by the correlation of the common area. Patches that are mirrored or turned by right angles are "
        "found, too. What is not: tissue that is turned by another angle of 3° and more (of 100 patches, 97 were found "
        "at 2°, 16 at 3°, 3 at 4°), or changed in scale by 5 % and more (98 were found at 3 %, 24 to 40 at 5 %, 3 at "
        f"8 %); common strips that are narrower than 30 px (of patches reduced to at most {LONGEST_PX} px); and empty "
        "glass. Share: of the smaller patch."
    )
    contents: list[Table | Picture] = [*leak_tables(inspection)]
    if options.pictures:
        contents = [*leak_picture(inspection), *contents]
    return Section("Same tissue in several patches", (text,), tuple(contents))


def _alignment(inspection: Inspection, options: InspectOptions) -> Section:
    alignment = inspection.alignment
    limit = inspection.residual(MOST_RESIDUAL_UM)
    text = [
        "Compared is the haematoxylin of H&E and IHC, at the scale of nuclei and groups of cells. Listed are pairs "
        f"with a residual above {limit:g} {inspection.unit}"
        + (
            "; there are too few pairs to tell which correlations are far below the others."
            if alignment.least_correlation is None
            else f", and those with a correlation below {alignment.least_correlation:.2f}: 3.5 robust standard "
            "deviations below the median, after Fisher's transform."
        ),
        _chance(alignment),
        NOT_MISALIGNED,
    ]
    if inspection.data.mpp is None:
        text.append(
            f"µm per px is unknown; {ASSUMED_MPP:g} was assumed, and residuals are told in px. Give it with --mpp."
        )
    if alignment.unknown:
        text.append(f"Too little in them to be compared: {pluralize(alignment.unknown, 'pair')}.")
    contents: list[Table | Picture] = [*misaligned_picture(inspection)] if options.pictures else []
    if table := misaligned_table(inspection):
        contents.append(table)
    return Section("Alignment of H&E and IHC", tuple(text), tuple(contents))


def _chance(alignment: Alignment) -> str:
    if alignment.median_chance is None:
        return (
            "Whether pairs agree better than by chance is not known: of each size, "
            f"{LEAST_STRANGERS + 1} pairs with anything in them are needed, of {LEAST_SIDE_UM:g} µm and more."
        )
    return (
        f"Listed, too, are pairs that agree {NO_BETTER}: one in {RARE} of the IHC of other pairs (of fewer, any) "
        f"correlates as well with their H&E, for which it takes {alignment.median_chance:.2f} in the median. That "
        f"finds wrong pairs however many there are, but for one in {RARE}. Small patches of serial sections, which "
        "agree little, may be among them though they belong together."
    )


def _looks(inspection: Inspection, options: InspectOptions) -> Section:
    pictures = look_pictures(inspection.descriptions) if options.pictures else []
    return Section("What the images look like", (FIGURES,), (*pictures, *look_tables(inspection.descriptions)))


def _folder(inspection: Inspection) -> str:
    return inspection.data.folder.resolve().name


def _data(inspection: Inspection, options: InspectOptions, warnings: tuple[str, ...]) -> dict[str, Any]:
    data, alignment = inspection.data, inspection.alignment
    return {
        "folder": _folder(inspection),
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
                "looks": {
                    stain: {name: _spread(spread) for name, spread in figures.items()}
                    for stain, figures in one.looks.items()
                },
            }
            for one in inspection.descriptions
        ],
        "same_tissue": [_leak(inspection, one) for one in inspection.leaks],
        "alignment": {
            "median_correlation": alignment.median_correlation,
            f"median_residual_{_unit(inspection)}": inspection.residual(alignment.median_residual_um),
            "least_correlation": alignment.least_correlation,
            "median_chance_correlation": alignment.median_chance,
            "no_better_than_chance": alignment.no_better,
            "not_comparable": alignment.unknown,
            "misaligned": [_misaligned(inspection, one) for one in alignment.misaligned],
        },
    }  # fmt: skip


def _unit(inspection: Inspection) -> str:
    return "px" if inspection.data.mpp is None else "um"


def _spread(spread: Spread) -> dict[str, float | None]:
    return {"mean": known(spread.mean), "sd": known(spread.deviation)}


def _leak(inspection: Inspection, leak: Leak) -> dict[str, Any]:
    return {
        "first": inspection.name(leak.first),
        "second": inspection.name(leak.second),
        "between": leak.between or None,
        "kind": leak.kind,
        "stains": leak.stains,
        "turn": TURNS[leak.turn] or None,
        "shift_px": list(leak.shift_px),
        "share": leak.share,
        "correlation": leak.correlation,
    }


def _misaligned(inspection: Inspection, one: Misaligned) -> dict[str, Any]:
    return {
        "pair": inspection.name(one.number),
        "correlation": one.correlation,
        "chance_correlation": one.chance,
        f"residual_{_unit(inspection)}": inspection.residual(one.residual_um),
        "reason": one.reason,
    }
