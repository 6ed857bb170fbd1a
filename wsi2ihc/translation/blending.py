"""Third stage: answers of windows become final pixels of cores.

Where the network is local, the core is cut out and that is all. Where it is not, neighbouring windows overlap and are
averaged with weights that fall linearly towards their borders; the result is smooth, but an approximation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
class _Accumulator:
    """A core that still waits for neighbours: float32 sums, 16 bytes a px."""

    window: Window
    source: RGBImage | None
    weighted: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    missing: set[Cell]


def blend_overlaps(answers: Iterable[TranslatedWindow], plan: Plan) -> Iterator[FinishedCore]:
    """Average overlapping windows; each core comes out once, when its last neighbour has contributed.

    The weight of a window is a product of two ramps (one for x, one for y) that rise linearly from 0 at the window's
    border over the whole overlap. Two neighbours' ramps add up to one; where a neighbour is missing (glass, or the
    slide's border), the sum is divided by what is there.

    Expects windows in raster order. Cores come out in the order in which they are completed, which is raster order
    within a row of cells. Memory bound: the cores of two rows of cells, 16 bytes a px.
    """
    present = {(window.row, window.column): window for window in plan.windows}
    open_cores: dict[Cell, _Accumulator] = {}
    for answer in answers:
        window = answer.window
        weight = _window_weight(window.answer, plan.layout.overlap_px)
        for cell in _neighbourhood((window.row, window.column), present):
            core = open_cores.get(cell)
            if core is None:
                core = open_cores[cell] = _open_core(present[cell], cell, present)
            if cell == (window.row, window.column):
                core.source = answer.source
            _contribute(core, answer, weight)
            core.missing.discard((window.row, window.column))
        for cell in sorted(cell for cell, core in open_cores.items() if not core.missing):
            yield _finish(open_cores.pop(cell))


def _neighbourhood(cell: Cell, present: dict[Cell, Window]) -> list[Cell]:
    row, column = cell
    around = ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return [other for other in around if other in present]


def _open_core(window: Window, cell: Cell, present: dict[Cell, Window]) -> _Accumulator:
    shape = (window.core.height, window.core.width)
    return _Accumulator(
        window,
        None,
        np.zeros((*shape, 3), dtype=np.float32),
        np.zeros((*shape, 1), dtype=np.float32),
        set(_neighbourhood(cell, present)),
    )


def _window_weight(answer: Region, overlap_px: int) -> npt.NDArray[np.float32]:
    rows, columns = (_ramp(side, overlap_px) for side in (answer.height, answer.width))
    weight: npt.NDArray[np.float32] = (rows[:, np.newaxis] * columns[np.newaxis, :])[..., np.newaxis]
    return weight


def _ramp(side_px: int, overlap_px: int) -> npt.NDArray[np.float32]:
    """Weights along one side: (i + ½) / overlap from the border inwards, at most 1."""
    distance = np.arange(side_px, dtype=np.float32) + 0.5
    nearest = np.minimum(distance, distance[::-1])
    ramp: npt.NDArray[np.float32] = np.minimum(nearest / max(overlap_px, 1), 1.0).astype(np.float32)
    return ramp


def _contribute(core: _Accumulator, answer: TranslatedWindow, weight: npt.NDArray[np.float32]) -> None:
    shared = core.window.core.intersection(answer.window.answer)
    if shared.is_empty:
        return
    here, there = shared.slices_in(core.window.core), shared.slices_in(answer.window.answer)
    core.weighted[here] += weight[there] * answer.pixels[there]
    core.weight[here] += weight[there]


def _finish(core: _Accumulator) -> FinishedCore:
    if core.source is None:
        raise AssertionError("a core was completed without its own window")
    core.weighted /= core.weight
    np.rint(core.weighted, out=core.weighted)
    return FinishedCore(core.window, core.source, core.weighted.astype(np.uint8))
