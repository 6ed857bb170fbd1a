"""What all plots of a report share: size, colours, text that is taken literally, and pixels at the end.

Drawn without pyplot and its global state. Nothing here imports matplotlib before something is drawn.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#555555")
"""Okabe and Ito's palette, told apart by colour-blind readers too; neighbours also differ in lightness."""

DASHES = ((0.0, ()), (0.0, (5.0, 2.0)), (0.0, (1.0, 1.5)))
HATCHES = ("", "////", "....")
"""The next set of colours gets the next of these."""

WIDTH_INCHES = 8.0
DOTS_PER_INCH = 150
"""1200 px across: sharp, and of readable text, on a page of 1000 px."""

TEXT_POINTS = 10
INK = "#222222"
SOFT = "#dddddd"
EMPTY = "#e6e6e6"
"""Of places without a value."""

TITLE_CHARACTERS = 78
LABEL_CHARACTERS, UPRIGHT_CHARACTERS = 44, 32


def require_matplotlib() -> None:
    """See early, before any work is done, whether plots can be drawn.

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
    """Draw with the settings that matplotlib comes with, whatever a ``matplotlibrc`` in the current folder says."""
    try:
        import matplotlib as mpl
    except ImportError:  # what draws says so
        yield
        return
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def blank(title: str, x_title: str, y_title: str, height_inches: float, width_inches: float = WIDTH_INCHES) -> Axes:
    """Axes on a figure of their own, with titles."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    room = int(TITLE_CHARACTERS * width_inches / WIDTH_INCHES)
    # of the figure and not of the axes, which may be narrow and stand far to the right
    head = textwrap.fill(literal(title, 3 * room), room)
    figure.suptitle(head, x=0.01, horizontalalignment="left", fontsize=TEXT_POINTS + 2, color=INK)
    axes.set_xlabel(literal(x_title), fontsize=TEXT_POINTS, color=INK)
    axes.set_ylabel(literal(y_title, UPRIGHT_CHARACTERS), fontsize=TEXT_POINTS, color=INK)
    axes.tick_params(labelsize=TEXT_POINTS, width=0.6, length=3, color=INK, labelcolor=INK)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color=INK)
    return axes


def open_frame(axes: Axes, grid: str = "y") -> None:
    """Leave the frame open above and to the right, and draw a faint grid."""
    directions: Any = grid
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=directions, color=SOFT, linewidth=0.6)


def literal(text: str, most: int = LABEL_CHARACTERS) -> str:
    """Text that matplotlib takes as it is: on one line, without formulas, of letters that the font has.

    Shortened in the middle to ``most`` characters.
    """
    line = " ".join(text.split())
    if len(line) > most:
        line = f"{line[: most // 2]}…{line[len(line) - (most - most // 2 - 1) :]}"
    line = "".join(one if _has_glyph(one) else "□" for one in line)
    # a label with an underscore in front is taken for a private one, and is not shown
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def style(number: int) -> tuple[str, tuple[float, Sequence[float]], str]:
    """Colour, dashes and hatch of a series."""
    turn = number // len(COLOURS)
    return COLOURS[number % len(COLOURS)], DASHES[turn % len(DASHES)], HATCHES[turn % len(HATCHES)]


def add_legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """A legend below the plot, in as many columns as its labels leave room for."""
    figure = _figure(axes)
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, int(figure.get_figwidth() * 72 / (0.6 * TEXT_POINTS * (longest + 9))))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles=list(handles), fontsize=TEXT_POINTS, frameon=False, labelcolor=INK, **place)


def add_colour_bar(axes: Axes, mapped: Any, title: str) -> None:
    """The scale of the colours, with a title."""
    bar = _figure(axes).colorbar(mapped, ax=axes, fraction=0.05, pad=0.02, shrink=0.9)
    bar.set_label(literal(title), fontsize=TEXT_POINTS, color=INK)
    bar.ax.tick_params(labelsize=TEXT_POINTS, width=0.6, length=3, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)


def pixels_of(axes: Axes) -> RGBImage:
    """The drawn figure of these axes: (rows, columns, 3)."""
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
