"""A virtual slide against the stained slide of the same or of the next section, square by square."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.progress import Progress, ProgressCallback, silent
from wsi2ihc.registration.files import load_transform
from wsi2ihc.registration.transform import identity
from wsi2ihc.registration.warp_plan import check_slide
from wsi2ihc.slide import Slide, open_slide, overview_grid, read_overview

from ..moments import correlation
from .calibration import Calibration, density_counts, otsu_threshold
from .grid_seams import GridSeams, measure_grid
from .methods import Method, floors
from .options import EvaluateOptions
from .results import Evaluation, MethodResult
from .scores import ImageFacts, Scores
from .scoring import answer
from .source import Sample
from .squares import SQUARE_UM, SlidePair, Square, SquareGrid, plan_squares, read_squares
from .sums import BINS, Scale

OVERVIEW_PX = 1200

CALIBRATION_SQUARES = 200
"""So many, evenly spread, are looked at for the threshold."""

_log = logging.getLogger(__name__)


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
    reported:    what the translation reported of its seams; None where there is no report
    overviews:   both slides, small
    """

    evaluation: Evaluation
    squares: SquareGrid
    maps: SlideMaps
    seams: tuple[GridSeams, ...]
    reported: Mapping[str, Any] | None
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
        If the slides have no tissue in the same place.
    MissingResolutionError, UnreadableSlideError, TransformError
        If a slide or the transform cannot be used.
    """
    options = options or EvaluateOptions()
    found = load_transform(transform) if transform is not None else identity()
    report = _report_beside(virtual)
    with ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(open_slide(path, mpp=mpp)) for path, mpp in ((virtual, None), (reference, options.mpp))
        )
        source = stack.enter_context(open_slide(he)) if he else None
        if source is not None:
            check_slide(found.fixed, source.info)
        check_slide(found.moving, theirs.info)
        pair = SlidePair(ours, theirs, found, _offset_um(report), source)
        progress(Progress("finding the tissue of both"))
        squares = plan_squares(pair, square_um)
        calibration = _calibration(pair, squares, options, progress)
        methods = [Method("virtual slide", "given", None, facts={"description": ours.info.name})]
        methods += floors(None) if source else []
        scores, maps = _compare(pair, squares, methods, Scale(calibration.stained_from, squares.mpp), progress)
        progress(Progress("looking for seams"))
        seams = tuple(measure_grid(ours, *cells) for cells in _cells(report))
        overviews = _overview(ours), _overview(theirs)
        evaluation = Evaluation(
            subject=f"{ours.info.name} against {theirs.info.name}: {len(squares.chosen):,} squares of "
            f"{squares.side_px * squares.mpp:.0f} µm",
            unit="squares",
            levels=(),
            methods=tuple(map(MethodResult, methods, scores)),
            calibration=calibration,
            inception={"reason": "two slides are not a set of images"},
            notes=tuple(_notes(transform, he)),
            facts={
                "options": options.stated("stained_from", "mpp", "resamples", "seed"),
                "square_um": squares.side_px * squares.mpp,
                "mpp": squares.mpp,
            },
        )
    return SlideEvaluation(evaluation, squares, maps, seams, report.get("seams") if report else None, overviews)


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


def _report_beside(virtual: str) -> dict[str, Any] | None:
    """What the translation has written beside its output; None where there is nothing of the kind."""
    path = Path(f"{virtual}.json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and "output_mpp" in report else None


def _offset_um(report: Mapping[str, Any] | None) -> tuple[float, float]:
    """Where the corner of the virtual slide lies on its source: not at its corner if a part of it was translated."""
    try:
        x, y = (report or {})["position_um"]
        return float(x), float(y)
    except (KeyError, TypeError, ValueError):
        return 0.0, 0.0


def _cells(report: Mapping[str, Any] | None) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Grids on which seams can lie: what they are of, width and height of a cell, and where the first one begins, px.

    Windows that were blended have no borders.
    """
    facts = report or {}
    try:
        tile_px = int(facts["options"]["pyramid"]["tile_px"])
    except (KeyError, TypeError, ValueError):
        tile_px = 512
    yield f"tiles of {tile_px} px", (tile_px, tile_px), (0, 0)
    try:
        plan = facts["plan"]
        (width, height), (x, y) = plan["cell"], plan["cell_origin"]
        if plan["overlap_px"] == 0 and plan["halo_px"] > 0:
            yield f"cores of {width}×{height} px", (int(width), int(height)), (int(x), int(y))
    except (KeyError, TypeError, ValueError):
        return


def _overview(slide: Slide) -> RGBImage:
    side = max(slide.info.bounds.width, slide.info.bounds.height)
    return read_overview(slide, overview_grid(slide.info, max(1.0, side / OVERVIEW_PX)))


def _notes(transform: Path | None, he: str | None) -> Iterator[str]:
    yield ("intervals are over squares of one slide: they say how far its places differ, and nothing of other slides")
    yield "no training split is at hand: no colour regression, no HER2 cuts"
    if he is None:
        yield "the H&E slide was not named (--he), so that the floor counterstain cannot be computed"
    if transform is None:
        yield "no transform was named: both slides are taken to lie upon each other, µm for µm"
