"""The fill color of untranslated area: the generator's output for the slide's background."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import RGB, BoolImage, RGBImage
from ..generator.protocol import Translator
from ..plan import Plan, Window
from .layout import answer_to_glass
from .machine import GLASS_LEVELS, Machine
from .scene import Scene

CANDIDATES, MOST_WINDOWS = 16, 4
"""Windows that are read, and windows of these, most nearly half background, that are translated (at most a quarter of
all windows)."""

ENOUGH_PX = 2_000
"""Fewest px of background for a reliable median."""

APART_PX = 16
"""Background px nearer than this to anything else are ignored."""


def background_fill(machine: Machine, scene: Scene, plan: Plan) -> RGB:
    """Find the color that untranslated area is filled with.

    A local network is given a window of background only. For one that normalizes by the statistics of its window, that
    would give gray, whatever it was trained for, since a uniform window has no variance. It is given windows of the
    slide with both tissue and background, and the color is that of its output over the background.
    """
    translator = machine.translators[0]
    if machine.is_local:
        return answer_to_glass(translator, plan.layout, scene.shown_glass)
    windows = _mixed_windows(scene, plan)
    seen = [part for pixels in windows if (part := _output_over_background(translator, pixels, scene.shown_glass)).size]
    if sum(len(part) for part in seen) < ENOUGH_PX:
        seen = [_output_beside_tissue(translator, windows[0], scene.shown_glass)]
    red, green, blue = (int(value) for value in np.rint(np.median(np.concatenate(seen), axis=0)))
    return red, green, blue


def _mixed_windows(scene: Scene, plan: Plan) -> list[RGBImage]:
    """Read some windows of the plan; at least one."""
    most = max(1, min(MOST_WINDOWS, len(plan.windows) // 4))
    read = [(_balance(pixels, scene.shown_glass), pixels) for pixels in _read(scene, _candidates(scene, plan))]
    read.sort(key=lambda one: -one[0])
    return [pixels for _, pixels in read[:most]]


def _candidates(scene: Scene, plan: Plan) -> list[Window]:
    """Find the windows nearest to half tissue by the mask, at random among equals."""
    drawn = np.random.default_rng(0).permutation(len(plan.windows))[: 64 * CANDIDATES]
    windows = [plan.windows[index] for index in drawn]
    shares = [round(scene.tissue.area_in(window.region) / window.region.area_px, 1) for window in windows]
    order = np.argsort(np.abs(np.array(shares) - 0.5), kind="stable")[:CANDIDATES]
    return [windows[index] for index in order]


def _read(scene: Scene, windows: list[Window]) -> Iterator[RGBImage]:
    for window in windows:
        yield scene.reader(window.region)


def _balance(pixels: RGBImage, background: RGB) -> float:
    """The smaller of the fractions of background and of the rest: 0 to 1/2."""
    share = float(_background(pixels, background).mean())
    return min(share, 1 - share)


def _background(pixels: RGBImage, color: RGB) -> BoolImage:
    """Mask of the px that have the color of the background in every channel."""
    distance = cv2.absdiff(pixels, np.full_like(pixels, color)).max(axis=2)
    return np.asarray(distance <= GLASS_LEVELS, np.bool_)


def _output_over_background(translator: Translator, pixels: RGBImage, background: RGB) -> npt.NDArray[np.uint8]:
    """The output over the background of a window, `APART_PX` away from everything else: (count, 3)."""
    output = translator(pixels[np.newaxis])[0]
    side = 2 * APART_PX + 1
    apart = cv2.erode(_background(pixels, background).view(np.uint8), np.ones((side, side), np.uint8)) > 0
    return np.asarray(output[apart], np.uint8)


def _output_beside_tissue(translator: Translator, pixels: RGBImage, background: RGB) -> npt.NDArray[np.uint8]:
    """The output over background that replaces half of a window: (count, 3)."""
    composed, half = pixels.copy(), pixels.shape[1] // 2
    composed[:, half:] = background
    output = translator(composed[np.newaxis])[0]
    apart = min(APART_PX, math.ceil(half / 4))
    return np.asarray(output[:, half + apart :].reshape(-1, 3), np.uint8)
