"""Tables and figures of an evaluation, and published values.

Each function makes one table or figure, or None where the evaluation has nothing to show. `Estimator` computes each
metric with its interval once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi2ihc.geometry import RGBImage
from wsi2ihc.stains import dab_density
from wsi2ihc.text import pluralize

from ..image_grid import image_grid_figure
from ..metrics.bootstrap import Scores, Subset
from ..metrics.formulas import METRICS
from ..metrics.her2 import LEVELS, NEGATIVE, LevelPredictions
from ..metrics.pair_statistics import BINS, DENSITY_PER_BIN, JOINT_BINS, PLANES
from ..reports.document import Cell, Column, Estimate, Figure, Table
from ..reports.plots import bars, confusion, histograms, scatter_density
from .results import Evaluation, Example, MethodResult

OVERALL = ""

REMARKS = (
    "Published on BCI's test split; not comparable with values on other datasets.",
    "The study's overall PSNRs of pyramid pix2pix and of its own method lie above their levels' values weighted by the "
    "numbers of test images, which give 20.25 and 20.88 dB; its own, 22.16, lies above every one of its levels.",
    "Its FIDs per level follow the number of images (correlation with 1/N: 0.98), so they do not rank levels.",
    "On facades the study reports 12.91 dB, 0.24 and FID 611 for pyramid pix2pix, 12.80 dB, 0.25 and 549 for its own.",
    "What holds is the difference between methods under one budget: the study's method beats pyramid pix2pix by about "
    "0.6 dB (weighted as above) and 0.04 in SSIM, most on 3+.",
)

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


@dataclass(frozen=True, slots=True)
class Published:
    """Published metrics of a method.

    Attributes
    ----------
    name
        As in tables, with the source.
    metrics
        By metric and level ("" for all images).
    """

    name: str
    metrics: Mapping[str, Mapping[str, float]]


def _by_level(*values: float, overall: float) -> dict[str, float]:
    return dict(zip(("0", "1+", "2+", "3+"), values, strict=True)) | {OVERALL: overall}


PUBLISHED = (
    Published(
        "pix2pix (study)",
        {
            "psnr": _by_level(19.6, 22.22, 20.9, 19.2, overall=20.74),
            "ssim": _by_level(0.52, 0.47, 0.44, 0.39, overall=0.44),
            "fid": _by_level(914, 606, 474, 733, overall=472.6),
        },
    ),
    Published(
        "pyramid pix2pix (study)",
        {
            "psnr": _by_level(19.2, 21.07, 20.4, 19.4, overall=21.15),
            "ssim": _by_level(0.46, 0.44, 0.42, 0.38, overall=0.43),
            "fid": _by_level(921, 643, 527, 759, overall=516.75),
        },
    ),
    Published(
        "variance (study)",
        {
            "psnr": _by_level(20.48, 21.65, 21.3, 19.5, overall=22.16),
            "ssim": _by_level(0.55, 0.48, 0.46, 0.42, overall=0.47),
            "fid": _by_level(890, 472, 395, 508, overall=346.37),
        },
    ),
    Published("pyramid pix2pix (its authors)", {"psnr": {OVERALL: 21.16}, "ssim": {OVERALL: 0.477}}),
    Published("BCIStainer (7-fold averaging)", {"psnr": {OVERALL: 23.39}, "ssim": {OVERALL: 0.583}}),
    Published("UNIStainNet (512 px)", {"ssim": {OVERALL: 0.541}, "fid": {OVERALL: 34.6}}),
)


class Estimator:
    """Metrics with intervals, computed once per subset."""

    def __init__(self, evaluation: Evaluation, seed: int, resamples: int) -> None:
        self._seed, self.resamples = seed, resamples
        self._reason = evaluation.inception.get("reason", "")
        self._known: dict[tuple[int, str], Estimates] = {}

    def __call__(self, result: MethodResult, her2: str | None = None, *, interior: bool = False) -> Estimates:
        """Return the metrics of a method, over one level or over all images."""
        scores = result.interior if interior else result.scores
        assert scores is not None, "only called where there is an interior"
        key = (id(scores), her2 or "")
        if key not in self._known:
            estimates = scores.subset(her2=her2).estimates(seed=self._seed, resamples=self.resamples)
            self._known[key] = estimates if interior else estimates | self._distances(result, her2 or OVERALL)
        return self._known[key]

    def _distances(self, result: MethodResult, level: str) -> Estimates:
        found = result.distances.get(level)
        if found is None:
            return dict.fromkeys(DISTANCES, Estimate(None, reason=self._reason or "there are no images"))
        values = {"fid": found.fid, "kid": found.kid_mean, "kid_std": found.kid_std}
        reason = found.reason or "one subset holds all images"
        return {name: Estimate(value, reason="" if value is not None else reason) for name, value in values.items()}


def summary_table(evaluation: Evaluation, estimator: Estimator) -> Table:
    """Return the most important metrics, by method."""
    images = evaluation.methods[0].scores.subset()
    plural = evaluation.resampling_unit
    over = f"{len(images.units):,} {plural if len(images.units) != 1 else plural.removesuffix('s')}"
    notes = [f"In brackets: 95 % intervals (percentiles of {estimator.resamples:,} resamples) over {over}."]
    if 1 < len(images.units) < FEW_UNITS:
        notes.append(f"With only {over}, intervals are rough and probably too narrow.")
    notes += [
        f"{result.method.name}: {pluralize(number, 'image')} without a PSNR: identical to the reference."
        for result in evaluation.methods
        if (number := result.scores.subset().identical)
    ]
    estimates = {result.method.name: estimator(result) for result in evaluation.methods}
    counts: tuple[Cell, ...] = ("images", *(result.scores.subset().images for result in evaluation.methods))
    rows = (counts, *metric_rows(estimates, (*SUMMARY, *DISTANCES)))
    return Table("summary", "Summary", metric_columns(estimates), rows, tuple(notes))


def metric_columns(estimates: Mapping[str, Estimates] | Iterable[str]) -> tuple[Column, ...]:
    """Return the header of a table with a row per metric and a column per method."""
    return (Column("metric"), *(Column(name) for name in estimates))


def metric_rows(estimates: Mapping[str, Mapping[str, Estimate]], names: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    """Return a row per metric: its title, and its value in each column."""
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        digits = _column(name).digits
        cells = (dataclasses.replace(one[name], digits=digits) for one in estimates.values())
        rows.append((_column(name).title, *cells))
    return tuple(rows)


def _column(name: str) -> Column:
    return DISTANCES.get(name) or Column(METRICS[name].title, METRICS[name].digits)


def group_tables(evaluation: Evaluation, estimator: Estimator) -> list[Table]:
    """Return all metrics over all images, one table per kind."""
    titles = {
        "image": "Images", "stain": "Stain", "distribution": "Distributions of colors and of stain",
        "grid": "Checkerboard",
    }  # fmt: skip
    estimates = {result.method.name: estimator(result) for result in evaluation.methods}
    return [
        Table(f"metrics_{group}", title, metric_columns(estimates), metric_rows(estimates, names))
        for group, title in titles.items()
        if (names := [name for name, metric in METRICS.items() if metric.group == group])
    ]


def interior_table(evaluation: Evaluation, estimator: Estimator) -> Table | None:
    """Return the summary without the image margins that padding affects; None if there is no interior."""
    if not evaluation.interior_px:
        return None
    estimates = {
        result.method.name: estimator(result, interior=True)
        for result in evaluation.methods
        if result.interior is not None
    }
    note = f"Without {evaluation.interior_px} px at every border, the receptive field radius of the methods."
    rows = metric_rows(estimates, SUMMARY)
    return Table("interior", "Interior of the patches", metric_columns(estimates), rows, (note,))


def image_table(evaluation: Evaluation) -> Table:
    """Return the metrics of every image and method, for the CSV file."""
    heads = (
        Column("method"), Column("image"), Column("slide"), Column("HER2"), Column("PSNR, dB"), Column("SSIM"),
        Column("Stain R per pixel"), Column("Stained area, virtual"), Column("Stained area, reference"),
    )  # fmt: skip
    rows = tuple(
        (
            result.method.name, own.image.name, own.image.slide or "", own.image.her2 or "",
            _finite(own.psnr), own.ssim, _finite(own.stain_r), own.area_virtual, own.area_reference,
        )
        for result in evaluation.methods
        for own in result.scores.per_image
    )  # fmt: skip
    return Table("images", "Every image", heads, rows, is_shown=False)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def level_tables(evaluation: Evaluation, estimator: Estimator) -> list[Table]:
    """Return one table per metric, methods by levels, with published values."""
    if not evaluation.levels:
        return []
    tables = []
    for name in BY_LEVEL:
        rows: list[tuple[Cell, ...]] = [
            (
                result.method.name,
                *(estimator(result, level)[name] for level in evaluation.levels),
                estimator(result)[name],
            )
            for result in evaluation.methods
        ]
        rows += [
            (one.name, *(one.metrics[name].get(level) for level in (*evaluation.levels, OVERALL)))
            for one in PUBLISHED
            if name in one.metrics
        ]
        digits = _column(name).digits
        heads = [Column("method"), *(Column(f"HER2 {level}", digits) for level in evaluation.levels)]
        notes = REMARKS if name in ("psnr", "ssim", "fid") else ()
        tables.append(
            Table(f"levels_{name}", f"{_column(name).title} by HER2 level", (*heads, Column("all", digits)),
                  tuple(rows), notes)
        )  # fmt: skip
    return [_level_counts(evaluation), *tables]


def _level_counts(evaluation: Evaluation) -> Table:
    scores = evaluation.methods[0].scores
    rows = tuple(
        (f"HER2 {level}", subset.images, len(subset.units))
        for level in evaluation.levels
        if (subset := scores.subset(her2=level)) is not None
    )
    empty = [str(row[0]) for row in rows if not row[1]]
    notes = (f"No images of {', '.join(empty)}.",) if empty else ()
    return Table("levels", "Images by HER2 level", (Column("level"), Column("images", 0),
                 Column(evaluation.resampling_unit, 0)), rows, notes)  # fmt: skip


def slide_table(result: MethodResult, number: int) -> Table | None:
    """Return the metrics of one method by slide; None if slides are unknown."""
    scores = result.scores
    if len(scores.slides) == len(scores.per_image):
        return None
    rows = tuple(_slide_row(scores, slide) for slide in scores.slides)
    heads = (Column("slide"), Column("HER2"), Column("images", 0), *(_column(name) for name in BY_SLIDE))
    return Table(f"slides_{number}", f"{result.method.name} by slide", heads, rows)


def _slide_row(scores: Scores, slide: str) -> tuple[Cell, ...]:
    subset: Subset = scores.subset(slide=slide)
    values = subset.values()
    levels = {
        scored.image.her2
        for scored in scores.per_image
        if (scored.image.slide or scored.image.resampling_unit) == slide
    }
    return (
        slide,
        ", ".join(sorted(level for level in levels if level)),
        subset.images,
        *(Estimate(values[name] if abs(values[name]) < float("inf") else None) for name in BY_SLIDE),
    )


def predictions_table(evaluation: Evaluation) -> Table | None:
    """Return the predicted HER2 levels; 3+ predicted negative first, the most harmful error."""
    predicted = [(result.method.name, result.predictions) for result in evaluation.methods if result.predictions]
    if not predicted:
        return None
    stains = [("reference", evaluation.reference_predictions), *predicted]
    rows = tuple(_prediction_row(name, one) for name, predictions in stains for one in predictions)
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
    return Table("her2_predictions", "Predicted HER2 levels of slides", heads, rows, notes)


def misclassified_table(evaluation: Evaluation) -> Table | None:
    """Return the slides whose predicted level is not the labeled one, 3+ predicted negative first."""
    stains = [("reference", evaluation.reference_predictions)]
    stains += [(result.method.name, result.predictions) for result in evaluation.methods if result.predictions]
    rows = [
        (slide, label, name, one.by, level)
        for name, predictions in stains
        for one in predictions
        for slide, label, level in one.slide_scores
        if label != level
    ]
    if not any(predictions for _, predictions in stains):
        return None
    rows.sort(key=lambda row: (not (row[1] == "3+" and row[4] in NEGATIVE), row[0], row[2], row[3]))
    heads = (Column("slide"), Column("labeled"), Column("stain"), Column("predicted by"), Column("predicted"))
    return Table("her2_misclassified", "Misclassified slides", heads, tuple(rows))


def _prediction_row(name: str, predictions: LevelPredictions) -> tuple[Cell, ...]:
    kappa = (
        Estimate(predictions.kappa)
        if predictions.kappa == predictions.kappa
        else Estimate(None, reason="only one level occurs")
    )
    positive = int(predictions.confusion[LEVELS.index("3+")].sum())
    return name, predictions.by, predictions.missed, positive, kappa, predictions.correct, predictions.slides


def density_difference(virtual: RGBImage, reference: RGBImage) -> RGBImage:
    """Return the DAB density of the virtual image minus that of the reference: red if too much, blue if too little."""
    difference = np.clip((dab_density(virtual) - dab_density(reference)) / DIFFERENCE_OD, -1, 1)[..., np.newaxis]
    strength = np.abs(difference)
    towards = np.where(difference > 0, np.array(_MORE, np.float32), np.array(_LESS, np.float32))
    return np.asarray(np.rint(strength * towards + (1 - strength) * np.array(_NONE, np.float32)), np.uint8)


def example_figures(evaluation: Evaluation) -> list[Figure]:
    """Return an image grid per reason why examples were chosen."""
    reasons = list(dict.fromkeys(example.reason for example in evaluation.examples))
    models = [result.method.name for result in evaluation.methods if result.method.kind != "baseline"]
    return [
        Figure(
            f"examples_{number}",
            f"Patches: {reason}",
            _grid([example for example in evaluation.examples if example.reason == reason], models),
            "From left to right: H&E, reference, virtual stains; then, per model, DAB density minus that of the "
            "reference: red if there is too much stain, blue if there is too little.",
            "photograph",
        )
        for number, reason in enumerate(reasons, 1)
    ]


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


def level_figures(evaluation: Evaluation, estimator: Estimator) -> Iterator[Figure]:
    """Yield bar plots of some metrics by HER2 level."""
    if not evaluation.levels:
        return
    for name in BARS:
        values: Mapping[str, Mapping[str, Estimate]] = {
            result.method.name: {level: estimator(result, level)[name] for level in evaluation.levels}
            for result in evaluation.methods
        }
        title = METRICS[name].title
        yield Figure(f"bars_{name}", f"{title} by HER2 level", bars(values, title, ""), "Whiskers: 95 % intervals.")


def distribution_figures(evaluation: Evaluation) -> Iterator[Figure]:
    """Yield histograms of colors and density, and the density of each method against the reference."""
    if not evaluation.methods:
        return
    sides = {"reference": evaluation.methods[0].scores.subset().histograms[1]}
    sides |= {result.method.name: result.scores.subset().histograms[0] for result in evaluation.methods}
    for number, plane in enumerate(PLANES):
        is_density = plane == "dab"
        series = {name: side[number] for name, side in sides.items()}
        shown = _shown_bins(np.stack(list(series.values()))) if is_density else BINS
        edges = np.arange(shown + 1) * (DENSITY_PER_BIN if is_density else 1.0)
        series = {name: counts[:shown] for name, counts in series.items()}
        title = "Density of DAB" if is_density else f"Level of {plane}"
        plot = histograms(series, edges, title, "density, OD" if is_density else "gray level", log=is_density)
        yield Figure(f"histogram_{plane}", title, plot, "Over all pixels of all images.")
    for number, result in enumerate(evaluation.methods, 1):
        yield Figure(f"scatter_{number}", f"{result.method.name}: density against the reference's", _scatter(result))


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


def score_figures(evaluation: Evaluation) -> Iterator[Figure]:
    """Yield confusion matrices of HER2 levels."""
    predicted = [("reference", evaluation.reference_predictions)]
    predicted += [
        (result.method.name, result.predictions) for result in evaluation.methods if result.method.kind != "baseline"
    ]
    for number, (name, predictions) in enumerate(predicted, 1):
        for one in predictions:
            title = f"HER2 level of {name}, predicted by {one.by}"
            plot = confusion(one.confusion, LEVELS, title, "predicted", "labeled")
            yield Figure(f"confusion_{number}_{one.by.replace(' ', '_').lower()}", title, plot)
