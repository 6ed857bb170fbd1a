"""Plots of training curves.

`draw_curves` reads the tables of one or several runs and draws a panel per loss and validation metric that any of them
has.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from wsi2ihc.atomic_files import write_atomically
from wsi2ihc.errors import TrainingError
from wsi2ihc.files import read_regular

from .history import NOT_LOSSES, STEP_KEYS, VALIDATION_KEYS, Columns, read_steps, read_validation
from .metrics.validation_scores import VALIDATION_METRICS
from .options import LARGEST_CONFIG_BYTES
from .reports.plots import default_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = npt.NDArray[np.float64]

LOSSES = {
    "generator": "Generator loss",
    "adversarial": "Adversarial loss",
    "discriminator": "Discriminator loss",
    "l1": "L1 loss",
    "variance": "Variance loss",
}
"""Titles of the loss panels, in the order of the study's figures; other columns follow under their own names."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, suitable for color-blind readers; without its yellow, which is faint on white."""

DASHES = ((0.0, ()), (0.0, (5.0, 2.0)), (0.0, (1.0, 1.5)))
"""Line styles: each repetition of the colors uses the next one."""

PANEL_INCHES = (2.6, 2.0)
HEAD_INCHES = 0.7
MIN_INCHES = 5.2
MAX_COLUMNS = 5
DOTS_PER_INCH = 150
TEXT_POINTS = 8

AS_LOGGED: dict[str, Any] = {"alpha": 0.25, "linewidth": 0.6, "zorder": 2}
MARKED_ROWS = 12
"""With more validations than this, markers would overlap."""

SHOWN_PERCENTILES = (0.5, 99.5)
"""Losses outside are not used for the scale: a single spike would flatten everything else."""

MIN_SPAN = 0.01
"""Minimum span of a scale relative to its largest value; below it are rounding differences of constants."""


@dataclass(frozen=True, slots=True)
class RunCurves:
    """The tables of a run folder."""

    name: str  # of the folder, made distinct from those of other runs
    recipe: str  # from its configuration, or empty
    steps: Columns
    validation: Columns
    epoch_steps: float | None  # steps per epoch, or None until an epoch is complete


@dataclass(frozen=True, slots=True)
class _Panel:
    table: Literal["steps", "validation"]
    column: str
    title: str


@default_settings()
def draw_curves(runs: Sequence[Path], output: Path, smooth: int = 0) -> int:
    """Draw the curves of run folders into one PNG file, replacing an existing one.

    Parameters
    ----------
    runs
        Folders of runs; a folder given twice is drawn once.
    output
        The PNG file.
    smooth
        Rows of ``steps.csv`` in the running mean: 1 for none, 0 for those of one epoch.

    Returns
    -------
    int
        The number of panels: one per loss and validation metric that any of the runs has.

    Raises
    ------
    TrainingError
        If a folder is not a run or has no rows yet, or matplotlib is not installed.
    OutputError
        If the file cannot be written.
    """
    found = read_runs(runs)
    losses, scores = _panels(found)
    if not losses and not scores:
        raise TrainingError(f"the run {runs[0]} has no finite losses or metrics to draw")
    figure = _figure(found, losses, scores, smooth)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(output, buffer.getvalue())
    return len(losses) + len(scores)


def read_runs(folders: Sequence[Path]) -> list[RunCurves]:
    """Read the tables of run folders, under distinct names.

    Raises
    ------
    TrainingError
        If a folder is not a run or has no rows yet.
    """
    distinct = list({folder.resolve(): folder for folder in folders})
    found = []
    for folder, name in zip(distinct, _distinct_names(distinct), strict=True):
        steps, validation = read_steps(folder), read_validation(folder)
        if not len(steps["step"]) and not len(validation["step"]):
            raise TrainingError(f"the run {folder} has no rows yet: wait for its first steps")
        found.append(RunCurves(name, _recipe(folder), steps, validation, _epoch_steps(steps, validation)))
    return found


def running_mean(values: Line, rows: int) -> Line:
    """Return the centered mean over ``rows`` neighbors, fewer at the ends; NaN is ignored, and stays NaN."""
    known = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(known, values, 0.0), known))
    indices = np.arange(len(values))
    first, last = np.maximum(indices - (rows - 1) // 2, 0), np.minimum(indices + rows // 2 + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return np.where(known, mean, np.nan)


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or as many parts as are needed to distinguish the paths."""
    names: list[str] = []
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _recipe(folder: Path) -> str:
    try:
        config = tomllib.loads(read_regular(folder / "config.toml", LARGEST_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):  # the recipe is optional
        return ""
    return recipe if isinstance(recipe := config.get("recipe"), str) else ""


def _epoch_steps(steps: Columns, validation: Columns) -> float | None:
    """Return the steps per epoch, from the last validation or the last completed epoch."""
    steps_done, epochs = validation["step"], validation["epoch"]
    if len(epochs) and epochs[-1] > 0:
        return float(steps_done[-1] / epochs[-1])
    complete = steps["epoch"] < steps["epoch"].max(initial=0)
    return float(steps["step"][complete][-1] / steps["epoch"][complete][-1]) if complete.any() else None


def _panels(runs: Sequence[RunCurves]) -> tuple[list[_Panel], list[_Panel]]:
    """Return the panels of losses and of validation metrics: one per column with a finite value in any run."""
    titles = {name: metric.title for name, metric in VALIDATION_METRICS.items()}
    return (
        _panels_of("steps", [run.steps for run in runs], LOSSES, NOT_LOSSES | set(STEP_KEYS)),
        _panels_of("validation", [run.validation for run in runs], titles, VALIDATION_KEYS),
    )


def _panels_of(
    kind: Literal["steps", "validation"], tables: Iterable[Columns], titles: Mapping[str, str], without: Iterable[str]
) -> list[_Panel]:
    """Return the panels of tables, those with a title first."""
    present = {name: None for table in tables for name, values in table.items() if np.isfinite(values).any()}
    names = [name for name in dict.fromkeys((*titles, *present)) if name in present and name not in without]
    return [_Panel(kind, name, titles.get(name, name.replace("_", " ").capitalize())) for name in names]


def _figure(runs: Sequence[RunCurves], losses: Sequence[_Panel], scores: Sequence[_Panel], smooth: int) -> Figure:
    """Draw all panels, losses above and validation below, without pyplot and its global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise TrainingError("drawing curves needs matplotlib: pip install 'wsi2ihc[train]'") from error
    across = min(MAX_COLUMNS, max(len(losses), len(scores)))
    rows = [group[first : first + across] for group in (losses, scores) for first in range(0, len(group), across)]
    width = max(across * PANEL_INCHES[0], MIN_INCHES)
    figure = Figure(figsize=(width, len(rows) * PANEL_INCHES[1] + HEAD_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    in_epochs = all(run.epoch_steps is not None for run in runs)
    for number, row in enumerate(rows):
        for column, panel in enumerate(row):
            axes = figure.add_subplot(len(rows), across, number * across + column + 1)
            _draw_panel(axes, panel, runs, smooth, in_epochs)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if number + 1 == len(rows):
                axes.set_xlabel("epoch" if in_epochs else "step", fontsize=TEXT_POINTS)
    _draw_head(figure, runs, smooth)
    return figure


def _draw_panel(axes: Axes, panel: _Panel, runs: Sequence[RunCurves], smooth: int, in_epochs: bool) -> None:
    spans: list[Line] = []
    metric = VALIDATION_METRICS.get(panel.column) if panel.table == "validation" else None
    if metric is not None and metric.ideal is not None and metric.is_two_sided:
        axes.axhline(metric.ideal, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        spans.append(np.array([metric.ideal]))
    for number, run in enumerate(runs):
        table = run.steps if panel.table == "steps" else run.validation
        values = table.get(panel.column)
        if values is None or not np.isfinite(values).any():
            continue
        x = table["step"] / (run.epoch_steps or 1.0) if in_epochs else table["step"]
        color, dashes = _style(number)
        shown, marked = values, MARKED_ROWS
        if panel.table == "steps":
            shown, marked = running_mean(values, smooth or _rows_of_an_epoch(run)), 1  # a single point needs a marker
            axes.plot(x, values, color=color, **AS_LOGGED)
            spans.append(np.percentile(values[np.isfinite(values)], SHOWN_PERCENTILES))
        marker = "o" if len(values) <= marked else ""
        axes.plot(x, shown, color=color, linestyle=dashes, linewidth=1.4, zorder=3, marker=marker, markersize=3)
        spans.append(shown)
    _scale(axes, np.concatenate(spans))
    axes.set_title(panel.title, fontsize=TEXT_POINTS + 1, loc="left")
    axes.tick_params(labelsize=TEXT_POINTS, width=0.6, length=2.5)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Axes, span: Line) -> None:
    """Set the scales to show ``span`` with a margin, and the x axis from 0."""
    known = span[np.isfinite(span)]
    low, high = known.min(), known.max()
    height = max(1.12 * (high - low), MIN_SPAN * max(abs(low), abs(high))) or 1.0
    axes.set_ylim((low + high - height) / 2, (low + high + height) / 2)
    axes.set_xlim(left=0)
    axes.ticklabel_format(useOffset=False)
    # put the power of ten to the left of the title, which starts at the axis
    axes.yaxis.get_offset_text().set(x=-0.03, horizontalalignment="right", fontsize=TEXT_POINTS)


def _draw_head(figure: Figure, runs: Sequence[RunCurves], smooth: int) -> None:
    """Draw the title with the recipes, and the legend with the colors of the runs."""
    from matplotlib.lines import Line2D

    recipes = list(dict.fromkeys(run.recipe for run in runs if run.recipe))
    subject = f"run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    recipe_names = f",  {'recipe' if len(recipes) == 1 else 'recipes'} {', '.join(recipes)}" if recipes else ""
    figure.suptitle(f"Training curves of {subject}{recipe_names}", fontsize=TEXT_POINTS + 3)
    handles = []
    if smooth != 1:
        mean = f"running mean of {smooth} rows" if smooth else "running mean of an epoch"
        handles.append(Line2D([], [], color="black", **AS_LOGGED, label="as logged"))
        handles.append(Line2D([], [], color="black", linewidth=1.4, label=mean))
    for number, run in enumerate(runs if len(runs) > 1 else []):
        color, dashes = _style(number)
        label = f"{run.name} ({run.recipe})" if len(recipes) > 1 and run.recipe else run.name
        handles.append(Line2D([], [], color=color, linestyle=dashes, linewidth=2.0, label=label))
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, int(figure.get_figwidth() * 72 / (0.6 * (TEXT_POINTS + 1) * (longest + 8))))
    position: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles=handles, fontsize=TEXT_POINTS + 1, frameon=False, **position)


def _style(number: int) -> tuple[str, tuple[float, Sequence[float]]]:
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def _rows_of_an_epoch(run: RunCurves) -> int:
    """Return the rows of losses per epoch; a tenth of all rows while that is unknown."""
    steps = run.steps["step"]
    if run.epoch_steps is None or len(steps) < 2:
        return max(1, len(steps) // 10)
    return max(1, round(run.epoch_steps / float(np.median(np.diff(steps)))))
