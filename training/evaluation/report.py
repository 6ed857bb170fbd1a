"""Reports of evaluations of patches and folders (`make_report`) and of whole slides (`make_slide_report`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from wsi2ihc.system import versions

from ..metrics.bootstrap import differences
from ..metrics.her2 import LevelPredictions
from ..metrics.pair_statistics import BLOCK_PX, GRADES
from ..reports.document import Cell, Column, Estimate, Figure, Report, Section, Table
from ..reports.plots import heat_map
from .report_content import (
    SUMMARY,
    Estimates,
    Estimator,
    distribution_figures,
    example_figures,
    group_tables,
    image_table,
    interior_table,
    level_figures,
    level_tables,
    metric_columns,
    metric_rows,
    misclassified_table,
    predictions_table,
    score_figures,
    slide_table,
    summary_table,
)
from .results import Evaluation, MethodResult
from .slide_grid import Origin
from .slides import SlideEvaluation, area_agreement

SETTINGS = (
    "PSNR and SSIM are of 8-bit images: PSNR with a range of 255 over all channels, the mean of the images' dB; SSIM "
    "with a uniform window of 7×7 px (scikit-image: channel_axis=-1, data_range=255), the mean over images. Both "
    "reward blur and must not be interpreted alone.",
    "Stain is the optical density of DAB from color deconvolution (Ruifrok and Johnston 2001, H-DAB; base 10, white "
    "255, clipped at 0). R and CCC are over all pixels together, or over means of blocks; “mean over units” "
    "is the mean of the values of single units.",
    f"The H-score is that of pixels: weak, moderate and strong from {', '.join(f'{grade:g}' for grade in GRADES)} OD.",
    "EMD, KL and JS compare histograms of 256 bins; the batch variance is the variance over all images, averaged "
    "over rows, columns and channels.",
)

PLAIN_PASS = "Models translate patches by one plain forward pass with the network's own padding, in evaluation mode."

RESEARCH = "Research use only, not for diagnosis: a virtual stain shows what a network expects, not what a stain binds."


def make_report(evaluation: Evaluation, *, seed: int = 0, resamples: int = 2000) -> Report:
    """Return the report of an evaluation.

    Parameters
    ----------
    evaluation
        Evaluation of at least one method.
    seed, resamples
        Of the bootstrap.
    """
    estimator = Estimator(evaluation, seed, resamples)
    sections = [
        _summary(evaluation, estimator, seed, resamples),
        *_predictions(evaluation),
        *_levels(evaluation, estimator),
        *_examples(evaluation),
        Section("All metrics", contents=(*group_tables(evaluation, estimator), image_table(evaluation))),
        *_interior(evaluation, estimator),
        Section("Distributions", contents=tuple(distribution_figures(evaluation))),
        *_slides(evaluation),
        _method(evaluation),
    ]
    notes = (f"Note: {note}." for note in evaluation.notes)
    lead = (f"{evaluation.subject}. {_threshold(evaluation)}", RESEARCH, *notes)
    return Report("How good is the virtual stain?", lead, tuple(sections), _data(evaluation, estimator))


def _summary(evaluation: Evaluation, estimator: Estimator, seed: int, resamples: int) -> Section:
    contents: list[Table | Figure] = [summary_table(evaluation, estimator)]
    if paired := _paired_table(evaluation, seed, resamples):
        contents.append(paired)
    return Section("Summary", contents=tuple(contents))


def _paired_table(evaluation: Evaluation, seed: int, resamples: int) -> Table | None:
    """Return the differences between the first method and each other one on the same images."""
    if len(evaluation.methods) < 2:
        return None
    first, *others = evaluation.methods
    paired = {
        other.method.name: differences(
            first.scores.subset(), other.scores.subset(), SUMMARY, seed=seed, resamples=resamples
        )
        for other in others
    }
    note = (
        "On the same images, with intervals of paired differences: a difference is significant if its interval "
        "excludes 0. All methods are compared with the first one."
    )
    return Table(
        "differences", f"{first.method.name} minus …", metric_columns(paired), metric_rows(paired, SUMMARY), (note,)
    )


def _predictions(evaluation: Evaluation) -> Iterator[Section]:
    if table := predictions_table(evaluation):
        misclassified = misclassified_table(evaluation)
        contents = (table, *((misclassified,) if misclassified else ()), *score_figures(evaluation))
        yield Section("Predicted HER2 levels", contents=contents)


def _levels(evaluation: Evaluation, estimator: Estimator) -> Iterator[Section]:
    if tables := level_tables(evaluation, estimator):
        yield Section("By HER2 level", contents=(*level_figures(evaluation, estimator), *tables))


def _examples(evaluation: Evaluation) -> Iterator[Section]:
    if figures := example_figures(evaluation):
        text = "Chosen automatically: at random from every level, and by rank of the stain correlation per pixel."
        yield Section("Examples", (text,), tuple(figures))


def _interior(evaluation: Evaluation, estimator: Estimator) -> Iterator[Section]:
    if table := interior_table(evaluation, estimator):
        yield Section("Interior", contents=(table,))


def _slides(evaluation: Evaluation) -> Iterator[Section]:
    tables = [slide_table(result, number) for number, result in enumerate(evaluation.methods, 1)]
    if any(tables):
        yield Section(f"By {evaluation.resampling_unit}", contents=tuple(table for table in tables if table))


def _method(evaluation: Evaluation) -> Section:
    inception = evaluation.inception
    if reason := inception.get("reason"):
        distances = f"FID and KID were not computed: {reason}."
    else:
        description = "; ".join(f"{name}: {value}" for name, value in inception.items())
        distances = (
            f"FID and KID compare Inception features ({description}). FID strongly depends on the number of images."
        )
    models = tuple(
        f"{result.method.name}: {result.method.metadata['description']}"
        + (f" (version {result.method.metadata['version']})" if result.method.metadata.get("version") else "")
        for result in evaluation.methods
        if "description" in result.method.metadata
    )
    plain = (PLAIN_PASS,) if any(result.method.kind == "model" for result in evaluation.methods) else ()
    return Section(
        "How this was measured", (*SETTINGS, *plain, *_sampling(evaluation), _threshold(evaluation), distances, *models)
    )


def _sampling(evaluation: Evaluation) -> Iterator[str]:
    step_px = max((result.scores.virtual.step_px for result in evaluation.methods), default=1)
    if step_px > 1:
        yield f"The batch variance uses every {step_px}th pixel along either axis, which limits the memory."
    multiple_px = evaluation.metadata.get("cropped_to_multiples_of_px", 1)
    if multiple_px > 1:
        yield f"Images were cropped at the right and bottom to multiples of {multiple_px} px, which a model requires."


def _threshold(evaluation: Evaluation) -> str:
    threshold_fit = evaluation.threshold_fit
    return f"Pixels count as stained from {threshold_fit.stained_from:.2f} OD ({threshold_fit.source})."


def _data(evaluation: Evaluation, estimator: Estimator) -> dict[str, Any]:
    threshold_fit = evaluation.threshold_fit
    return {
        "subject": evaluation.subject,
        "resampling_unit": evaluation.resampling_unit,
        "stained_from_od": threshold_fit.stained_from,
        "stained_from_source": threshold_fit.source,
        "block_px": BLOCK_PX,
        "interior_px": evaluation.interior_px or None,
        "inception": dict(evaluation.inception),
        "notes": list(evaluation.notes),
        "reference_predictions": [_predictions_data(one) for one in evaluation.reference_predictions],
        "methods": {
            result.method.name: _method_data(evaluation, result, estimator) for result in evaluation.methods
        },
        "versions": versions("torch"),
        **evaluation.metadata,
    }  # fmt: skip


def _method_data(evaluation: Evaluation, result: MethodResult, estimator: Estimator) -> dict[str, Any]:
    subset = result.scores.subset()
    return {
        "kind": result.method.kind,
        **result.method.metadata,
        "images": subset.images,
        "identical_images": subset.identical,
        "metrics": _metrics(estimator(result)),
        "levels": {level: _metrics(estimator(result, level)) for level in evaluation.levels},
        "interior": _metrics(estimator(result, interior=True)) if result.interior else None,
        "slides": _slides_data(result),
        "distances": {
            level or "all": {
                "fid": one.fid, "kid_mean": one.kid_mean, "kid_std": one.kid_std,
                "kid_subset_size": one.kid_subset_size, "virtual_images": one.virtual_images,
                "reference_images": one.reference_images, "reason": one.reason or None,
            }
            for level, one in result.distances.items()
        },
        "her2_predictions": [_predictions_data(one) for one in result.predictions],
    }  # fmt: skip


def _slides_data(result: MethodResult) -> dict[str, Any]:
    slides = result.scores.slides
    if len(slides) == len(result.scores.per_image):  # one slide per image: slides are unknown
        return {}
    return {
        slide: {name: number(value) for name, value in result.scores.subset(slide=slide).values().items()}
        for slide in slides
    }


def _metrics(estimates: Estimates) -> dict[str, Any]:
    return {name: _estimate(one) for name, one in estimates.items()}


def _estimate(one: Estimate) -> dict[str, Any]:
    values = {"value": number(one.value), "low": number(one.low), "high": number(one.high)}
    return values | ({"reason": one.reason} if one.reason else {})


def _predictions_data(predictions: LevelPredictions) -> dict[str, Any]:
    return {
        "by": predictions.by,
        "cutoffs": [number(cutoff) for cutoff in predictions.cutoffs],
        "confusion_labeled_by_predicted": predictions.confusion.tolist(),
        "quadratic_kappa": number(predictions.kappa),
        "positive_predicted_negative": predictions.missed,
        "predicted_as_labeled": predictions.correct,
        "slides": predictions.slides,
        "predicted": {
            slide: {"labeled": label, "predicted": level} for slide, label, level in predictions.slide_scores
        },
    }


def number(value: float | None) -> float | None:
    """Return a float as a JSON value: None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def make_slide_report(result: SlideEvaluation, *, seed: int = 0, resamples: int = 2000) -> Report:
    """Return the report of a virtual slide: that of its squares, with maps before the metrics."""
    report = make_report(result.evaluation, seed=seed, resamples=resamples)
    summary, *rest = report.sections
    sections = (summary, _agreement(result), _overviews(result), _seams(result), *rest)
    return dataclasses.replace(report, sections=sections, data={**report.data, "slide": _slide_data(result)})


def _agreement(result: SlideEvaluation) -> Section:
    correlation, difference = area_agreement(result.maps)
    squares = result.squares
    rows = (
        ("squares compared", len(squares.chosen)),
        ("squares with reference tissue but little virtual tissue (not compared)", squares.missed),
        ("coverage: fraction of the reference tissue with virtual tissue", _or_none(squares.coverage)),
        ("correlation of stained areas of squares", _or_none(correlation)),
        ("mean difference of stained areas (absolute)", _or_none(difference)),
    )
    table = Table("agreement", "Agreement of squares", (Column("metric"), Column("value")), rows)
    return Section("Maps", contents=(table, *_maps(result)))


def _maps(result: SlideEvaluation) -> Iterator[Figure]:
    maps, squares = result.maps, result.squares
    side_mm = squares.side_px * squares.mpp / 1000
    extent_mm = (squares.shape[1] * side_mm, squares.shape[0] * side_mm)
    areas = np.stack([maps.reference, maps.virtual])
    scale = float(np.nanmin(areas)), float(np.nanmax(areas))
    for name, title, values, limits, is_signed in (
        ("map_reference", "Stained area, reference", maps.reference, scale, False),
        ("map_virtual", "Stained area, virtual", maps.virtual, scale, False),
        ("map_error", "Stained area, virtual minus reference", maps.virtual - maps.reference, None, True),
        ("map_correlation", "Stain R per pixel", maps.stain_r, (-1.0, 1.0), True),
    ):
        plot = heat_map(np.asarray(values, np.float64), title, "", extent_mm, limits=limits, symmetric=is_signed)
        yield Figure(name, title, plot, "Gray: squares without tissue on both slides.")


def _overviews(result: SlideEvaluation) -> Section:
    virtual, reference = result.overviews
    return Section(
        "The slides",
        contents=(
            Figure("overview_reference", "Reference", reference, "Registered to the virtual slide.", "photograph"),
            Figure("overview_virtual", "Virtual", virtual, "", "photograph"),
        ),
    )


def _seams(result: SlideEvaluation) -> Section:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            one.borders_of,
            *(_or_none(value) for value in (one.contrast, one.z, one.shade_z, one.shade_step)),
            one.borders,
        )
        for one in result.seams
    )
    heads = (Column("borders of"), Column("contrast"), Column("z", 2), Column("shade z", 2),
             Column("shade step, gray levels", 1), Column("windows", 0))  # fmt: skip
    source = (
        "Relative to the steps that the H&E slide has at the same positions."
        if result.evaluation.metadata.get("he")
        else "Without --he, steps of the H&E slide itself cannot be distinguished and shades are unknown."
    )
    how = (
        "Steps at the borders of a grid over those at other multiples of 8 px, and differences in shade over "
        f"those on either side; z within ±3, and shade z up to 3, are normal. {source}"
    )
    table = Table("seams", "Steps at borders", heads, rows, (how, _reported(result.origin)))
    return Section("Seams", contents=(table,))


def _reported(origin: Origin) -> str:
    if not origin.is_reported:
        return "There is no translation report next to the slide."
    if origin.seams is None:
        return "The translation reported that seams are impossible: its model translates single pixels."
    z, shade_z = origin.seams.get("z"), origin.seams.get("shade_z")
    values = "too few borders" if z is None else f"z = {z:.2f}"
    values += "" if shade_z is None else f", shade z = {shade_z:.2f}"
    return f"Reported by the translation for the borders of its cores, before compression: {values}."


def _or_none(value: float | None) -> Estimate:
    return Estimate(number(value), reason="" if number(value) is not None else "not defined here")


def _slide_data(result: SlideEvaluation) -> dict[str, Any]:
    correlation, difference = area_agreement(result.maps)
    return {
        "coverage": number(result.squares.coverage),
        "area_correlation": number(correlation),
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
