"""Evaluate a virtual slide against a stained slide.

Both slides are compared in squares (`slide_grid`), each scored like a patch; the metrics of the squares also make maps.
Seams are measured at the borders of tiles and cores of the virtual slide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi2ihc.concurrency import Progress, ProgressCallback, silent
from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import Region, RGBImage
from wsi2ihc.registration.overview import COARSEST_MPP
from wsi2ihc.registration.transform import Transform, identity
from wsi2ihc.registration.transform_io import load_transform
from wsi2ihc.registration.warped_region import read_warped
from wsi2ihc.registration.warped_slide import check_slide, is_comparable
from wsi2ihc.slide import (
    Slide,
    SlideInfo,
    WorkingGrid,
    agreeing_levels,
    is_same_slide,
    level_problems,
    open_slide,
    overview_grid,
    read_overview,
)
from wsi2ihc.text import pluralize

from ..metrics.bootstrap import ImageMetadata, Scores
from ..metrics.pair_statistics import Scale, correlation, moments_of
from .grid_seams import GridSeams, measure_seams
from .methods import Method, baselines
from .options import EvaluateOptions
from .results import Evaluation, MethodResult, ThresholdFit, reference_threshold
from .scores import Sample, Source, choose_examples, virtual_images
from .slide_grid import SQUARE_UM, SlideComparison, SquareGrid, centers_um, plan_squares, read_squares
from .slide_origin import Origin, check_source, read_origin

OVERVIEW_PX = 1200

LEAST_COVERAGE = 0.9
"""Coverage below which the report notes that the scores cover only a part of the reference tissue."""

FITTING_SQUARES = 200
"""Number of squares, evenly spaced, to which the threshold is fitted."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideMaps:
    """Metrics by position: (rows, columns) of the squares, NaN where none was compared."""

    # stained area, 0 to 1
    virtual: npt.NDArray[np.float64]
    reference: npt.NDArray[np.float64]
    stain_r: npt.NDArray[np.float64]  # correlation of the density per pixel


@dataclass(frozen=True, slots=True, eq=False)
class SlideEvaluation:
    """Results of a virtual slide."""

    evaluation: Evaluation  # over all squares, each its own resampling unit
    squares: SquareGrid  # the grid
    maps: SlideMaps  # metrics by position
    seams: tuple[GridSeams, ...]  # of the virtual slide at the borders of its tiles, and of its cores if known
    origin: Origin  # what the virtual slide states about its source
    overviews: tuple[RGBImage, RGBImage]  # overviews of the virtual slide and of the reference registered to it


def evaluate_slides(
    reference: str,
    virtual: str,
    transform: Path | None = None,
    options: EvaluateOptions | None = None,
    progress: ProgressCallback = silent,
    *,
    he: str | None = None,
    square_um: float = SQUARE_UM,
) -> SlideEvaluation:
    """Score a virtual slide against the stained one.

    Parameters
    ----------
    reference
        The IHC slide.
    virtual
        The virtual slide, as written by `wsi2ihc.translate`, or any slide in the frame of the H&E slide.
    transform
        From the H&E slide to the reference, as saved by `wsi2ihc register`; None if both have the same frame.
    options
        Evaluation options; ``mpp`` is that of the reference if it does not state it.
    progress
        Called with the number of squares done.
    he
        The H&E slide from which the virtual one was made, for the baseline ``counterstain``.
    square_um
        Side of a square, µm.

    Raises
    ------
    DatasetError
        If the slides have no common tissue, two of them are one file or copies, or the virtual slide was made from
        another H&E slide.
    MissingResolutionError, UnreadableSlideError, TransformError
        If a slide or the transform cannot be used.
    """
    options = options or EvaluateOptions()
    slide_transform = load_transform(transform) if transform is not None else identity()
    with ExitStack() as stack:
        virtual_slide = stack.enter_context(open_slide(virtual))
        reference_slide = stack.enter_context(_open_reference(reference, options.mpp, slide_transform))
        source = stack.enter_context(open_slide(he)) if he else None
        origin = read_origin(virtual, virtual_slide.info.size)
        _check_roles(virtual_slide.info, reference_slide.info, None if source is None else source.info)
        check_source(origin, slide_transform.fixed, None if source is None else source.info, virtual_slide.info.name)
        check_slide(slide_transform.moving, reference_slide.info)
        progress(Progress("detecting tissue"))
        slides = [slide for slide in (virtual_slide, reference_slide, source) if slide is not None]
        warnings = [f"{slide.info.name}: {problem}" for slide in slides for problem in level_problems(slide)]
        virtual_slide, reference_slide = agreeing_levels(virtual_slide), agreeing_levels(reference_slide)
        source = None if source is None else agreeing_levels(source)
        pair = SlideComparison(virtual_slide, reference_slide, slide_transform, origin.position_um, source)
        squares = plan_squares(pair, square_um)
        threshold_fit = _fit_threshold(pair, squares, options, progress)
        methods = [Method("virtual slide", "given", None, metadata={"description": virtual_slide.info.name})]
        methods += baselines(None) if source else []
        scores, maps = _compare(pair, squares, methods, Scale(threshold_fit.stained_from, squares.mpp), progress)
        progress(Progress("measuring seams"))
        results = tuple(map(MethodResult, methods, scores))
        evaluation = Evaluation(
            subject=f"{virtual_slide.info.name} against {reference_slide.info.name}: "
            f"{pluralize(len(squares.chosen), 'square')} of {squares.side_px * squares.mpp:.0f} µm at "
            f"{squares.mpp:.3g} µm/px",
            resampling_unit="squares",
            levels=(),
            methods=results,
            threshold_fit=threshold_fit,
            inception={"reason": "not defined for a pair of slides"},
            examples=choose_examples(_source(pair, squares), results, 1, options.examples, options.seed),
            notes=(*warnings, *_notes(transform, he, origin, reference_slide.info, squares)),
            metadata={
                "options": options.stated("stained_from", "mpp", "resamples", "seed"),
                "square_um": squares.side_px * squares.mpp,
                "mpp": squares.mpp,
                "transform": None if transform is None else transform.name,
                "he": None if source is None else source.info.name,
            },
        )
        return SlideEvaluation(
            evaluation, squares, maps, tuple(measure_seams(pair, grid) for grid in origin.grids), origin,
            (read_overview(virtual_slide, _overview_grid(virtual_slide)), _overview_of_reference(pair)),
        )  # fmt: skip


def _check_roles(virtual: SlideInfo, reference: SlideInfo, he: SlideInfo | None) -> None:
    """Check that no slide has two roles, whatever its paths."""
    given = [("--virtual-slide", virtual), ("--reference-slide", reference), *([("--he", he)] if he else [])]
    for number, (option, info) in enumerate(given):
        for other, before in given[:number]:
            if is_same_slide(info, before):
                raise DatasetError(
                    f"{other} and {option} are the same slide ({before.name} and {info.name} are one file, or "
                    "copies); give two different slides"
                )


def _open_reference(path: str, mpp: float | None, transform: Transform) -> Slide:
    """Open the reference at the stated resolution, else at its own, else at the one it was registered with."""
    slide = open_slide(path, mpp=mpp)
    if slide.info.mpp is not None or transform.moving is None:
        return slide
    slide.close()
    return open_slide(path, mpp=transform.moving.mpp)


def area_agreement(maps: SlideMaps) -> tuple[float, float]:
    """Return the Pearson correlation of the stained areas of squares, and their mean absolute difference."""
    known = np.isfinite(maps.virtual) & np.isfinite(maps.reference)
    first, second = maps.virtual[known], maps.reference[known]
    return float(correlation(moments_of(first, second))), float(np.abs(first - second).mean())


def _compare(
    pair: SlideComparison, squares: SquareGrid, methods: Sequence[Method], scale: Scale, progress: ProgressCallback
) -> tuple[list[Scores], SlideMaps]:
    """Return the scores of every method, and the maps of the first, which is the virtual slide."""
    images = {(int(row), int(column)): _image(int(row), int(column)) for row, column in squares.chosen}
    scores: list[Scores] = []
    for _ in methods:
        scores.append(Scores(list(images.values()), scale, scores[0] if scores else None))
    maps = np.full((3, *squares.shape), np.nan)
    for number, square in enumerate(read_squares(pair, squares, squares.chosen)):
        progress(Progress("comparing", number, len(squares.chosen), unit="square"))
        image = images[square.position]
        for method, method_scores in zip(methods, scores, strict=True):
            sample = Sample(image, square.he, square.reference, {method.name: square.virtual})
            method_scores.add(image, virtual_images(method, [sample])[0], square.reference)
        first = scores[0].per_image[-1]
        maps[:, *square.position] = first.area_virtual, first.area_reference, first.stain_r
    return scores, SlideMaps(*maps)


def _image(row: int, column: int) -> ImageMetadata:
    name = f"row {row}, column {column}"
    return ImageMetadata(name, name)


def _fit_threshold(
    pair: SlideComparison, squares: SquareGrid, options: EvaluateOptions, progress: ProgressCallback
) -> ThresholdFit:
    progress(Progress("measuring the stain of the reference"))
    fitting = squares.chosen[:: -(-len(squares.chosen) // FITTING_SQUARES)]
    references = (square.reference for square in read_squares(pair, squares, fitting))
    return reference_threshold(references, "reference slide", options.stained_from)


def _source(pair: SlideComparison, squares: SquareGrid) -> Source:
    """Return the squares as samples, for the examples."""
    images = tuple(_image(int(row), int(column)) for row, column in squares.chosen)

    def load(number: int) -> Sample:
        (square,) = read_squares(pair, squares, squares.chosen[number : number + 1])
        return Sample(images[number], square.he, square.reference, {"virtual slide": square.virtual})

    return Source(images, load)


def _overview_grid(slide: Slide) -> WorkingGrid:
    side = max(slide.info.bounds.width, slide.info.bounds.height)
    return overview_grid(slide.info, max(1.0, side / OVERVIEW_PX))


def _overview_of_reference(pair: SlideComparison) -> RGBImage:
    """Return an overview of the reference registered to the virtual slide."""
    grid = _overview_grid(pair.virtual)
    region = Region(0, 0, grid.size.width, grid.size.height)
    x_um, y_um = centers_um(pair, grid, region, (region.width, region.height))
    mpp = min(math.sqrt(grid.mpp[0] * grid.mpp[1]), COARSEST_MPP)
    return read_warped(pair.reference, pair.transform, mpp, x_um, y_um).pixels


def _notes(
    transform: Path | None, he: str | None, origin: Origin, reference: SlideInfo, squares: SquareGrid
) -> Iterator[str]:
    if squares.coverage < LEAST_COVERAGE:
        yield (
            f"only {squares.coverage:.0%} of the reference tissue is tissue on the virtual slide too: the scores cover "
            "only this part"
        )
    if is_comparable(origin.quickhash, reference.quickhash) and origin.quickhash == reference.quickhash:
        yield f"{reference.name} is the slide from which the virtual slide was made: this says nothing about its stain"
    yield "intervals are over squares of one slide: they do not generalize to other slides"
    yield "there is no training split: no color regression, no HER2 cutoffs"
    yield "pixels of the virtual slide include the effects of compression and, outside tissue, of the background fill"
    if he is None:
        yield "the H&E slide was not given (--he): no baseline counterstain"
    if transform is None:
        yield "no transform was given: both slides are assumed to have the same frame"
    elif not origin.quickhash:
        yield "the virtual slide does not state its source: it is unknown whether the transform fits it"
