"""A virtual slide against the stained slide of the same or of the next section, square by square."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import Region
from wsi2ihc.progress import Progress, ProgressCallback, silent
from wsi2ihc.registration.files import load_transform
from wsi2ihc.registration.transform import Transform, identity
from wsi2ihc.registration.views import COARSEST_MPP
from wsi2ihc.registration.warp_plan import check_slide, is_comparable
from wsi2ihc.registration.warping import read_warped
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

from ..moments import correlation
from .calibration import Calibration, density_counts, otsu_threshold
from .examples import choose_examples
from .grid_seams import GridSeams, measure_grid
from .methods import Method, floors
from .options import EvaluateOptions
from .origin import Origin, check_source, origin_of
from .results import Evaluation, MethodResult
from .scores import ImageFacts, Scores
from .scoring import answer
from .source import Sample, Source
from .squares import SQUARE_UM, SlidePair, Square, SquareGrid, centres_um, plan_squares, read_squares
from .sums import BINS, Scale

OVERVIEW_PX = 1200

CALIBRATION_SQUARES = 200
"""So many, evenly spread, are looked at for the threshold."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideMaps:
    """Figures by place: (rows, columns) of the squares, NaN where none was compared.

    virtual, reference:  stained area, 0 to 1
    stain_r:             correlation of the density per pixel
    """

    virtual: npt.NDArray[np.float64]
    reference: npt.NDArray[np.float64]
    stain_r: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SlideEvaluation:
    """A virtual slide's scores.

    evaluation:  over all squares, each a unit by itself
    squares:     the grid
    maps:        figures by place
    seams:       of the virtual slide's own pixels at the borders of its tiles, and at those of its cores where known
    origin:      what the virtual slide says of itself
    overviews:   the virtual slide, and the reference as it lies on it, small
    """

    evaluation: Evaluation
    squares: SquareGrid
    maps: SlideMaps
    seams: tuple[GridSeams, ...]
    origin: Origin
    overviews: tuple[RGBImage, RGBImage]


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
        The virtual slide, as `wsi2ihc.translate` writes it; or any slide that lies on the H&E.
    transform
        From the H&E slide to the reference, as `wsi2ihc register` saves it; None where both lie upon each other.
    options
        How; ``mpp`` is the reference's, where it does not say.
    progress
        Told of squares.
    he
        The H&E slide that the virtual one was made from, for the floor ``counterstain``.
    square_um
        Side of a square, µm.

    Raises
    ------
    DatasetError
        If the slides have no tissue in the same place, two of them are one file or copies of it, or the virtual slide
        was made from another H&E slide.
    MissingResolutionError, UnreadableSlideError, TransformError
        If a slide or the transform cannot be used.
    """
    options = options or EvaluateOptions()
    found = load_transform(transform) if transform is not None else identity()
    with ExitStack() as stack:
        ours = stack.enter_context(open_slide(virtual))
        theirs = stack.enter_context(_open_reference(reference, options.mpp, found))
        source = stack.enter_context(open_slide(he)) if he else None
        origin = origin_of(virtual, ours.info.size)
        _check_roles(ours.info, theirs.info, None if source is None else source.info)
        check_source(origin, found.fixed, None if source is None else source.info, ours.info.name)
        check_slide(found.moving, theirs.info)
        progress(Progress("finding the tissue of both"))
        slides = [slide for slide in (ours, theirs, source) if slide is not None]
        doubts = [f"{slide.info.name}: {problem}" for slide in slides for problem in level_problems(slide)]
        ours, theirs = agreeing_levels(ours), agreeing_levels(theirs)
        source = None if source is None else agreeing_levels(source)
        pair = SlidePair(ours, theirs, found, origin.position_um, source)
        squares = plan_squares(pair, square_um)
        calibration = _calibration(pair, squares, options, progress)
        methods = [Method("virtual slide", "given", None, facts={"description": ours.info.name})]
        methods += floors(None) if source else []
        scores, maps = _compare(pair, squares, methods, Scale(calibration.stained_from, squares.mpp), progress)
        progress(Progress("looking for seams"))
        results = tuple(map(MethodResult, methods, scores))
        evaluation = Evaluation(
            subject=f"{ours.info.name} against {theirs.info.name}: {pluralize(len(squares.chosen), 'square')} of "
            f"{squares.side_px * squares.mpp:.0f} µm at {squares.mpp:.3g} µm per px",
            unit="squares",
            levels=(),
            methods=results,
            calibration=calibration,
            inception={"reason": "two slides are not a set of images"},
            examples=choose_examples(_source(pair, squares), results, 1, options.pictures, options.seed),
            notes=(*doubts, *_notes(transform, he, origin, theirs.info)),
            facts={
                "options": options.stated("stained_from", "mpp", "resamples", "seed"),
                "square_um": squares.side_px * squares.mpp,
                "mpp": squares.mpp,
                "transform": None if transform is None else transform.name,
                "he": None if source is None else source.info.name,
            },
        )
        return SlideEvaluation(
            evaluation, squares, maps, tuple(measure_grid(pair, grid) for grid in origin.grids), origin,
            (_overview(ours), _overview_of_reference(pair)),
        )  # fmt: skip


def _check_roles(virtual: SlideInfo, reference: SlideInfo, he: SlideInfo | None) -> None:
    """Refuse one slide in two roles, whatever its paths."""
    named = [("--virtual-slide", virtual), ("--reference-slide", reference), *([("--he", he)] if he else [])]
    for number, (option, info) in enumerate(named):
        for other, before in named[:number]:
            if is_same_slide(info, before):
                raise DatasetError(
                    f"{other} and {option} name the same slide ({before.name} and {info.name} are one file, or "
                    "copies); give the slide that each asks for"
                )


def _open_reference(path: str, mpp: float | None, transform: Transform) -> Slide:
    """The reference, at the resolution that is stated; else its own, else the one that it was registered with."""
    slide = open_slide(path, mpp=mpp)
    if slide.info.mpp is not None or transform.moving is None:
        return slide
    slide.close()
    return open_slide(path, mpp=transform.moving.mpp)


def area_agreement(maps: SlideMaps) -> tuple[float, float]:
    """Pearson's correlation of the stained areas of squares, and the mean absolute difference."""
    known = np.isfinite(maps.virtual) & np.isfinite(maps.reference)
    first, second = maps.virtual[known], maps.reference[known]
    moments = np.array([
        first.size, first.sum(), second.sum(), (first**2).sum(), (second**2).sum(), (first * second).sum(),
    ])  # fmt: skip
    return float(correlation(moments)), float(np.abs(first - second).mean())


def _compare(
    pair: SlidePair, squares: SquareGrid, methods: Sequence[Method], scale: Scale, progress: ProgressCallback
) -> tuple[list[Scores], SlideMaps]:
    """The scores of every method, and the maps of the first, which is the virtual slide."""
    images = {(int(row), int(column)): _image(int(row), int(column)) for row, column in squares.chosen}
    scores: list[Scores] = []
    for _ in methods:
        scores.append(Scores(list(images.values()), scale, scores[0] if scores else None))
    maps = np.full((3, *squares.shape), np.nan)
    for number, square in enumerate(read_squares(pair, squares, squares.chosen)):
        progress(Progress("comparing", number, len(squares.chosen), unit="square"))
        image = images[square.place]
        for method, own in zip(methods, scores, strict=True):
            own.add(image, answer(method, [_sample(image, method, square)])[0], square.reference)
        first = scores[0].own[-1]
        maps[:, *square.place] = first.area_virtual, first.area_reference, first.stain_r
    return scores, SlideMaps(*maps)


def _sample(image: ImageFacts, method: Method, square: Square) -> Sample:
    return Sample(image, square.he, square.reference, {method.name: square.virtual})


def _image(row: int, column: int) -> ImageFacts:
    name = f"row {row}, column {column}"
    return ImageFacts(name, name)


def _calibration(
    pair: SlidePair, squares: SquareGrid, options: EvaluateOptions, progress: ProgressCallback
) -> Calibration:
    if options.stained_from is not None:
        return Calibration(options.stained_from, "as stated")
    progress(Progress("looking at the reference's stain"))
    some = squares.chosen[:: -(-len(squares.chosen) // CALIBRATION_SQUARES)]
    counts = np.zeros(BINS)
    for square in read_squares(pair, squares, some):
        counts += density_counts(square.reference)
    return Calibration(otsu_threshold(counts), "Otsu's threshold of the reference slide")


def _source(pair: SlidePair, squares: SquareGrid) -> Source:
    """The squares as samples, for pictures."""
    images = tuple(_image(int(row), int(column)) for row, column in squares.chosen)

    def load(number: int) -> Sample:
        (square,) = read_squares(pair, squares, squares.chosen[number : number + 1])
        return Sample(images[number], square.he, square.reference, {"virtual slide": square.virtual})

    return Source(images, load)


def _overview(slide: Slide) -> RGBImage:
    return read_overview(slide, _overview_grid(slide))


def _overview_grid(slide: Slide) -> WorkingGrid:
    side = max(slide.info.bounds.width, slide.info.bounds.height)
    return overview_grid(slide.info, max(1.0, side / OVERVIEW_PX))


def _overview_of_reference(pair: SlidePair) -> RGBImage:
    """The reference as it lies on the virtual slide."""
    grid = _overview_grid(pair.virtual)
    region = Region(0, 0, grid.size.width, grid.size.height)
    x_um, y_um = centres_um(pair, grid, region, (region.width, region.height))
    mpp = min(math.sqrt(grid.mpp[0] * grid.mpp[1]), COARSEST_MPP)
    return read_warped(pair.reference, pair.transform, mpp, x_um, y_um).pixels


def _notes(transform: Path | None, he: str | None, origin: Origin, reference: SlideInfo) -> Iterator[str]:
    if is_comparable(origin.quickhash, reference.quickhash) and origin.quickhash == reference.quickhash:
        yield f"{reference.name} is the slide that the virtual slide was made from: this says nothing of a stain"
    yield "intervals are over squares of one slide: they say how far its places differ, and nothing of other slides"
    yield "no training split is at hand: no colour regression, no HER2 cuts"
    yield "pixels of a written slide have passed through its compression and, beside tissue, through its fill"
    if he is None:
        yield "the H&E slide was not named (--he), so that the floor counterstain cannot be computed"
    if transform is None:
        yield "no transform was named: both slides are taken to lie upon each other, µm for µm"
    elif not origin.quickhash:
        yield "the virtual slide does not say what it was made from: whether the transform is that slide's is not known"
