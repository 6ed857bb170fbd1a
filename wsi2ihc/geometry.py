"""Sizes and rectangles in whole pixels, and names of array types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in px; both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a size needs at least 1 px each way, not {self.width}×{self.height}")

    @property
    def area_px(self) -> int:
        return self.width * self.height

    @property
    def frame(self) -> Region:
        """Region of this size at the origin."""
        return Region(0, 0, self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in px; may lie partly or wholly at negative coordinates, and may be empty."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"a region cannot have negative sides ({self.width}×{self.height})")

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def size(self) -> Size:
        """Width and height of a region that is not empty."""
        return Size(self.width, self.height)

    @property
    def area_px(self) -> int:
        return self.width * self.height

    @property
    def is_empty(self) -> bool:
        return self.width == 0 or self.height == 0

    def shifted(self, dx: int, dy: int) -> Region:
        """Return the rectangle moved by (dx, dy)."""
        return Region(self.x + dx, self.y + dy, self.width, self.height)

    def grown(self, margin_px: int) -> Region:
        """Return the rectangle extended by ``margin_px`` on all four sides (reduced, if negative)."""
        return Region(
            self.x - margin_px,
            self.y - margin_px,
            max(0, self.width + 2 * margin_px),
            max(0, self.height + 2 * margin_px),
        )

    def intersection(self, other: Region) -> Region:
        """Return the intersection; empty (zero width or height) if the regions do not overlap."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Region(x, y, max(0, right - x), max(0, bottom - y))

    def contains(self, other: Region) -> bool:
        """Whether no pixel of ``other`` lies outside this region."""
        return other.is_empty or self.intersection(other) == other

    def slices_in(self, frame: Region) -> tuple[slice, slice]:
        """Return row and column slices of this region in an array of ``frame``, which must contain it."""
        if not frame.contains(self):
            raise ValueError(f"{self} does not lie in {frame}")
        return (slice(self.y - frame.y, self.bottom - frame.y), slice(self.x - frame.x, self.right - frame.x))

    def __str__(self) -> str:
        return f"{self.width}×{self.height} at ({self.x}, {self.y})"


def floor_to(value: int, multiple: int) -> int:
    """Return the greatest multiple of ``multiple`` that is at most ``value``."""
    return value // multiple * multiple


def ceil_to(value: int, multiple: int) -> int:
    """Return the least multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def halved(size: Size) -> Size:
    """Return half of a size, rounded up: the size of the next pyramid level."""
    return Size(math.ceil(size.width / 2), math.ceil(size.height / 2))


RGBImage: TypeAlias = npt.NDArray[np.uint8]  # one image: (rows, columns, 3), uint8, RGB
RGBBatch: TypeAlias = npt.NDArray[np.uint8]  # images of one shape: (N, rows, columns, 3), uint8, RGB
BoolImage: TypeAlias = npt.NDArray[np.bool_]  # a mask: (rows, columns), bool
RGB: TypeAlias = tuple[int, int, int]  # one color, 0 to 255 per channel

WHITE: RGB = (255, 255, 255)
