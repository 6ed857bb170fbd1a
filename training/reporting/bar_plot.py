"""Bars in groups, with whiskers for their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi2ihc.arrays import RGBImage

from .document import Estimate
from .drawing import (
    INK,
    TEXT_POINTS,
    WIDTH_INCHES,
    add_legend,
    blank,
    default_settings,
    literal,
    open_frame,
    pixels_of,
    style,
)
from .tables import number

GROUP_SHARE = 0.82
"""Of the distance between two categories that their bars take."""

LEVEL_LABELS, UPRIGHT_LABELS = 12, 40
"""With up to so many bars their values stand above them level, then upright; with more there is no room."""

LEVEL_ROOM, UPRIGHT_ROOM = 0.07, 0.16
"""Of the axis, beyond the longest bar or whisker, for the value that is written there."""


@default_settings()
def bars(values: Mapping[str, Mapping[str, Estimate]], title: str, unit: str, x_title: str = "HER2 level") -> RGBImage:
    """Bars in groups, with whiskers for their intervals.

    Parameters
    ----------
    values
        By series and category. Categories come in the order in which the series name them. What is not defined is left
        out, and its place stays free.
    title
        Above the plot.
    unit
        Title of the axis of values; if empty, that is the plot's title.
    x_title
        What the categories are.
    """
    categories = list(dict.fromkeys(category for series in values.values() for category in series))
    width, count = GROUP_SHARE / max(len(values), 1), len(values) * len(categories)
    found = _bars(values, categories, width)
    axes = blank(title, x_title, unit or title, 4.6)
    open_frame(axes)
    from matplotlib.patches import Patch

    looks = [_look(place) for place in range(len(values))]
    for bar in found:
        axes.bar(bar.x, bar.value, 0.92 * width, **looks[bar.series])
        if bar.interval:
            axes.plot([bar.x, bar.x], bar.interval, color=INK, linewidth=1.0, marker="_", markersize=6, zorder=3)
    if count <= UPRIGHT_LABELS:
        _write_values(axes, found, is_upright=count > LEVEL_LABELS)
    _set_span(axes, found, UPRIGHT_ROOM if LEVEL_LABELS < count <= UPRIGHT_LABELS else LEVEL_ROOM)
    axes.axhline(0.0, color=INK, linewidth=0.6)
    axes.spines["bottom"].set_visible(False)
    _name_categories(axes, categories)
    add_legend(axes, [Patch(label=literal(name), **look) for name, look in zip(values, looks, strict=True)])
    return pixels_of(axes)


@dataclass(frozen=True, slots=True)
class _Bar:
    """One bar.

    series:    which, by number
    x:         of its middle; categories are 1 apart
    value:     its height
    interval:  both ends, or nothing; one of percentiles need not hold the value
    """

    series: int
    x: float
    value: float
    interval: tuple[float, ...]

    @property
    def top(self) -> float:
        """What of it is farthest up."""
        return max((self.value, *self.interval))

    @property
    def bottom(self) -> float:
        """What of it is farthest down."""
        return min((self.value, *self.interval))


def _bars(values: Mapping[str, Mapping[str, Estimate]], categories: Sequence[str], width: float) -> list[_Bar]:
    found = []
    for place, series in enumerate(values.values()):
        offset = (place - (len(values) - 1) / 2) * width
        for category, estimate in series.items():
            if estimate.value is None or not math.isfinite(estimate.value):
                continue
            ends = tuple(end for end in (estimate.low, estimate.high) if end is not None and math.isfinite(end))
            interval = ends if len(ends) == 2 else ()
            found.append(_Bar(place, categories.index(category) + offset, estimate.value, interval))
    return found


def _look(series: int) -> dict[str, Any]:
    colour, _, hatch = style(series)
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.0}


def _write_values(axes: Any, found: Sequence[_Bar], is_upright: bool) -> None:
    """Write values beyond their bars and whiskers, all with as many digits as give the largest one three."""
    largest = max((abs(bar.value) for bar in found), default=0.0)
    digits = min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest else 0
    gap = 6 if is_upright else 3  # a whisker's end beneath an upright number would read as its minus
    for bar in found:
        is_up = bar.value >= 0
        axes.annotate(
            number(bar.value, digits),
            (bar.x, bar.top if is_up else bar.bottom),
            (0, gap if is_up else -gap),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="bottom" if is_up else "top",
            rotation=90 if is_upright else 0,
            fontsize=TEXT_POINTS - 1.5,
            color=INK,
        )


def _set_span(axes: Any, found: Sequence[_Bar], room: float) -> None:
    """Show all of every bar, and 0, from which bars begin."""
    low, high = min([0.0, *(bar.bottom for bar in found)]), max([0.0, *(bar.top for bar in found)])
    span = (high - low) or 1.0
    axes.set_ylim(low - room * span if low < 0 else 0.0, high + room * span if high > 0 or low == 0 else 0.0)
    axes.ticklabel_format(axis="y", useOffset=False)


def _name_categories(axes: Any, categories: Sequence[str]) -> None:
    room = int(0.8 * WIDTH_INCHES * 72 / (0.6 * TEXT_POINTS * max(len(categories), 1)))
    names = [literal(category, 30) for category in categories]
    slanted = max(map(len, names), default=0) > room
    axes.set_xticks(range(len(names)), names, rotation=30 if slanted else 0, ha="right" if slanted else "center")
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.tick_params(axis="x", length=0)
