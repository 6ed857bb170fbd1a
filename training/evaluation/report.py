"""Reports of evaluations of patches and folders (`make_report`) and of whole slides (`make_slide_report`).

Each section has a function that yields its tables and figures; a section without any is left out. `Estimator` computes
each metric with its interval once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import RGBImage
from wsi2ihc.stains import dab_density
from wsi2ihc.system import versions
from wsi2ihc.text import pluralize

from ..image_grid import image_grid_figure
from ..metrics.bootstrap import differences
from ..metrics.her2 import LEVELS, NEGATIVE, LevelPredictions
from ..metrics.pair_statistics import BINS, BLOCK_PX, DENSITY_PER_BIN, GRADES, JOINT_BINS, METRICS, PLANES
from ..reports.document import Cell, Column, Estimate, Figure, Report, Section, Table
from ..reports.plots import bars, confusion, heat_map, histograms, scatter_density
from .methods import OVERALL, PUBLISHED, REMARKS
from .results import Evaluation, Example, MethodResult
from .slide_origin import Origin
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


SUMMARY = ("psnr", "ssim", "stain_r", "stain_r_64px", "stain_ccc", "mcc", "variance_ratio")

BY_LEVEL = ("psnr", "ssim", "fid", "stain_r", "stain_r_64px", "mcc", "area_virtual")

BY_SLIDE = ("psnr", "ssim", "stain_r", "stain_r_64px", "stain_bias", "area_virtual", "area_reference", "mcc")

FEW_UNITS = 10

Estimates = dict[str, Estimate]

DISTANCES = {"fid": Column("FID", 1), "kid": Column("KID", 4), "kid_std": Column("KID, deviation over subsets", 4)}

BARS = ("psnr", "ssim", "stain_r", "stain_r_64px")

DIFFERENCE_OD = 0.8
"""Difference of density at which the color of a difference image saturates."""

NEGLIGIBLE = 1e-6
"""Fraction of pixels below which the bins at the end of an axis are not shown."""

_LESS, _NONE, _MORE = (33, 102, 172), (247, 247, 247), (178, 24, 43)


Contents = Iterator[Table | Figure]


def make_report(evaluation: Evaluation, *, seed: int = 0, resamples: int = 2000) -> Report:
    """Return the report of an evaluation of at least one method; ``seed`` and ``resamples`` are of the bootstrap."""
    estimator = Estimator(evaluation, seed, resamples)
    chosen = "Chosen automatically: at random from every level, and by rank of the stain correlation per pixel."
    sections = (
        Section("Summary", contents=tuple(_summary(evaluation, estimator))),
        Section("Predicted HER2 levels", contents=tuple(_level_predictions(evaluation))),
        Section("By HER2 level", contents=tuple(_by_level(evaluation, estimator))),
        Section("Examples", (chosen,), tuple(_examples(evaluation))),
        Section("All metrics", contents=tuple(_all_metrics(evaluation, estimator))),
        Section("Interior", contents=tuple(_interior(evaluation, estimator))),
        Section("Distributions", contents=tuple(_distributions(evaluation))),
        Section(f"By {evaluation.resampling_unit}", contents=tuple(_by_slide(evaluation))),
    )
    lead = (f"{evaluation.subject}. {_threshold(evaluation)}", RESEARCH, *(f"Note: {one}." for one in evaluation.notes))
    shown = (*(section for section in sections if section.contents), _method(evaluation))
    return Report("How good is the virtual stain?", lead, shown, _data(evaluation, estimator))


class Estimator:
    """Metrics with intervals, computed once per subset."""

    def __init__(self, evaluation: Evaluation, seed: int, resamples: int) -> None:
        self.bootstrap = {"seed": seed, "resamples": resamples}
        self._reason = evaluation.inception.get("reason", "")
        self._known: dict[tuple[int, str], Estimates] = {}

    def __call__(self, result: MethodResult, her2: str | None = None, *, interior: bool = False) -> Estimates:
        """Return the metrics of a method, over one level or over all images."""
        scores = result.interior if interior else result.scores
        assert scores is not None, "only called where there is an interior"
        key = (id(scores), her2 or "")
        if key not in self._known:
            estimates = scores.subset(her2=her2).estimates(**self.bootstrap)
            self._known[key] = estimates if interior else estimates | self._distances(result, her2 or OVERALL)
        return self._known[key]

    def by_method(self, evaluation: Evaluation) -> dict[str, Estimates]:
        """Return the metrics of every method over all images."""
        return {result.method.name: self(result) for result in evaluation.methods}

    def _distances(self, result: MethodResult, level: str) -> Estimates:
        found = result.distances.get(level)
        if found is None:
            return dict.fromkeys(DISTANCES, Estimate(None, reason=self._reason or "there are no images"))
        values = {"fid": found.fid, "kid": found.kid_mean, "kid_std": found.kid_std}
        reason = found.reason or "one subset holds all images"
        return {name: Estimate(value, reason="" if value is not None else reason) for name, value in values.items()}


def _summary(evaluation: Evaluation, estimator: Estimator) -> Contents:
    """Yield the most important metrics, and the differences between the first method and each other one."""
    images = evaluation.methods[0].scores.subset()
    plural = evaluation.resampling_unit
    over = f"{len(images.units):,} {plural if len(images.units) != 1 else plural.removesuffix('s')}"
    notes = [f"In brackets: 95% intervals (percentiles of {estimator.bootstrap['resamples']:,} resamples) over {over}."]
    if 1 < len(images.units) < FEW_UNITS:
        notes.append(f"With only {over}, intervals are rough and probably too narrow.")
    notes += [
        f"{result.method.name}: {pluralize(number, 'image')} without a PSNR: identical to the reference."
        for result in evaluation.methods
        if (number := result.scores.subset().identical)
    ]
    counts: tuple[Cell, ...] = ("images", *(result.scores.subset().images for result in evaluation.methods))
    table = _metric_table("summary", "Summary", estimator.by_method(evaluation), (*SUMMARY, *DISTANCES), *notes)
    yield dataclasses.replace(table, rows=(counts, *table.rows))
    first, *others = evaluation.methods
    if others:
        paired = {
            other.method.name: differences(first.scores.subset(), other.scores.subset(), SUMMARY, **estimator.bootstrap)
            for other in others
        }
        note = (
            "On the same images, with intervals of paired differences: a difference is significant if its interval "
            "excludes 0. All methods are compared with the first one."
        )
        yield _metric_table("differences", f"{first.method.name} minus …", paired, SUMMARY, note)


def _metric_table(
    name: str, title: str, estimates: Mapping[str, Mapping[str, Estimate]], metrics: Sequence[str], *notes: str
) -> Table:
    """Return a table with a row per metric and a column per method."""
    rows: list[tuple[Cell, ...]] = []
    for column, metric in zip(map(_column, metrics), metrics, strict=True):
        cells = (dataclasses.replace(one[metric], digits=column.digits) for one in estimates.values())
        rows.append((column.title, *cells))
    return Table(name, title, (Column("metric"), *map(Column, estimates)), tuple(rows), notes)


def _column(name: str) -> Column:
    return DISTANCES.get(name) or Column(METRICS[name].title, METRICS[name].digits)


def _all_metrics(evaluation: Evaluation, estimator: Estimator) -> Contents:
    titles = {
        "image": "Images", "stain": "Stain", "distribution": "Distributions of colors and of stain",
        "grid": "Checkerboard",
    }  # fmt: skip
    for group, title in titles.items():
        if names := [name for name, metric in METRICS.items() if metric.group == group]:
            yield _metric_table(f"metrics_{group}", title, estimator.by_method(evaluation), names)
    heads = (
        Column("method"), Column("image"), Column("slide"), Column("HER2"), Column("PSNR, dB"), Column("SSIM"),
        Column("Stain R per pixel"), Column("Stained area, virtual"), Column("Stained area, reference"),
    )  # fmt: skip
    rows = tuple(
        (
            result.method.name, own.image.name, own.image.slide or "", own.image.her2 or "",
            number(own.psnr), own.ssim, number(own.stain_r), own.area_virtual, own.area_reference,
        )
        for result in evaluation.methods
        for own in result.scores.per_image
    )  # fmt: skip
    yield Table("images", "Every image", heads, rows, is_shown=False)


def _interior(evaluation: Evaluation, estimator: Estimator) -> Contents:
    """Yield the summary without the image margins that padding affects."""
    if evaluation.interior_px:
        estimates = {
            one.method.name: estimator(one, interior=True) for one in evaluation.methods if one.interior is not None
        }
        note = f"Without {evaluation.interior_px} px at every border, the receptive field radius of the methods."
        yield _metric_table("interior", "Interior of the patches", estimates, SUMMARY, note)


def _by_level(evaluation: Evaluation, estimator: Estimator) -> Contents:
    """Yield bar plots, and a table per metric of methods by levels; for BCI with published values."""
    levels = evaluation.levels
    if not levels:
        return
    is_bci = evaluation.metadata.get("data", {}).get("layout", "").endswith("; names as in BCI")
    published = PUBLISHED if is_bci else {}
    for name in BARS:
        values = {
            result.method.name: {level: estimator(result, level)[name] for level in levels}
            for result in evaluation.methods
        }
        title = METRICS[name].title
        has_intervals = any(one.low is not None for of_level in values.values() for one in of_level.values())
        caption = "Whiskers: 95% intervals." if has_intervals else ""
        yield Figure(f"bars_{name}", f"{title} by HER2 level", bars(values, title, ""), caption)
    counts = tuple(
        (f"HER2 {level}", subset.images, len(subset.units))
        for level in levels
        if (subset := evaluation.methods[0].scores.subset(her2=level)) is not None
    )
    empty = ", ".join(name for name, images, _ in counts if not images)
    count_heads = (Column("level"), Column("images", 0), Column(evaluation.resampling_unit, 0))
    yield Table("levels", "Images by HER2 level", count_heads, counts, (f"No images of {empty}.",) if empty else ())
    for name in BY_LEVEL:
        if name in DISTANCES and all(estimator(result)[name].value is None for result in evaluation.methods):
            continue
        rows: list[tuple[Cell, ...]] = [
            (result.method.name, *(estimator(result, level)[name] for level in (*levels, None)))
            for result in evaluation.methods
        ]
        rows += [
            (method, *(metrics[name].get(level) for level in (*levels, OVERALL)))
            for method, metrics in published.items()
            if name in metrics
        ]
        title, digits = _column(name).title, _column(name).digits
        heads = (Column("method"), *(Column(f"HER2 {level}", digits) for level in levels), Column("all", digits))
        notes = REMARKS if is_bci and name in ("psnr", "ssim", "fid") else ()
        yield Table(f"levels_{name}", f"{title} by HER2 level", heads, tuple(rows), notes)


def _by_slide(evaluation: Evaluation) -> Contents:
    """Yield a table of the metrics by slide for each method; none if slides are unknown."""
    heads = (Column("slide"), Column("HER2"), Column("images", 0), *map(_column, BY_SLIDE))
    for index, result in enumerate(evaluation.methods, 1):
        scores = result.scores
        if not _has_slides(result):
            continue
        levels: dict[str, set[str]] = {}
        for one in scores.per_image:
            levels.setdefault(one.image.slide or one.image.resampling_unit, set()).add(one.image.her2 or "")
        rows: list[tuple[Cell, ...]] = []
        for slide in scores.slides:
            subset = scores.subset(slide=slide)
            values = subset.values()
            named = ", ".join(sorted(levels[slide] - {""}))
            rows.append((slide, named, subset.images, *(Estimate(number(values[name])) for name in BY_SLIDE)))
        yield Table(f"slides_{index}", f"{result.method.name} by slide", heads, tuple(rows))


def _has_slides(result: MethodResult) -> bool:
    """Return whether slides are known: otherwise every image counts as one."""
    return len(result.scores.slides) != len(result.scores.per_image)


def _level_predictions(evaluation: Evaluation) -> Contents:
    """Yield predicted HER2 levels and misclassified slides; 3+ predicted negative first, the most harmful error."""
    predicted = [(result.method.name, result.predictions) for result in evaluation.methods if result.predictions]
    if not predicted:
        return
    stains = [("reference", evaluation.reference_predictions), *predicted]
    heads = (
        Column("stain"), Column("predicted by"), Column(f"3+ predicted {' or '.join(NEGATIVE)}", 0), Column("of 3+", 0),
        Column("Quadratic kappa", 3), Column("predicted as labeled", 0), Column("slides", 0),
    )  # fmt: skip
    notes = (
        "Cutoffs are fitted to the references of the training split; the row “reference” is their result on the "
        "references of this split.",
        "A HER2 level belongs to a slide and not to a patch, and pathologists read it from membranes, not from an "
        "area. This is research, not diagnosis.",
    )
    rows = tuple(_prediction_row(name, one) for name, predictions in stains for one in predictions)
    yield Table("her2_predictions", "Predicted HER2 levels of slides", heads, rows, notes)
    wrong = [
        (slide, label, name, one.by, level)
        for name, predictions in stains
        for one in predictions
        for slide, label, level in one.slide_scores
        if label != level
    ]
    wrong.sort(key=lambda row: (not (row[1] == "3+" and row[4] in NEGATIVE), row[0], row[2], row[3]))
    titles = ("slide", "labeled", "stain", "predicted by", "predicted")
    yield Table("her2_misclassified", "Misclassified slides", tuple(map(Column, titles)), tuple(wrong))
    compared = (result for result in evaluation.methods if result.method.kind != "baseline")
    plotted = [(result.method.name, result.predictions) for result in compared]
    for index, (name, predictions) in enumerate([stains[0], *plotted], 1):
        for one in predictions:
            title = f"HER2 level of {name}, predicted by {one.by}"
            plot = confusion(one.confusion, LEVELS, title, "predicted", "labeled")
            yield Figure(f"confusion_{index}_{one.by.replace(' ', '_').lower()}", title, plot)


def _prediction_row(name: str, predictions: LevelPredictions) -> tuple[Cell, ...]:
    kappa = number(predictions.kappa)
    shown = Estimate(kappa, reason="" if kappa is not None else "only one level occurs")
    positive = int(predictions.confusion[LEVELS.index("3+")].sum())
    return name, predictions.by, predictions.missed, positive, shown, predictions.correct, predictions.slides


def density_difference(virtual: RGBImage, reference: RGBImage) -> RGBImage:
    """Return the DAB density of the virtual image minus that of the reference: red if too much, blue if too little."""
    difference = np.clip((dab_density(virtual) - dab_density(reference)) / DIFFERENCE_OD, -1, 1)[..., np.newaxis]
    strength = np.abs(difference)
    towards = np.where(difference > 0, np.array(_MORE, np.float32), np.array(_LESS, np.float32))
    return np.asarray(np.rint(strength * towards + (1 - strength) * np.array(_NONE, np.float32)), np.uint8)


def _examples(evaluation: Evaluation) -> Contents:
    """Yield an image grid per reason why examples were chosen."""
    models = [result.method.name for result in evaluation.methods if result.method.kind != "baseline"]
    for index, reason in enumerate(dict.fromkeys(example.reason for example in evaluation.examples), 1):
        yield Figure(
            f"examples_{index}",
            f"Patches: {reason}",
            _grid([example for example in evaluation.examples if example.reason == reason], models),
            "From left to right: H&E, reference, virtual stains; then, per model, DAB density minus that of the "
            "reference: red if there is too much stain, blue if there is too little.",
            "photograph",
        )


def _grid(examples: Sequence[Example], models: Sequence[str]) -> RGBImage:
    labels = [
        *(["H&E"] if examples[0].he is not None else []), "reference", *examples[0].virtual,
        *(f"{name}: difference" for name in models),
    ]  # fmt: skip
    rows = [
        (
            *(() if example.he is None else (example.he,)),
            example.reference,
            *example.virtual.values(),
            *(density_difference(example.virtual[name], example.reference) for name in models),
        )
        for example in examples
    ]
    return image_grid_figure(rows, labels, [example.image.name for example in examples])


def _distributions(evaluation: Evaluation) -> Contents:
    """Yield histograms of colors and density, and the density of each method against the reference."""
    sides = {"reference": evaluation.methods[0].scores.subset().histograms[1]}
    sides |= {result.method.name: result.scores.subset().histograms[0] for result in evaluation.methods}
    for index, plane in enumerate(PLANES):
        is_density = plane == "dab"
        series = {name: side[index] for name, side in sides.items()}
        shown = _shown_bins(np.stack(list(series.values()))) if is_density else BINS
        edges = np.arange(shown + 1) * (DENSITY_PER_BIN if is_density else 1.0)
        series = {name: counts[:shown] for name, counts in series.items()}
        title = "Density of DAB" if is_density else f"Level of {plane}"
        plot = histograms(series, edges, title, "density, OD" if is_density else "gray level", log=is_density)
        yield Figure(f"histogram_{plane}", title, plot, "Over all pixels of all images.")
    for index, result in enumerate(evaluation.methods, 1):
        yield Figure(f"scatter_{index}", f"{result.method.name}: density against the reference's", _scatter(result))


def _scatter(result: MethodResult) -> RGBImage:
    joint = result.scores.joint
    shown = _shown_bins(np.stack([joint.sum(0), joint.sum(1)]))
    edges = np.arange(shown + 1) * DENSITY_PER_BIN * (BINS // JOINT_BINS)
    return scatter_density(
        joint[:shown, :shown].T, edges, edges, "Density of DAB per pixel", "reference, OD", f"{result.method.name}, OD"
    )


def _shown_bins(counts: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> int:
    """Return how many bins of several series (N, bins) contain more than a negligible fraction of pixels."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return int(np.flatnonzero((shares > NEGLIGIBLE).any(0)).max(initial=7)) + 1


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
        "slides": {
            slide: {name: number(value) for name, value in result.scores.subset(slide=slide).values().items()}
            for slide in (result.scores.slides if _has_slides(result) else ())
        },
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
        yield Figure(name, title, plot, "Gray: squares not compared, since less than half is tissue on both slides.")


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
