"""Plots of reports, drawn with matplotlib and returned as RGB arrays.

Each plot function starts with `blank_axes`, draws, and ends with `pixels_of`. Without pyplot's global state, plots can
be drawn in any thread.
"""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import OutputError
from wsi2ihc.geometry import RGBImage

from .document import Estimate, number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#555555")
"""Okabe and Ito's palette, safe for color-blind readers; neighbors also differ in lightness."""

DASHES = ((0.0, ()), (0.0, (5.0, 2.0)), (0.0, (1.0, 1.5)))
HATCHES = ("", "////", "....")
"""Styles of further series, after all colors are used."""

WIDTH_INCHES = 8.0
DOTS_PER_INCH = 150
"""Width of 1200 px: sharp, with readable text, on a page of 1000 px."""

TEXT_POINTS = 10
INK = "#222222"
SOFT = "#dddddd"
EMPTY = "#e6e6e6"
"""Color of positions without a value."""

TITLE_CHARACTERS = 78
LABEL_CHARACTERS, UPRIGHT_CHARACTERS = 44, 32


def require_matplotlib() -> None:
    """Check before any work is done that plots can be drawn.

    Raises
    ------
    OutputError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise OutputError("drawing plots needs matplotlib: pip install 'wsi2ihc[train]'") from error


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Use matplotlib's default settings and ignore any ``matplotlibrc``."""
    try:
        import matplotlib as mpl
    except ImportError:  # `blank_axes` raises the error
        yield
        return
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def blank_axes(
    title: str, x_title: str, y_title: str, height_inches: float, width_inches: float = WIDTH_INCHES
) -> Axes:
    """Return axes with titles on a new figure."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    characters = int(TITLE_CHARACTERS * width_inches / WIDTH_INCHES)
    # title of the figure, since the axes may be narrow and far to the right
    wrapped = textwrap.fill(literal(title, 3 * characters), characters)
    figure.suptitle(wrapped, x=0.01, horizontalalignment="left", fontsize=TEXT_POINTS + 2, color=INK)
    axes.set_xlabel(literal(x_title), fontsize=TEXT_POINTS, color=INK)
    axes.set_ylabel(literal(y_title, UPRIGHT_CHARACTERS), fontsize=TEXT_POINTS, color=INK)
    axes.tick_params(labelsize=TEXT_POINTS, width=0.6, length=3, color=INK, labelcolor=INK)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color=INK)
    return axes


def open_frame(axes: Axes, grid: str = "y") -> None:
    """Hide the top and right spines and draw a light grid."""
    directions: Any = grid
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=directions, color=SOFT, linewidth=0.6)


def literal(text: str, most: int = LABEL_CHARACTERS) -> str:
    """Return text on one line that matplotlib draws literally, without formulas and missing glyphs.

    Long text is shortened in the middle to ``most`` characters.
    """
    line = " ".join(text.split())
    if len(line) > most:
        line = f"{line[: most // 2]}…{line[len(line) - (most - most // 2 - 1) :]}"
    line = "".join(one if _has_glyph(one) else "□" for one in line)
    # matplotlib hides labels that start with an underscore
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def style(number: int) -> tuple[str, tuple[float, Sequence[float]], str]:
    """Return color, dashes and hatch of a series."""
    cycle = number // len(COLORS)
    return COLORS[number % len(COLORS)], DASHES[cycle % len(DASHES)], HATCHES[cycle % len(HATCHES)]


def add_legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """Add a legend below the plot, in as many columns as fit."""
    figure = _figure(axes)
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, int(figure.get_figwidth() * 72 / (0.6 * TEXT_POINTS * (longest + 9))))
    layout: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles=list(handles), fontsize=TEXT_POINTS, frameon=False, labelcolor=INK, **layout)


def add_color_bar(axes: Axes, mapped: Any, title: str) -> None:
    """Add a color bar with a title."""
    bar = _figure(axes).colorbar(mapped, ax=axes, fraction=0.05, pad=0.02, shrink=0.9)
    bar.set_label(literal(title), fontsize=TEXT_POINTS, color=INK)
    bar.ax.tick_params(labelsize=TEXT_POINTS, width=0.6, length=3, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)


def pixels_of(axes: Axes) -> RGBImage:
    """Render the figure of these axes to an array (rows, columns, 3)."""
    canvas: Any = _figure(axes).canvas
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3], dtype=np.uint8)


def _figure(axes: Axes) -> Figure:
    figure: Any = axes.figure
    return figure  # type: ignore[no-any-return]


@cache
def _has_glyph(one: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return bool(get_font(findfont(FontProperties())).get_char_index(ord(one)))


GROUP_WIDTH = 0.82
"""Width of a group of bars; categories are 1 apart."""

MOST_HORIZONTAL_LABELS, MOST_VERTICAL_LABELS = 12, 40
"""Maximum bars with horizontal and with vertical labels; more bars have none."""

HORIZONTAL_MARGIN, VERTICAL_MARGIN = 0.07, 0.16
"""Fraction of the axis reserved for labels beyond the longest bar or whisker."""


@default_settings()
def bars(values: Mapping[str, Mapping[str, Estimate]], title: str, unit: str, x_title: str = "HER2 level") -> RGBImage:
    """Draw grouped bars with whiskers for their intervals.

    Parameters
    ----------
    values
        Estimates by series and category. Categories are in order of appearance. Undefined values leave a gap.
    unit
        Label of the y axis; if empty, the title.
    """
    categories = list(dict.fromkeys(category for series in values.values() for category in series))
    width, count = GROUP_WIDTH / max(len(values), 1), len(values) * len(categories)
    found = _bars(values, categories, width)
    axes = blank_axes(title, x_title, unit or title, 4.6)
    open_frame(axes)
    from matplotlib.patches import Patch

    styles = [_bar_style(index) for index in range(len(values))]
    for bar in found:
        axes.bar(bar.x, bar.value, 0.92 * width, **styles[bar.series])
        if bar.interval:
            axes.plot([bar.x, bar.x], bar.interval, color=INK, linewidth=1.0, marker="_", markersize=6, zorder=3)
    is_vertical = MOST_HORIZONTAL_LABELS < count <= MOST_VERTICAL_LABELS
    if count <= MOST_VERTICAL_LABELS:
        _label_bars(axes, found, is_vertical)
    _set_limits(axes, found, VERTICAL_MARGIN if is_vertical else HORIZONTAL_MARGIN)
    axes.axhline(0.0, color=INK, linewidth=0.6)
    axes.spines["bottom"].set_visible(False)
    _label_categories(axes, categories)
    add_legend(axes, [Patch(label=literal(name), **one) for name, one in zip(values, styles, strict=True)])
    return pixels_of(axes)


@dataclass(frozen=True, slots=True)
class _Bar:
    """One bar, centered at x, with both ends of its interval or none; a percentile interval may exclude the value."""

    series: int
    x: float
    value: float
    interval: tuple[float, ...]

    @property
    def top(self) -> float:
        """Maximum of bar and whisker."""
        return max((self.value, *self.interval))

    @property
    def bottom(self) -> float:
        """Minimum of bar and whisker."""
        return min((self.value, *self.interval))


def _bars(values: Mapping[str, Mapping[str, Estimate]], categories: Sequence[str], width: float) -> list[_Bar]:
    found = []
    for index, series in enumerate(values.values()):
        offset = (index - (len(values) - 1) / 2) * width
        for category, estimate in series.items():
            if estimate.value is None or not math.isfinite(estimate.value):
                continue
            ends = tuple(end for end in (estimate.low, estimate.high) if end is not None and math.isfinite(end))
            interval = ends if len(ends) == 2 else ()
            found.append(_Bar(index, categories.index(category) + offset, estimate.value, interval))
    return found


def _bar_style(series: int) -> dict[str, Any]:
    color, _, hatch = style(series)
    return {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.0}


def _label_bars(axes: Any, found: Sequence[_Bar], is_vertical: bool) -> None:
    """Write values beyond bars and whiskers, with three significant digits of the largest one."""
    largest = max((abs(bar.value) for bar in found), default=0.0)
    digits = min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest else 0
    gap = 6 if is_vertical else 3  # the end of a whisker close to a vertical number looks like a minus
    for bar in found:
        is_up = bar.value >= 0
        axes.annotate(
            number(bar.value, digits),
            (bar.x, bar.top if is_up else bar.bottom),
            (0, gap if is_up else -gap),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="bottom" if is_up else "top",
            rotation=90 if is_vertical else 0,
            fontsize=TEXT_POINTS - 1.5,
            color=INK,
        )


def _set_limits(axes: Any, found: Sequence[_Bar], margin: float) -> None:
    """Set y limits that include all bars and 0."""
    low, high = min([0.0, *(bar.bottom for bar in found)]), max([0.0, *(bar.top for bar in found)])
    span = (high - low) or 1.0
    axes.set_ylim(low - margin * span if low < 0 else 0.0, high + margin * span if high > 0 or low == 0 else 0.0)
    axes.ticklabel_format(axis="y", useOffset=False)


def _label_categories(axes: Any, categories: Sequence[str]) -> None:
    characters = int(0.8 * WIDTH_INCHES * 72 / (0.6 * TEXT_POINTS * max(len(categories), 1)))
    names = [literal(category, 30) for category in categories]
    is_rotated = max(map(len, names), default=0) > characters
    axes.set_xticks(range(len(names)), names, rotation=30 if is_rotated else 0, ha="right" if is_rotated else "center")
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.tick_params(axis="x", length=0)


MAP_INCHES = (6.0, 8.0)
"""Maximum width and height of a map, which keeps its aspect ratio."""

MAP_MARGIN_INCHES = (2.0, 1.0)
LEAST_MAP_INCHES = (3.6, 1.6)
"""Minimum size of a map, so that titles and the color bar fit."""

CONFUSION_CHARACTERS = 40
"""Maximum characters of all horizontal labels below a confusion matrix."""

MOST_ANNOTATED_CLASSES = 12
"""Maximum classes of a confusion matrix with counts in its cells."""


@default_settings()
def histograms(
    series: Mapping[str, npt.NDArray[Any]],
    edges: npt.NDArray[np.floating[Any]],
    title: str,
    x_title: str,
    *,
    log: bool = False,
) -> RGBImage:
    """Draw the densities of several series as step lines.

    Parameters
    ----------
    series
        Counts per bin (N,) by name; each is normalized to an area of 1. A series without counts is not drawn.
    edges
        Ascending edges of the bins (N + 1,).
    log
        Use a logarithmic density axis.
    """
    axes = blank_axes(title, x_title, "density (per unit of x)", 4.4)
    open_frame(axes, "both")
    handles: list[Any] = []
    for index, (name, counts) in enumerate(series.items()):
        if counts.shape != (len(edges) - 1,):
            raise ValueError(f"histogram {name} has counts {counts.shape} for {len(edges) - 1} bins")
        total = float(counts.sum())
        if not total > 0:
            continue
        color, dashes, _ = style(index)
        density = counts / (total * np.diff(edges))
        handles.append(axes.stairs(density, edges, color=color, linewidth=1.5, linestyle=dashes, label=literal(name)))
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
    """Draw a two-dimensional histogram with a logarithmic color scale.

    Parameters
    ----------
    counts
        (bins along x, bins along y), as from `numpy.histogram2d`; empty bins are white.
    edges_x, edges_y
        Ascending edges of the bins.
    diagonal
        Draw the line of equal values.
    counted
        Name of what is counted, in plural.
    """
    bins = (len(edges_x) - 1, len(edges_y) - 1)
    if counts.shape != bins:
        raise ValueError(f"counts {counts.shape} do not fit {bins} bins")
    axes = blank_axes(title, x_title, y_title, 6.2, 7.2)
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
    add_color_bar(axes, mesh, f"{counted} per bin")
    return pixels_of(axes)


@default_settings()
def confusion(
    matrix: npt.NDArray[np.integer[Any]], labels: Sequence[str], title: str, x_title: str, y_title: str
) -> RGBImage:
    """Draw a confusion matrix; colors show the fraction of each row.

    Parameters
    ----------
    matrix
        (classes, classes): rows along y from the top, columns along x.
    """
    classes = len(labels)
    if matrix.shape != (classes, classes):
        raise ValueError(f"a matrix {matrix.shape} does not fit {classes} labels")
    axes = blank_axes(title, x_title, y_title, 5.4, 6.4)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    shown = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues")
    if classes <= MOST_ANNOTATED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.55 else INK
            size = TEXT_POINTS + (4 if classes <= 6 else 0)
            axes.text(column, row, number(int(count), 0), ha="center", va="center", color=color, fontsize=size)
    names = [literal(label, 24) for label in labels]
    is_vertical = classes * max(map(len, names), default=0) > CONFUSION_CHARACTERS
    axes.set_xticks(range(classes), names, rotation=90 if is_vertical else 0)
    axes.set_yticks(range(classes), names)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    add_color_bar(axes, shown, "fraction of row")
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
    """Draw a value for each square of a slide.

    Parameters
    ----------
    values
        (rows, columns); NaN is shown in gray.
    unit
        Label of the color bar.
    extent_mm
        Width and height of the map; by default, axes count squares.
    limits
        Limits of the color scale, for comparable maps; by default the minimum and the maximum.
    symmetric
        Center the color scale, with white, at 0.
    """
    rows, columns = values.shape
    width, height = extent_mm or (float(columns), float(rows))
    inches_per_unit = min(MAP_INCHES[0] / width, MAP_INCHES[1] / height)
    across, down = (
        max(side * inches_per_unit, least) + margin
        for side, least, margin in zip((width, height), LEAST_MAP_INCHES, MAP_MARGIN_INCHES, strict=True)
    )
    axes = blank_axes(title, *(("x (mm)", "y (mm)") if extent_mm else ("column", "row")), down, across)
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
    add_color_bar(axes, shown, unit)
    return pixels_of(axes)
