"""No box around the tissue: where a core ends against untouched glass, its last pixels fade into the glass colour.

Cores end in the mask's margin, which is glass; translated glass still has the scanner's noise and shading, and the
plain fill beside it has not. The weights depend on the place alone, never on the window, so tiling stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, BoolImage
from ..plan import TRIM_PX, Plan
from .stages import FinishedCore

FEATHER_PX = 32
"""Width of the transition; at most `TRIM_PX`, so that only adjacent blocks matter."""

_COARSE_PX = 8
"""The weights vary slowly: they are computed at this spacing and interpolated."""


def feather_cores(cores: Iterable[FinishedCore], plan: Plan, fill: RGB) -> Iterator[FinishedCore]:
    """Blend the outermost `FEATHER_PX` of cores into ``fill``, except at the extent's border. Order is kept.

    Memory bound: one byte per block of `TRIM_PX`² of the extent, and one core's weights.
    """
    kept = _kept_blocks(plan)
    for core in cores:
        weight = _weights(core, plan, kept)
        if weight is None:
            yield core
            continue
        pixels = core.pixels.astype(np.float32)
        pixels -= np.array(fill, dtype=np.float32)
        pixels *= weight[..., np.newaxis]
        pixels += np.array(fill, dtype=np.float32)
        np.rint(pixels, out=pixels)
        yield FinishedCore(core.window, core.source, pixels.astype(np.uint8))


def _kept_blocks(plan: Plan) -> BoolImage:
    """Which blocks of the cell grid belong to a core; one more block, counted as kept, all around the extent."""
    x0, y0 = plan.cell_origin
    columns = -(-(plan.extent.right - x0) // TRIM_PX)
    rows = -(-(plan.extent.bottom - y0) // TRIM_PX)
    kept = np.zeros((rows + 2, columns + 2), dtype=np.bool_)
    kept[[0, -1], :] = True
    kept[:, [0, -1]] = True
    for window in plan.windows:
        core = window.core.shifted(-x0, -y0)
        kept[core.y // TRIM_PX + 1 : -(-core.bottom // TRIM_PX) + 1,
             core.x // TRIM_PX + 1 : -(-core.right // TRIM_PX) + 1] = True  # fmt: skip
    return kept


def _weights(core: FinishedCore, plan: Plan, kept: BoolImage) -> npt.NDArray[np.float32] | None:
    """Weight of the translation for each px of the core (rows, columns), or None where it is 1 everywhere."""
    place = core.window.core.shifted(-plan.cell_origin[0], -plan.cell_origin[1])
    first_row, last_row = place.y // TRIM_PX, (place.bottom - 1) // TRIM_PX
    first_column, last_column = place.x // TRIM_PX, (place.right - 1) // TRIM_PX
    # One block more on each side: index i of the map is block i - 1.
    around = kept[first_row : last_row + 3, first_column : last_column + 3]
    if around.all():
        return None
    scale = TRIM_PX // _COARSE_PX
    coarse = np.repeat(np.repeat(around.astype(np.uint8), scale, axis=0), scale, axis=1)
    distance_px = cv2.distanceTransform(coarse, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * _COARSE_PX
    # A coarse px next to glass has its centre half a step from the border.
    weight = np.clip((distance_px - _COARSE_PX / 2) / FEATHER_PX, 0, 1).astype(np.float32)
    full = cv2.resize(weight, None, fx=_COARSE_PX, fy=_COARSE_PX, interpolation=cv2.INTER_LINEAR)
    top, left = place.y - (first_row - 1) * TRIM_PX, place.x - (first_column - 1) * TRIM_PX
    return np.asarray(full[top : top + place.height, left : left + place.width], dtype=np.float32)
