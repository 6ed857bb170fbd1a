"""What a report consists of, before it is rendered: sections of text, tables of figures, and pictures.

Whoever measures makes a `Report`; how it looks as a web page or as Markdown is nobody's business but `writing`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from wsi2ihc.arrays import RGBImage


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    value:      None where it is not defined, or was not computed
    low, high:  of the interval; None without one
    reason:     why there is no value, for people
    digits:     behind the point, where the rows of a column differ; None for the column's
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    digits: int | None = None


Cell: TypeAlias = str | int | float | Estimate | None
"""Of a table; None is an empty cell."""


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table.

    title:    its head, with the unit
    digits:   behind the point, of numbers that are no whole ones
    """

    title: str
    digits: int = 3


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in rows.

    name:     stem of its CSV file
    title:    above it
    columns:  their heads
    rows:     one cell for each column
    notes:    below it, a sentence or more each
    is_shown: False for one that is too long to be read: the page then names its CSV file
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    is_shown: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture with a caption.

    name:     stem of its file
    title:    above it
    pixels:   (rows, columns, 3) uint8 RGB
    caption:  what is to be seen, in words
    kind:     plots are kept without loss, photographs as JPEG
    """

    name: str
    title: str
    pixels: RGBImage
    caption: str = ""
    kind: Literal["plot", "photograph"] = "plot"


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A part of a report: paragraphs, then tables and pictures in the order given."""

    title: str
    paragraphs: tuple[str, ...] = ()
    contents: tuple[Table | Picture, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A whole report.

    title:     its head
    lead:      paragraphs in front of all sections
    sections:  in order
    data:      all figures as JSON values, under stable names; NaN and infinity are not among them
    """

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
