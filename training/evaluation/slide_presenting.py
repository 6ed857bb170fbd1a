"""The evaluation of a slide as a report: maps of the stain and of the error beside the figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..reporting.document import Cell, Column, Estimate, Picture, Report, Section, Table
from ..reporting.plots import heat_map
from .origin import Origin
from .presenting import number, present
from .slides import SlideEvaluation, area_agreement


def present_slide(result: SlideEvaluation, *, seed: int = 0, resamples: int = 2000) -> Report:
    """The report of a virtual slide: that of its squares, with maps in front of the figures."""
    report = present(result.evaluation, seed=seed, resamples=resamples)
    summary, *rest = report.sections
    sections = (summary, _places(result), _overviews(result), _seams(result), *rest)
    return dataclasses.replace(report, sections=sections, data={**report.data, "slide": _data(result)})


def _places(result: SlideEvaluation) -> Section:
    agreement, difference = area_agreement(result.maps)
    squares = result.squares
    rows = (
        ("squares compared", len(squares.chosen)),
        ("squares with tissue of the reference, but little virtual tissue: left out", squares.missed),
        ("coverage: the reference's tissue that has virtual tissue, too", _or_none(squares.coverage)),
        ("correlation of stained areas of squares", _or_none(agreement)),
        ("mean difference of stained areas (absolute)", _or_none(difference)),
    )
    table = Table("places", "Agreement by place", (Column("what"), Column("value")), rows)
    return Section("By place", contents=(table, *_maps(result)))


def _maps(result: SlideEvaluation) -> Iterator[Picture]:
    maps, squares = result.maps, result.squares
    side_mm = squares.side_px * squares.mpp / 1000
    extent_mm = (squares.shape[1] * side_mm, squares.shape[0] * side_mm)
    areas = np.stack([maps.reference, maps.virtual])
    scale = float(np.nanmin(areas)), float(np.nanmax(areas))
    for name, title, values, limits, is_signed in (
        ("map_reference", "Stained area, reference", maps.reference, scale, False),
        ("map_virtual", "Stained area, virtual", maps.virtual, scale, False),
        ("map_error", "Stained area, virtual less reference", maps.virtual - maps.reference, None, True),
        ("map_correlation", "Stain R per pixel", maps.stain_r, (-1.0, 1.0), True),
    ):
        plot = heat_map(np.asarray(values, np.float64), title, "", extent_mm, limits=limits, symmetric=is_signed)
        yield Picture(name, title, plot, "Grey: squares that do not have tissue on both slides.")


def _overviews(result: SlideEvaluation) -> Section:
    virtual, reference = result.overviews
    return Section(
        "The slides",
        contents=(
            Picture("overview_reference", "Reference", reference, "As it lies on the virtual slide.", "photograph"),
            Picture("overview_virtual", "Virtual", virtual, "", "photograph"),
        ),
    )


def _seams(result: SlideEvaluation) -> Section:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (one.what, *(_or_none(value) for value in (one.contrast, one.z, one.shade_z, one.shade_step)), one.borders)
        for one in result.seams
    )
    heads = (Column("borders of"), Column("contrast"), Column("z", 2), Column("shade z", 2),
             Column("shade step, gray levels", 1), Column("windows", 0))  # fmt: skip
    source = (
        "Steps that the H&E slide has there are divided out."
        if result.evaluation.facts.get("he")
        else "Without --he, steps of the H&E slide's own tiles cannot be told apart, and shades are unknown."
    )
    how = (
        "Steps at the borders of a grid over those at other multiples of 8 px, and differences in shade over those on "
        f"either side; within ±3, and up to 3 of the shade, nothing stands out. {source}"
    )
    table = Table("seams", "Steps at borders", heads, rows, (how, _reported(result.origin)))
    return Section("Seams", contents=(table,))


def _reported(origin: Origin) -> str:
    if not origin.is_reported:
        return "There is no report of the translation beside the slide."
    if origin.seams is None:
        return "The translation reported that there can be no seams: its model looks at one pixel at a time."
    z, shade_z = origin.seams.get("z"), origin.seams.get("shade_z")
    told = "too few borders to tell" if z is None else f"z = {z:.2f}"
    told += "" if shade_z is None else f", shade z = {shade_z:.2f}"
    return f"The translation itself reported of the borders of its cores, before compression: {told}."


def _or_none(value: float | None) -> Estimate:
    return Estimate(number(value), reason="" if number(value) is not None else "not defined here")


def _data(result: SlideEvaluation) -> dict[str, Any]:
    agreement, difference = area_agreement(result.maps)
    return {
        "coverage": number(result.squares.coverage),
        "area_correlation": number(agreement),
        "area_mean_absolute_difference": number(difference),
        "seams": [dataclasses.asdict(one) for one in result.seams],
        "reported_seams": dict(result.origin.seams) if result.origin.seams else None,
        "squares_missed": result.squares.missed,
        "squares": [
            {
                "row": int(row), "column": int(column),
                "area_virtual": number(float(result.maps.virtual[row, column])),
                "area_reference": number(float(result.maps.reference[row, column])),
                "stain_r": number(float(result.maps.stain_r[row, column])),
            }
            for row, column in result.squares.chosen
        ],
    }  # fmt: skip
