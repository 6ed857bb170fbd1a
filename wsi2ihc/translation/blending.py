"""Third stage: answers of windows become final pixels of cores.

Where the network is local, the core is cut out and that is all. Where it is not, neighbouring windows overlap and are
averaged with weights that fall linearly towards their borders; the result is smooth, but an approximation.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import RGBImage
from ..geometry import Region
from ..plan import Plan, Window
from .stages import FinishedCore, TranslatedWindow

Cell = tuple[int, int]
"""(row, column) of a cell, so that cells sort in raster order."""


def cut_cores(answers: Iterable[TranslatedWindow]) -> Iterator[FinishedCore]:
    """Keep each window's core. Ordered as the input; holds nothing back."""
    for answer in answers:
        window = answer.window
        yield FinishedCore(window, answer.source, answer.pixels[window.core.slices_in(window.answer)])


@dataclass(slots=True)
class _Answer:
    """A window's answer, and how many unfinished cores it contributes to, its own included."""

    window: Window
    pixels: RGBImage
    needed_by: int


def blend_overlaps(answers: Iterable[TranslatedWindow], plan: Plan) -> Iterator[FinishedCore]:
    """Average overlapping windows; each core comes out once, when the last window around it has arrived.

    The weight of a window is a product of two ramps (one for x, one for y) that rise linearly from 0 at the window's
    border over the whole overlap. Two neighbours' ramps add up to one; where a neighbour is missing (glass, or the
    slide's border), the sum is divided by what is there.

    Expects windows in raster order. Cores come out in the order in which they are completed, which is raster order
    within a row of cells. Memory bound: the answers of two rows of cells and some three windows more, 3 bytes a px;
    the sources of the cores among them that are not finished; and one core in float32.

    Raises
    ------
    ValueError
        If windows reach beyond the cells next to theirs.
    """
    if plan.layout.overlap_px // 2 > min(plan.cell.width, plan.cell.height):
        raise ValueError(f"cells of {plan.cell} px are too small for an overlap of {plan.layout.overlap_px} px")
    return _blended(answers, plan)


def _blended(answers: Iterable[TranslatedWindow], plan: Plan) -> Iterator[FinishedCore]:
    present = {(window.row, window.column) for window in plan.windows}
    kept: dict[Cell, _Answer] = {}
    sources: dict[Cell, RGBImage] = {}
    for answer in answers:
        cell = (answer.window.row, answer.window.column)
        around = _neighbourhood(cell, present)
        kept[cell] = _Answer(answer.window, answer.pixels, len(around))
        # A copy, since the source is a view into the whole window as it was read.
        sources[cell] = answer.source.copy()
        for core in around:
            contributors = _neighbourhood(core, present)
            # What contributes to an unfinished core is kept, so this is true once: when the last of them arrives.
            if all(other in kept for other in contributors):
                window = kept[core].window
                pixels = _blend(window.core, [kept[other] for other in contributors], plan.layout.overlap_px)
                _release(contributors, kept)
                yield FinishedCore(window, sources.pop(core), pixels)


def _neighbourhood(cell: Cell, present: Container[Cell]) -> list[Cell]:
    """The cells of the plan among a cell and the eight around it, in raster order."""
    row, column = cell
    around = ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return [other for other in around if other in present]


def _release(cells: Iterable[Cell], kept: dict[Cell, _Answer]) -> None:
    """Count down the unfinished cores of some answers, and drop those that have none left."""
    for cell in cells:
        kept[cell].needed_by -= 1
        if not kept[cell].needed_by:
            del kept[cell]


def _blend(core: Region, answers: Iterable[_Answer], overlap_px: int) -> RGBImage:
    """Weighted mean of the answers over a core: (rows, columns, 3) uint8."""
    weighted = np.zeros((core.height, core.width, 3), dtype=np.float32)
    total = np.zeros((core.height, core.width, 1), dtype=np.float32)
    for answer in answers:
        place = answer.window.answer
        shared = core.intersection(place)
        if shared.is_empty:
            continue
        here, there = shared.slices_in(core), shared.slices_in(place)
        rows, columns = _ramp(place.height, overlap_px)[there[0]], _ramp(place.width, overlap_px)[there[1]]
        weight = (rows[:, np.newaxis] * columns[np.newaxis, :])[..., np.newaxis]
        weighted[here] += weight * answer.pixels[there]
        total[here] += weight
    weighted /= total
    np.rint(weighted, out=weighted)
    return weighted.astype(np.uint8)


def _ramp(side_px: int, overlap_px: int) -> npt.NDArray[np.float32]:
    """Weights along one side: (i + ½) / overlap from the border inwards, at most 1."""
    distance = np.arange(side_px, dtype=np.float32) + 0.5
    nearest = np.minimum(distance, distance[::-1])
    ramp: npt.NDArray[np.float32] = np.minimum(nearest / max(overlap_px, 1), 1.0).astype(np.float32)
    return ramp
