"""What a tissue mask is, and which cells of a grid it touches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import RGB, BoolImage

_ROUNDING_PX = 1e-6
"""Overlaps of less than this share of a mask px are rounding errors."""


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Where a slide has tissue, and what its glass looks like.

    pixels:         (rows, columns) bool, read-only; at least 1×1
    origin:         level-0 px of the mask's top left corner, as (x, y); may be fractional
    pixel_size:     level-0 px that one mask px spans, as (x, y)
    glass:          RGB of the slide's own glass
    warnings:       doubts about the slide or the mask, one sentence each, for people
    bounds_origin:  level-0 px of the top left corner of the slide's scanned area, where GeoJSON counts from

    Raises
    ------
    ValueError
        If the pixels are no mask or the pixel size is not positive.
    """

    pixels: BoolImage
    origin: tuple[float, float]
    pixel_size: tuple[float, float]
    glass: RGB
    warnings: tuple[str, ...] = ()
    bounds_origin: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.size == 0 or self.pixels.dtype != np.bool_:
            raise ValueError(f"a mask is a (rows, columns) bool image, not {self.pixels.shape} {self.pixels.dtype}")
        if not min(self.pixel_size) > 0:
            raise ValueError(f"mask px must have a positive size, not {self.pixel_size}")
        frozen = self.pixels.view()
        frozen.flags.writeable = False
        object.__setattr__(self, "pixels", frozen)

    @property
    def share(self) -> float:
        """Share of the mask that is tissue, 0 to 1."""
        return float(self.pixels.mean())

    @property
    def is_empty(self) -> bool:
        """Whether there is no tissue at all."""
        return not self.pixels.any()

    def any_in(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether a rectangle in level-0 px overlaps tissue; touching edges do not count."""
        cell = (right - left, bottom - top)
        return min(cell) > 0 and bool(occupied_cells(self, (left, top), cell, (1, 1))[0, 0])


def occupied_cells(
    mask: TissueMask, origin: tuple[float, float], cell: tuple[float, float], shape: tuple[int, int]
) -> BoolImage:
    """Which cells of a regular grid overlap tissue, even in part.

    Parameters
    ----------
    mask
        The tissue.
    origin
        Level-0 px of the grid's top left corner, as (x, y).
    cell
        Level-0 px of a cell, as (width, height); fractions are fine.
    shape
        (rows, columns) of the grid. Cells may lie outside the mask, where there is no tissue.

    Returns
    -------
    BoolImage
        Of ``shape``.

    Raises
    ------
    ValueError
        If a cell has no area.

    Notes
    -----
    One integral image of the mask (4 bytes per px) answers for all cells. Overlaps below a millionth of a mask px
    are taken for rounding errors.
    """
    if not min(cell) > 0:
        raise ValueError(f"cells must have a positive size, not {cell}")
    integral = np.zeros((mask.pixels.shape[0] + 1, mask.pixels.shape[1] + 1), np.int32)
    np.cumsum(mask.pixels, axis=0, dtype=np.int32, out=integral[1:, 1:])
    np.cumsum(integral, axis=1, out=integral)
    top, bottom = _spans(mask, 1, origin[1], cell[1], shape[0])
    left, right = _spans(mask, 0, origin[0], cell[0], shape[1])
    inside = integral[bottom][:, right] - integral[top][:, right] - integral[bottom][:, left] + integral[top][:, left]
    return inside > 0


def cell_boxes(
    origin: tuple[float, float], cell: tuple[float, float], shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """The rectangles of such a grid's cells: (rows, columns, 4), left, top, right, bottom in level-0 px."""
    rows, columns = shape
    boxes = np.empty((rows, columns, 4))
    boxes[..., 0] = (origin[0] + cell[0] * np.arange(columns))[np.newaxis, :]
    boxes[..., 1] = (origin[1] + cell[1] * np.arange(rows))[:, np.newaxis]
    boxes[..., 2] = (origin[0] + cell[0] * np.arange(1, columns + 1))[np.newaxis, :]
    boxes[..., 3] = (origin[1] + cell[1] * np.arange(1, rows + 1))[:, np.newaxis]
    return boxes


def _spans(
    mask: TissueMask, axis: int, origin: float, cell: float, count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Per cell along one axis: the mask px it overlaps, as [first, last)."""
    edges = (origin + cell * np.arange(count + 1) - mask.origin[axis]) / mask.pixel_size[axis]
    limit = mask.pixels.shape[1 - axis]
    first = np.clip(np.floor(edges[:-1] + _ROUNDING_PX), 0, limit).astype(np.intp)
    last = np.clip(np.ceil(edges[1:] - _ROUNDING_PX), 0, limit).astype(np.intp)
    return first, np.maximum(first, last)
