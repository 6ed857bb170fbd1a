"""Plots of a report: bars with intervals, histograms, dense scatter, confusion, and maps; each returns its pixels.

All raise `OutputError` if matplotlib is not installed (`require_matplotlib` says so before any work is done), and
`ValueError` if shapes do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage

from .bar_plot import bars
from .drawing import (
    EMPTY,
    INK,
    TEXT_POINTS,
    add_colour_bar,
    add_legend,
    blank,
    default_settings,
    literal,
    open_frame,
    pixels_of,
    require_matplotlib,
    style,
)
from .tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bars", "confusion", "heat_map", "histograms", "require_matplotlib", "scatter_density"]

MAP_INCHES = (6.0, 8.0)
"""A map is at most so wide and high; the longer side of its own proportions decides."""

MAP_MARGIN_INCHES = (2.0, 1.0)
LEAST_MAP_INCHES = (3.6, 1.6)
"""Room for titles and the scale of colours, however narrow or low the map."""

CONFUSION_CHARACTERS = 40
"""Room for the labels below a confusion matrix; longer ones stand upright."""

MARKED_CELLS = 12
"""A confusion matrix of more classes shows no counts in its cells."""


@default_settings()
def histograms(
    series: Mapping[str, npt.NDArray[Any]],
    edges: npt.NDArray[np.floating[Any]],
    title: str,
    x_title: str,
    *,
    log: bool = False,
) -> RGBImage:
    """Densities of several series as step lines.

    Parameters
    ----------
    series
        Counts in bins (N,) by name; each is divided by its sum and the widths of the bins. One of no counts is not
        drawn.
    edges
        Of the bins (N + 1,), ascending.
    title, x_title
        Above the plot; of the axis of values, with the unit.
    log
        Whether densities are on a logarithmic scale.
    """
    axes = blank(title, x_title, "density (per unit of x)", 4.4)
    open_frame(axes, "both")
    handles: list[Any] = []
    for place, (name, counts) in enumerate(series.items()):
        if counts.shape != (len(edges) - 1,):
            raise ValueError(f"histogram {name} has counts {counts.shape} for {len(edges) - 1} bins")
        total = float(counts.sum())
        if not total > 0:
            continue
        colour, dashes, _ = style(place)
        density = counts / (total * np.diff(edges))
        handles.append(axes.stairs(density, edges, color=colour, linewidth=1.5, linestyle=dashes, label=literal(name)))
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    if log and handles:
        axes.set_yscale("log", nonpositive="clip")
    else:
        axes.set_ylim(bottom=0.0)
    add_legend(axes, handles)
    return pixels_of(axes)


@default_settings()
def scatter_density(
    counts: npt.NDArray[Any],
    edges_x: npt.NDArray[np.floating[Any]],
    edges_y: npt.NDArray[np.floating[Any]],
    title: str,
    x_title: str,
    y_title: str,
    *,
    diagonal: bool = True,
    counted: str = "pixels",
) -> RGBImage:
    """So many points that only their density can be shown, on a logarithmic scale of colours.

    Parameters
    ----------
    counts
        (bins along x, bins along y), as of `numpy.histogram2d`; bins without points stay white.
    edges_x, edges_y
        Of the bins, ascending, one more than bins.
    title, x_title, y_title
        Above the plot; of the axes, with their units.
    diagonal
        Whether to draw the line of equal values.
    counted
        What the points are.
    """
    from_counts = (len(edges_x) - 1, len(edges_y) - 1)
    if counts.shape != from_counts:
        raise ValueError(f"counts {counts.shape} do not fit {from_counts} bins")
    axes = blank(title, x_title, y_title, 6.2, 7.2)
    from matplotlib.colors import LogNorm

    filled = np.ma.masked_less_equal(np.asarray(counts, np.float64).T, 0.0)
    low, high = (float(filled.min()), float(filled.max())) if filled.count() else (1.0, 1.0)
    scale = LogNorm(low, max(high, 10 * low))
    mesh = axes.pcolormesh(edges_x, edges_y, filled, norm=scale, cmap="viridis_r", rasterized=True)
    if diagonal:
        axes.axline((0.0, 0.0), slope=1.0, color="#d55e00", linewidth=1.2, linestyle=(0, (5, 3)))
    axes.set_xlim(float(edges_x[0]), float(edges_x[-1]))
    axes.set_ylim(float(edges_y[0]), float(edges_y[-1]))
    axes.set_box_aspect(1.0)
    add_colour_bar(axes, mesh, f"{counted} per bin")
    return pixels_of(axes)


@default_settings()
def confusion(
    matrix: npt.NDArray[np.integer[Any]], labels: Sequence[str], title: str, x_title: str, y_title: str
) -> RGBImage:
    """Counts of one classification against another; colours show the share of each row.

    Parameters
    ----------
    matrix
        (classes, classes): rows are along y, columns along x; row 0 is at the top.
    labels
        Of the classes.
    title, x_title, y_title
        Above the plot; what columns and rows are.
    """
    classes = len(labels)
    if matrix.shape != (classes, classes):
        raise ValueError(f"a matrix {matrix.shape} does not fit {classes} labels")
    axes = blank(title, x_title, y_title, 5.4, 6.4)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    shown = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues")
    if classes <= MARKED_CELLS:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.55 else INK
            size = TEXT_POINTS + (4 if classes <= 6 else 0)
            axes.text(column, row, number(int(count), 0), ha="center", va="center", color=colour, fontsize=size)
    names = [literal(label, 24) for label in labels]
    upright = classes * max(map(len, names), default=0) > CONFUSION_CHARACTERS
    axes.set_xticks(range(classes), names, rotation=90 if upright else 0)
    axes.set_yticks(range(classes), names)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    add_colour_bar(axes, shown, "share of the row")
    return pixels_of(axes)


@default_settings()
def heat_map(
    values: npt.NDArray[np.floating[Any]],
    title: str,
    unit: str,
    extent_mm: tuple[float, float] | None = None,
    *,
    limits: tuple[float, float] | None = None,
    symmetric: bool = False,
) -> RGBImage:
    """A value for each square of a slide.

    Parameters
    ----------
    values
        (rows, columns), NaN where there is none: those squares are grey.
    title, unit
        Above the plot; of the scale of colours.
    extent_mm
        Width and height of the whole; without them axes count squares.
    limits
        Of the scale of colours, so that several maps can be compared; by default the least and the greatest value.
    symmetric
        Whether the scale has its middle, which is white, at 0.
    """
    rows, columns = values.shape
    width, height = extent_mm or (float(columns), float(rows))
    axes = _map_axes(title, width, height, "mm" if extent_mm else "")
    known = np.ma.masked_invalid(np.asarray(values, np.float64))
    low, high = limits or ((float(known.min()), float(known.max())) if known.count() else (0.0, 1.0))
    if symmetric:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    axes.set_facecolor(EMPTY)
    shown = axes.imshow(
        known,
        cmap="RdBu_r" if symmetric else "viridis",
        vmin=low,
        vmax=high if high > low else low + 1.0,
        extent=(0.0, width, height, 0.0),
        interpolation="nearest",
    )
    if not known.count():
        axes.text(width / 2, height / 2, "no values", ha="center", va="center", color=INK, fontsize=TEXT_POINTS + 2)
    add_colour_bar(axes, shown, unit)
    return pixels_of(axes)


def _map_axes(title: str, width: float, height: float, unit: str) -> Axes:
    """Axes on a figure of the map's own proportions."""
    inches_per_unit = min(MAP_INCHES[0] / width, MAP_INCHES[1] / height)
    across, down = (
        max(side * inches_per_unit, least) + margin
        for side, least, margin in zip((width, height), LEAST_MAP_INCHES, MAP_MARGIN_INCHES, strict=True)
    )
    names = (f"x ({unit})", f"y ({unit})") if unit else ("column", "row")
    return blank(title, *names, down, across)
