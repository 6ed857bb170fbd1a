"""The tables of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from wsi2ihc.text import pluralize

from ..reporting.document import Cell, Column, Estimate, Table
from .figures import FIGURES
from .intervals import Subset
from .levels import LEVELS, NEGATIVE, LevelCalls
from .published import OVERALL, PUBLISHED, REMARKS
from .results import Evaluation, MethodResult
from .scores import Scores

SUMMARY = ("psnr", "ssim", "stain_r", "stain_r_64px", "stain_ccc", "mcc", "variance_ratio")
BY_LEVEL = ("psnr", "ssim", "fid", "stain_r", "stain_r_64px", "mcc", "area_virtual")
BY_SLIDE = ("psnr", "ssim", "stain_r", "stain_r_64px", "stain_bias", "area_virtual", "area_reference", "mcc")

FEW_UNITS = 10

Estimates = dict[str, Estimate]

DISTANCES = {"fid": Column("FID", 1), "kid": Column("KID", 4), "kid_std": Column("KID, deviation over subsets", 4)}


class Estimator:
    """Figures with intervals; each subset's are computed once."""

    def __init__(self, evaluation: Evaluation, seed: int, resamples: int) -> None:
        self._seed, self.resamples = seed, resamples
        self._reason = evaluation.inception.get("reason", "")
        self._known: dict[tuple[int, str], Estimates] = {}

    def __call__(self, result: MethodResult, her2: str | None = None, *, interior: bool = False) -> Estimates:
        """Of a method, over a level or over all images."""
        scores = result.interior if interior else result.scores
        assert scores is not None, "asked for only where there is one"
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
    """The figures that matter most, by method."""
    images = evaluation.methods[0].scores.subset()
    over = f"{len(images.units):,} {evaluation.unit if len(images.units) != 1 else evaluation.unit.removesuffix('s')}"
    notes = [f"In brackets: 95 % intervals (percentiles of {estimator.resamples:,} resamples) over {over}."]
    if 1 < len(images.units) < FEW_UNITS:
        notes.append(f"{over} are few: such an interval is rough, and most likely too narrow.")
    notes += [
        f"{result.method.name}: {pluralize(number, 'image')} without a PSNR, since the reference has the same pixels."
        for result in evaluation.methods
        if (number := result.scores.subset().identical)
    ]
    estimates = {result.method.name: estimator(result) for result in evaluation.methods}
    counts: tuple[Cell, ...] = ("images", *(result.scores.subset().images for result in evaluation.methods))
    rows = (counts, *figure_rows(estimates, (*SUMMARY, *DISTANCES)))
    return Table("summary", "Summary", figure_columns(estimates), rows, tuple(notes))


def figure_columns(estimates: Mapping[str, Estimates] | Iterable[str]) -> tuple[Column, ...]:
    """Heads of a table with a row for each figure, and a column for each of these."""
    return (Column("figure"), *(Column(name) for name in estimates))


def figure_rows(estimates: Mapping[str, Mapping[str, Estimate]], names: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    """A row for each figure: its title, and its value in each column."""
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        digits = _column(name).digits
        cells = (dataclasses.replace(one[name], digits=digits) for one in estimates.values())
        rows.append((_column(name).title, *cells))
    return tuple(rows)


def _column(name: str) -> Column:
    return DISTANCES.get(name) or Column(FIGURES[name].title, FIGURES[name].digits)


def group_tables(evaluation: Evaluation, estimator: Estimator) -> list[Table]:
    """All figures over all images, by kind."""
    titles = {
        "image": "Images", "stain": "Stain", "distribution": "Distributions of colours and of stain",
        "grid": "Checkerboard",
    }  # fmt: skip
    estimates = {result.method.name: estimator(result) for result in evaluation.methods}
    return [
        Table(f"figures_{group}", title, figure_columns(estimates), figure_rows(estimates, names))
        for group, title in titles.items()
        if (names := [name for name, figure in FIGURES.items() if figure.group == group])
    ]


def interior_table(evaluation: Evaluation, estimator: Estimator) -> Table | None:
    """The summary over what lies farther inside the images than any padding reaches; None where there is none."""
    if not evaluation.interior_px:
        return None
    estimates = {
        result.method.name: estimator(result, interior=True)
        for result in evaluation.methods
        if result.interior is not None
    }
    note = f"Without {evaluation.interior_px} px at every border: as far as padding reaches through a ResNet-9."
    rows = figure_rows(estimates, SUMMARY)
    return Table("interior", "Interior of the patches", figure_columns(estimates), rows, (note,))


def image_table(evaluation: Evaluation) -> Table:
    """Every image by itself, of every method: for the CSV."""
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
        for own in result.scores.own
    )  # fmt: skip
    return Table("images", "Every image", heads, rows, is_shown=False)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def level_tables(evaluation: Evaluation, estimator: Estimator) -> list[Table]:
    """Per figure: methods by levels, beside what was published."""
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
            (one.name, *(one.figures[name].get(level) for level in (*evaluation.levels, OVERALL)))
            for one in PUBLISHED
            if name in one.figures
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
                 Column(evaluation.unit, 0)), rows, notes)  # fmt: skip


def slide_table(result: MethodResult, number: int) -> Table | None:
    """One method by slides (units where no slide is known); None where these are single images."""
    scores = result.scores
    if len(scores.slides) == len(scores.own):
        return None
    rows = tuple(_slide_row(scores, slide) for slide in scores.slides)
    heads = (Column("slide"), Column("HER2"), Column("images", 0), *(_column(name) for name in BY_SLIDE))
    return Table(f"slides_{number}", f"{result.method.name} by slide", heads, rows)


def _slide_row(scores: Scores, slide: str) -> tuple[Cell, ...]:
    subset: Subset = scores.subset(slide=slide)
    values = subset.values()
    levels = {scored.image.her2 for scored in scores.own if (scored.image.slide or scored.image.unit) == slide}
    return (
        slide,
        ", ".join(sorted(level for level in levels if level)),
        subset.images,
        *(Estimate(values[name] if abs(values[name]) < float("inf") else None) for name in BY_SLIDE),
    )


def calls_table(evaluation: Evaluation) -> Table | None:
    """Levels as called: 3+ called negative first, since that is what hurts."""
    called = [(result.method.name, result.calls) for result in evaluation.methods if result.calls]
    if not called:
        return None
    rows = tuple(_call_row(name, one) for name, calls in [("reference", evaluation.reference_calls), *called]
                 for one in calls)  # fmt: skip
    heads = (
        Column("stain"), Column("read by"), Column(f"3+ called {' or '.join(NEGATIVE)}", 0), Column("of 3+", 0),
        Column("Quadratic kappa", 3), Column("called as labelled", 0), Column("slides", 0),
    )  # fmt: skip
    notes = (
        "Cuts are fitted to the references of the training split; the row “reference” is what they reach on the "
        "references of this one.",
        "A HER2 level belongs to a slide and not to a patch, and pathologists read it from membranes, not from an "
        "area. This is research, not diagnosis.",
    )
    return Table("her2_calls", "HER2 levels of slides, as called", heads, rows, notes)


def called_otherwise_table(evaluation: Evaluation) -> Table | None:
    """The slides that any stain is called otherwise by than they are labelled, 3+ called negative first."""
    stains = [("reference", evaluation.reference_calls)]
    stains += [(result.method.name, result.calls) for result in evaluation.methods if result.calls]
    rows = [
        (slide, label, name, one.by, called)
        for name, calls in stains
        for one in calls
        for slide, label, called in one.slides_called
        if label != called
    ]
    if not any(calls for _, calls in stains):
        return None
    rows.sort(key=lambda row: (not (row[1] == "3+" and row[4] in NEGATIVE), row[0], row[2], row[3]))
    heads = (Column("slide"), Column("labelled"), Column("stain"), Column("read by"), Column("called"))
    return Table("her2_called_otherwise", "Slides called otherwise than labelled", heads, tuple(rows))


def _call_row(name: str, calls: LevelCalls) -> tuple[Cell, ...]:
    kappa = Estimate(calls.kappa) if calls.kappa == calls.kappa else Estimate(None, reason="only one level occurs")
    positive = int(calls.confusion[LEVELS.index("3+")].sum())
    return name, calls.by, calls.missed, positive, kappa, calls.correct, calls.slides
