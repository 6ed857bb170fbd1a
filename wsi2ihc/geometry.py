"""Sizes and rectangles in whole pixels, and the few operations that the pipeline needs on them.

Coordinates are ``(x, y)`` and sizes ``(width, height)``, as in OpenSlide; a region covers the half-open intervals
``[x, x + width)`` and ``[y, y + height)``. Which pixels are meant (level 0, another level, the working grid) is said
by whoever holds the region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        """Width and height; only of regions that are not empty."""
        return Size(self.width, self.height)

    @property
    def area_px(self) -> int:
        return self.width * self.height

    @property
    def is_empty(self) -> bool:
        return self.width == 0 or self.height == 0

    def shifted(self, dx: int, dy: int) -> Region:
        """The same rectangle, moved by (dx, dy)."""
        return Region(self.x + dx, self.y + dy, self.width, self.height)

    def grown(self, margin_px: int) -> Region:
        """The rectangle with ``margin_px`` more on all four sides (less, where negative)."""
        return Region(
            self.x - margin_px,
            self.y - margin_px,
            max(0, self.width + 2 * margin_px),
            max(0, self.height + 2 * margin_px),
        )

    def intersection(self, other: Region) -> Region:
        """What both cover; empty (zero width or height) where they do not meet."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Region(x, y, max(0, right - x), max(0, bottom - y))

    def contains(self, other: Region) -> bool:
        """Whether no pixel of ``other`` lies outside this region."""
        return other.is_empty or self.intersection(other) == other

    def slices_in(self, frame: Region) -> tuple[slice, slice]:
        """Row and column slices of this region in an array that holds ``frame``; it must lie inside."""
        if not frame.contains(self):
            raise ValueError(f"{self} does not lie in {frame}")
        return (
            slice(self.y - frame.y, self.bottom - frame.y),
            slice(self.x - frame.x, self.right - frame.x),
        )

    def __str__(self) -> str:
        return f"{self.width}×{self.height} at ({self.x}, {self.y})"


def floor_to(value: int, multiple: int) -> int:
    """The greatest multiple of ``multiple`` that is not above ``value``."""
    return value // multiple * multiple


def ceil_to(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def halved(size: Size) -> Size:
    """The size of the next pyramid level: half of it, rounded up."""
    return Size(math.ceil(size.width / 2), math.ceil(size.height / 2))
