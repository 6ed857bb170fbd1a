"""What a tissue mask is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import RGB, BoolImage


class Annotation(NamedTuple):
    """Areas of a mask file that have the same class and name ("" where there is none).

    is_ignored: whether they were left out of the tissue
    """

    classification: str
    name: str
    areas: int
    is_ignored: bool


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Where a slide has tissue, and what its glass looks like.

    pixels:         (rows, columns) bool, read-only; at least 1×1
    origin:         level-0 px of the mask's top left corner, as (x, y); may be fractional
    pixel_size:     level-0 px that one mask px spans, as (x, y)
    glass:          RGB of the slide's own glass
    warnings:       doubts about the slide or the mask, one sentence each, for people
    bounds_origin:  level-0 px of the top left corner of the slide's scanned area, where GeoJSON counts from
    annotations:    what the mask was drawn as, where it comes from a file that says so

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
    annotations: tuple[Annotation, ...] = ()

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
