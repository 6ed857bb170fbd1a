"""An evaluation as a report: what was scored, how good it is, and what the figures cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from wsi2ihc.runtime import versions

from ..reporting.document import Estimate, Picture, Report, Section, Table
from .evaluation_pictures import call_pictures, distribution_pictures, example_pictures, level_pictures
from .figure_tables import (
    SUMMARY,
    Estimates,
    Estimator,
    called_otherwise_table,
    calls_table,
    figure_columns,
    figure_rows,
    group_tables,
    image_table,
    interior_table,
    level_tables,
    slide_table,
    summary_table,
)
from .intervals import differences
from .levels import LevelCalls
from .results import Evaluation, MethodResult
from .sums import BLOCK_PX, GRADES

SETTINGS = (
    "PSNR and SSIM are of 8-bit images: PSNR with a range of 255 over all channels, the mean of the images' dB; SSIM "
    "with a uniform window of 7×7 px (scikit-image: channel_axis=-1, data_range=255), the mean over images. Both "
    "reward blur, so they are never to be read alone.",
    "Stain is the optical density of DAB by colour deconvolution (Ruifrok and Johnston 2001, H-DAB; base 10, white "
    "255, clipped at 0). R and CCC are over all pixels together, or over means of blocks; “mean over units” "
    "is the mean of each unit's own.",
    f"The H-score is that of pixels: weak, moderate and strong from {', '.join(f'{grade:g}' for grade in GRADES)} OD.",
    "EMD, KL and JS are between histograms of 256 bins; the batch variance is that over all images, for each row, "
    "column and channel, averaged.",
)

PLAIN_PASS = "Models translate patches by one plain forward pass with the network's own padding, in evaluation mode."

RESEARCH = "Research use only, not for diagnosis: a virtual stain shows what a network expects, not what a stain binds."


def present(evaluation: Evaluation, *, seed: int = 0, resamples: int = 2000) -> Report:
    """The report of an evaluation.

    Parameters
    ----------
    evaluation
        Of at least one method.
    seed, resamples
        Of the bootstrap.
    """
    estimator = Estimator(evaluation, seed, resamples)
    sections = [
        _summary(evaluation, estimator, seed, resamples),
        *_clinical(evaluation),
        *_levels(evaluation, estimator),
        *_pictures(evaluation),
        Section("All figures", contents=(*group_tables(evaluation, estimator), image_table(evaluation))),
        *_interior(evaluation, estimator),
        Section("Distributions", contents=tuple(distribution_pictures(evaluation))),
        *_slides(evaluation),
        _method(evaluation),
    ]
    notes = (f"Note: {note}." for note in evaluation.notes)
    lead = (f"{evaluation.subject}. {_threshold(evaluation)}", RESEARCH, *notes)
    return Report("How good is the virtual stain?", lead, tuple(sections), _data(evaluation, estimator))


def _summary(evaluation: Evaluation, estimator: Estimator, seed: int, resamples: int) -> Section:
    contents: list[Table | Picture] = [summary_table(evaluation, estimator)]
    if paired := _paired_table(evaluation, seed, resamples):
        contents.append(paired)
    return Section("Summary", contents=tuple(contents))


def _paired_table(evaluation: Evaluation, seed: int, resamples: int) -> Table | None:
    """The first method less each other one, on the same images."""
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
        "On the same images, with intervals of paired differences: one without 0 is a difference. Comparisons are with "
        "the method that is named first."
    )
    return Table(
        "differences", f"{first.method.name} less …", figure_columns(paired), figure_rows(paired, SUMMARY), (note,)
    )


def _clinical(evaluation: Evaluation) -> Iterator[Section]:
    if table := calls_table(evaluation):
        otherwise = called_otherwise_table(evaluation)
        contents = (table, *((otherwise,) if otherwise else ()), *call_pictures(evaluation))
        yield Section("Would slides be called the same?", contents=contents)


def _levels(evaluation: Evaluation, estimator: Estimator) -> Iterator[Section]:
    if tables := level_tables(evaluation, estimator):
        yield Section("By HER2 level", contents=(*level_pictures(evaluation, estimator), *tables))


def _pictures(evaluation: Evaluation) -> Iterator[Section]:
    if pictures := example_pictures(evaluation):
        text = "Chosen by no hand: drawn at random from every level, and by rank of the stain's correlation per pixel."
        yield Section("Pictures", (text,), tuple(pictures))


def _interior(evaluation: Evaluation, estimator: Estimator) -> Iterator[Section]:
    if table := interior_table(evaluation, estimator):
        yield Section("Interior", contents=(table,))


def _slides(evaluation: Evaluation) -> Iterator[Section]:
    tables = [slide_table(result, number) for number, result in enumerate(evaluation.methods, 1)]
    if any(tables):
        yield Section(f"By {evaluation.unit}", contents=tuple(table for table in tables if table))


def _method(evaluation: Evaluation) -> Section:
    inception = evaluation.inception
    if reason := inception.get("reason"):
        distances = f"FID and KID were not computed: {reason}."
    else:
        facts = "; ".join(f"{name}: {value}" for name, value in inception.items())
        distances = (
            f"FID and KID are of Inception's features ({facts}). Both depend on the number of images, FID strongly so."
        )
    models = tuple(
        f"{result.method.name}: {result.method.facts['description']}"
        + (f" (version {result.method.facts['version']})" if result.method.facts.get("version") else "")
        for result in evaluation.methods
        if "description" in result.method.facts
    )
    plain = (PLAIN_PASS,) if any(result.method.kind == "model" for result in evaluation.methods) else ()
    return Section(
        "How this was measured", (*SETTINGS, *plain, *_sampling(evaluation), _threshold(evaluation), distances, *models)
    )


def _sampling(evaluation: Evaluation) -> Iterator[str]:
    step_px = max((result.scores.virtual.step_px for result in evaluation.methods), default=1)
    if step_px > 1:
        yield f"The batch variance is that of every {step_px}th pixel along either axis, which bounds the memory."
    multiple_px = evaluation.facts.get("cut_to_multiples_of_px", 1)
    if multiple_px > 1:
        yield f"Images were cut at the right and at the bottom to multiples of {multiple_px} px, which a model needs."


def _threshold(evaluation: Evaluation) -> str:
    calibration = evaluation.calibration
    return f"Pixels count as stained from {calibration.stained_from:.2f} OD ({calibration.source})."


def _data(evaluation: Evaluation, estimator: Estimator) -> dict[str, Any]:
    calibration = evaluation.calibration
    return {
        "subject": evaluation.subject,
        "unit": evaluation.unit,
        "stained_from_od": calibration.stained_from,
        "stained_from_source": calibration.source,
        "block_px": BLOCK_PX,
        "interior_px": evaluation.interior_px or None,
        "inception": dict(evaluation.inception),
        "notes": list(evaluation.notes),
        "reference_calls": [_calls(one) for one in evaluation.reference_calls],
        "methods": {
            result.method.name: _method_data(evaluation, result, estimator) for result in evaluation.methods
        },
        "versions": versions("torch"),
        **evaluation.facts,
    }  # fmt: skip


def _method_data(evaluation: Evaluation, result: MethodResult, estimator: Estimator) -> dict[str, Any]:
    subset = result.scores.subset()
    return {
        "kind": result.method.kind,
        **result.method.facts,
        "images": subset.images,
        "identical_images": subset.identical,
        "figures": _figures(estimator(result)),
        "levels": {level: _figures(estimator(result, level)) for level in evaluation.levels},
        "interior": _figures(estimator(result, interior=True)) if result.interior else None,
        "slides": _slides_data(result),
        "distances": {
            level or "all": {
                "fid": one.fid, "kid_mean": one.kid_mean, "kid_std": one.kid_std,
                "kid_subset_size": one.kid_subset_size, "virtual_images": one.virtual_images,
                "reference_images": one.reference_images, "reason": one.reason or None,
            }
            for level, one in result.distances.items()
        },
        "her2_calls": [_calls(one) for one in result.calls],
    }  # fmt: skip


def _slides_data(result: MethodResult) -> dict[str, Any]:
    slides = result.scores.slides
    if len(slides) == len(result.scores.own):  # a slide for every image: none is known
        return {}
    return {
        slide: {name: number(value) for name, value in result.scores.subset(slide=slide).values().items()}
        for slide in slides
    }


def _figures(estimates: Estimates) -> dict[str, Any]:
    return {name: _estimate(one) for name, one in estimates.items()}


def _estimate(one: Estimate) -> dict[str, Any]:
    answer = {"value": number(one.value), "low": number(one.low), "high": number(one.high)}
    return answer | ({"reason": one.reason} if one.reason else {})


def _calls(calls: LevelCalls) -> dict[str, Any]:
    return {
        "by": calls.by,
        "cuts": [number(cut) for cut in calls.cuts],
        "confusion_labelled_by_called": calls.confusion.tolist(),
        "quadratic_kappa": number(calls.kappa),
        "positive_called_negative": calls.missed,
        "called_as_labelled": calls.correct,
        "slides": calls.slides,
        "called": {slide: {"labelled": label, "called": called} for slide, label, called in calls.slides_called},
    }


def number(value: float | None) -> float | None:
    """As JSON has it: None for what is not finite."""
    return value if value is not None and math.isfinite(value) else None
