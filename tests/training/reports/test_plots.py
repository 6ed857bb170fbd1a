"""Plots: values are drawn at the right position, also for unusual input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wsi2ihc.errors import OutputError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.reports import plots
from wsi2ihc.training.reports import plots as plots_module
from wsi2ihc.training.reports.document import Estimate
from wsi2ihc.training.reports.plots import (
    COLORS,
    LABEL_CHARACTERS,
    UPRIGHT_CHARACTERS,
    bars,
    confusion,
    heat_map,
    histograms,
    literal,
    scatter_density,
    style,
)

pytest.importorskip("matplotlib")

HOSTILE = "$\\frac{ <b>& 染色 \U0001f52c Müller_^ %s\n" + "x" * 200


def rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def near(image: RGBImage, color: str | tuple[int, int, int], within: int = 6) -> npt.NDArray[np.bool_]:
    wanted = np.array(rgb(color) if isinstance(color, str) else color)
    found: npt.NDArray[np.bool_] = np.abs(image.astype(int) - wanted).max(-1) <= within
    return found


def runs(mask: npt.NDArray[np.bool_], least: int = 5) -> list[tuple[int, int]]:
    """Begin and end of every run of at least so many True values."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [(int(one), int(other)) for one, other in steps.reshape(-1, 2) if other - one >= least]


def check_figure(image: RGBImage) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 400 <= image.shape[0] <= 1600
    assert 700 <= image.shape[1] <= 1200
    assert image.flags.c_contiguous
    for border in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (border == 255).all()  # nothing is cut off


def bar_boxes(image: RGBImage, series: int) -> list[tuple[int, int, int, int]]:
    """Left, right, top and bottom of each bar of a series; the legend's are below them and do not count."""
    mask = near(image, COLORS[series])
    columns = runs(mask.sum(axis=0) > 25, least=10)
    return [(left, right, *runs(np.any(mask[:, left:right], axis=1), least=15)[0]) for left, right in columns]


def test_bar_heights() -> None:
    values: dict[str, dict[str, Estimate]] = {
        "first": {"0": Estimate(10.0), "1+": Estimate(20.0), "3+": Estimate(40.0)},
        "second": {"0": Estimate(30.0), "1+": Estimate(None, reason="none"), "3+": Estimate(float("nan"))},
    }
    image = bars(values, "PSNR", "dB")
    check_figure(image)
    first, second = bar_boxes(image, 0), bar_boxes(image, 1)
    assert len(first) == 3
    assert len(second) == 1
    heights = [bottom - top for _, _, top, bottom in first]
    assert heights[1] / heights[0] == pytest.approx(2, abs=0.1)
    assert heights[2] / heights[0] == pytest.approx(4, abs=0.15)
    assert second[0][3] - second[0][2] == pytest.approx(3 * heights[0], rel=0.05)
    assert first[0][0] < second[0][0] < first[1][0] < first[2][0]
    assert len({bottom for *_, bottom in [*first, *second]}) == 1


def test_whiskers_span_the_interval() -> None:
    image = bars({"a": {"x": Estimate(10.0, 12.0, 20.0), "y": Estimate(20.0)}}, "t", "u")
    (left, right, top, bottom), (_, _, other_top, _) = bar_boxes(image, 0)
    middle = (left + right) // 2
    dark = (image[:, middle - 1 : middle + 2].max(-1) < 90).any(axis=1)
    begin, end = max(runs(dark), key=lambda run: run[1] - run[0])
    assert begin == pytest.approx(other_top, abs=5)
    assert end == pytest.approx(bottom - 1.2 * (bottom - top), abs=5)


def test_negative_bars() -> None:
    image = bars({"a": {"x": Estimate(-1.0, -1.5, -0.5), "y": Estimate(1.0)}}, "bias", "OD")
    (*_, low), (*_, zero) = bar_boxes(image, 0)
    assert low > zero + 100


def test_bars_with_unusual_input() -> None:
    many = {f"model {n}": {str(level): Estimate(n + level, n, 9.0) for level in range(6)} for n in range(9)}
    check_figure(bars(many, HOSTILE, HOSTILE))
    nothing = {"none": {}, "undefined": {"x": Estimate(None)}, "zero": {"x": Estimate(0.0, 0.0, 0.0)}}
    for name, series in nothing.items():
        check_figure(bars({name: series}, "t", ""))
    check_figure(bars({}, "t", ""))
    check_figure(bars({HOSTILE: {HOSTILE: Estimate(1e-9), "y" * 90: Estimate(2e-9)}, "_hidden": {}}, "t", "u"))


def test_histograms_are_normalized() -> None:
    edges = np.array([0.0, 1.0, 2.0, 4.0])
    image = histograms({"a": np.array([1, 2, 1]), "b": np.array([1000, 2000, 1000]) * 7}, edges, "t", "x")
    check_figure(image)
    assert near(image, COLORS[1]).sum() > 1000
    assert (
        near(image, COLORS[0]).sum() < 0.2 * near(image, COLORS[1]).sum()
    )  # the other series covers all but its legend
    alone = near(histograms({"a": np.array([0, 3, 4])}, edges, "t", "x"), COLORS[0])
    rows = [begin for begin, _ in runs(alone.sum(axis=1) > 150, least=1)]
    assert len(rows) >= 2  # 3/7 over one unit, 4/7 over two
    width = [int(alone[row].sum()) for row in rows[:2]]
    assert width[1] == pytest.approx(2 * width[0], rel=0.1)


def test_histograms_with_log_scale_and_empty_series() -> None:
    edges = np.linspace(0, 1, 6)
    series = {"none": np.zeros(5, int), HOSTILE: np.array([0, 1, 1000, 0, 1])}
    linear, log = (histograms(series, edges, "t", "x", log=log) for log in (False, True))
    check_figure(log)
    assert (linear != log).any()
    assert not near(log, COLORS[0]).any()
    check_figure(histograms({"none": np.zeros(5)}, edges, "t", "x", log=True))


def test_scatter_density_positions() -> None:
    counts = np.zeros((10, 10), int)
    counts[8, 1] = 1000  # right, low
    counts[0, 9] = 1
    edges = np.linspace(0.0, 2.0, 11)
    image = scatter_density(counts, edges, edges, "t", "reference (OD)", "virtual (OD)", diagonal=False)
    check_figure(image)
    plot = image[:, : int(0.8 * image.shape[1])]  # without the scale of colors
    rows, columns = np.nonzero(near(plot, "#440154"))
    assert rows.mean() > 0.65 * image.shape[0]
    assert columns.mean() > 0.55 * image.shape[1]
    rows, columns = np.nonzero(near(plot, "#fde725"))
    assert rows.mean() < 0.25 * image.shape[0]
    assert columns.mean() < 0.25 * image.shape[1]
    assert not near(plot, "#d55e00", 30).any()
    with_line = scatter_density(counts, edges, edges, "t", "x", "y")
    assert near(with_line, "#d55e00", 30).sum() > 500


def test_empty_scatter_density() -> None:
    edges = np.linspace(0, 1, 5)
    check_figure(scatter_density(np.zeros((4, 4)), edges, edges, HOSTILE, HOSTILE, HOSTILE))


def test_confusion_colors_show_row_fractions() -> None:
    matrix = np.array([[900, 0, 100], [0, 4, 0], [0, 3, 1]])
    image = confusion(matrix, ["0", "1+", "3+"], "t", "virtual", "reference")
    check_figure(image)
    full = near(image[:, : int(0.8 * image.shape[1])], (8, 48, 107))
    rows, columns = np.nonzero(full)
    box = image[rows.min() : rows.max(), columns.min() : columns.max()]
    assert box.shape[0] == pytest.approx(box.shape[1], abs=3)  # one cell, the middle one
    assert near(box, (255, 255, 255), 40).sum() > 50  # its count in white
    height = box.shape[0]
    below = image[rows.min() + height : rows.max() + height, columns.min() : columns.max()]
    right = image[rows.min() : rows.max(), columns.min() + height : columns.max() + height]
    assert below.mean() < right.mean() - 40


def test_confusion_with_unusual_input() -> None:
    check_figure(confusion(np.zeros((2, 2), int), [HOSTILE, "b"], HOSTILE, "x", "y"))
    check_figure(confusion(np.arange(400).reshape(20, 20), [f"class {n}" for n in range(20)], "t", "x", "y"))


def test_heat_map_positions_and_missing_values() -> None:
    values = np.full((4, 6), np.nan)
    values[0, 0], values[3, 5] = 1.0, -1.0
    image = heat_map(values, "Error", "share", (12.0, 8.0), symmetric=True)
    check_figure(image)
    plot = image[:, : int(0.85 * image.shape[1])]
    red, blue, gray = (np.argwhere(near(plot, color)) for color in ("#67001f", "#053061", "#e6e6e6"))
    assert (red.mean(axis=0) < blue.mean(axis=0)).all()
    assert len(red) == pytest.approx(len(blue), rel=0.1)
    assert len(gray) == pytest.approx(22 * len(red), rel=0.15)


def test_heat_map_keeps_aspect_ratio() -> None:
    for extent in ((10.0, 10.0), (40.0, 4.0), (4.0, 40.0)):
        image = heat_map(np.zeros((10, 10)), "t", "u", extent, symmetric=True)
        assert image.shape[1] <= 1200
        assert image.shape[0] <= 1400
        white = near(image, "#f7f7f7", 1)  # the middle of the scale of colors
        wide, high = (
            max(end - begin for line in lines for begin, end in runs(line)) for lines in (list(white), list(white.T))
        )
        assert wide / high == pytest.approx(extent[0] / extent[1], rel=0.05)


def test_heat_map_with_unusual_input() -> None:
    check_figure(heat_map(np.full((3, 3), np.nan), HOSTILE, HOSTILE))
    check_figure(heat_map(np.full((1, 1), 5.0), "t", "u", (1.0, 1.0)))
    check_figure(heat_map(np.array([[np.inf, 1.0]]), "t", "u"))


def test_axis_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (plots, plots_module):
        monkeypatch.setattr(module, "pixels_of", lambda axes: axes)
    edges, some = np.linspace(0, 2, 5), np.ones((4, 4))
    drawn: dict[Any, tuple[str, str, tuple[float, ...]]] = {
        bars({"a": {"0": Estimate(1.0)}}, "t", "PSNR (dB)"): ("HER2 level", "PSNR (dB)", (0.0, 1.07)),
        bars({"a": {"0": Estimate(1.0)}}, "SSIM", "", "slide"): ("slide", "SSIM", (0.0, 1.07)),
        histograms({}, edges, "t", "OD"): ("OD", "density (per unit of x)", (0.0, 1.0)),
        scatter_density(some, edges, edges * 2, "t", "x", "y"): ("x", "y", (0.0, 4.0)),
        confusion(np.ones((2, 2), int), ["a", "b"], "t", "virtual", "reference"): ("virtual", "reference", (1.5, -0.5)),
        heat_map(some, "t", "share", (6.0, 3.0)): ("x (mm)", "y (mm)", (3.0, 0.0)),  # as on the slide: y goes down
        heat_map(some, "t", "share"): ("column", "row", (4.0, 0.0)),
    }
    for axes, (x_title, y_title, span) in drawn.items():
        assert axes.get_xlabel() == x_title
        assert axes.get_ylabel() == literal(y_title, UPRIGHT_CHARACTERS)
        assert axes.get_ylim() == pytest.approx(span)


def test_mismatched_shapes_are_rejected() -> None:
    with pytest.raises(ValueError, match="bins"):
        histograms({"a": np.ones(3)}, np.arange(3.0), "t", "x")
    with pytest.raises(ValueError, match="bins"):
        scatter_density(np.ones((3, 2)), np.arange(3.0), np.arange(4.0), "t", "x", "y")
    with pytest.raises(ValueError, match="labels"):
        confusion(np.ones((2, 2), int), ["a"], "t", "x", "y")


def test_text_is_drawn_literally() -> None:
    assert literal("a$b$") == r"a\$b\$"
    assert literal("_a\nb ") == " _a b"
    assert literal("染Müller") == "□Müller"
    assert len(literal("x" * 200)) == LABEL_CHARACTERS
    assert literal("a" * 30 + "b" * 30, 10) == "aaaaa…bbbb"


def test_styles_of_many_series_differ() -> None:
    assert len({style(number) for number in range(3 * len(COLORS))}) == 3 * len(COLORS)


def test_missing_matplotlib_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    for act in (plots.require_matplotlib, lambda: heat_map(np.zeros((2, 2)), "t", "u")):
        with pytest.raises(OutputError, match=r"pip install 'wsi2ihc\[train\]'"):
            act()


def test_plots_do_not_import_pyplot() -> None:
    code = (
        "import sys, numpy; from wsi2ihc.training.reports import plots, write\n"
        "assert not {'matplotlib', 'torch'} & set(sys.modules)\n"
        "plots.heat_map(numpy.zeros((2, 2)), 't', 'u')\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_matplotlibrc_is_ignored(tmp_path: Path) -> None:
    script = (
        "import hashlib, matplotlib, numpy\n"
        "from wsi2ihc.training.reports.plots import confusion\n"
        "pixels = confusion(numpy.ones((2, 2), int), ['a', 'b'], 'title', 'x', 'y')\n"
        "print(matplotlib.rcParams['font.size'], hashlib.sha256(pixels).hexdigest())\n"
    )
    found = []
    for text in ("", "font.size: 30\ntext.usetex: True\nfigure.dpi: 30\naxes.facecolor: red\n"):
        (tmp_path / "matplotlibrc").write_text(text)
        finished = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        found.append(finished.stdout.split())
    assert (found[0][0], found[1][0]) == ("10.0", "30.0")  # a program's own settings stay
    assert found[0][1] == found[1][1]
