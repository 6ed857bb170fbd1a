"""The color of what is not translated: the generator's own answer to the slide's background."""

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
"""Of 16 windows, the 4 with the most even shares of tissue and background are translated; a quarter of all at most."""

ENOUGH_PX = 2_000
"""Fewer px of background than this say nothing certain."""

APART_PX = 16
"""Background nearer to anything else is left aside."""


def background_fill(machine: Machine, scene: Scene, plan: Plan) -> RGB:
    """Find the color that untranslated area is filled with.

    A network that is a local function is shown nothing but background. One that normalizes by the statistics of its
    window answers to that with gray, whatever it was trained for, since a uniform window has no variance. It is shown
    windows of the slide that hold tissue and background, and what it makes of the background is taken.
    """
    translator = machine.translators[0]
    if machine.is_local:
        return answer_to_glass(translator, plan.layout, scene.shown_glass)
    windows = _mixed_windows(scene, plan)
    seen = [part for pixels in windows if (part := _answers_to_background(translator, pixels, scene.shown_glass)).size]
    if sum(len(part) for part in seen) < ENOUGH_PX:
        seen = [_answer_beside_tissue(translator, windows[0], scene.shown_glass)]
    red, green, blue = (int(value) for value in np.rint(np.median(np.concatenate(seen), axis=0)))
    return red, green, blue


def _mixed_windows(scene: Scene, plan: Plan) -> list[RGBImage]:
    """Some windows of the plan as they are read; at least one."""
    most = max(1, min(MOST_WINDOWS, len(plan.windows) // 4))
    read = [(_balance(pixels, scene.shown_glass), pixels) for pixels in _read(scene, _candidates(scene, plan))]
    read.sort(key=lambda one: -one[0])
    return [pixels for _, pixels in read[:most]]


def _candidates(scene: Scene, plan: Plan) -> list[Window]:
    """The windows that are nearest to half tissue by the mask, at random among equals."""
    drawn = np.random.default_rng(0).permutation(len(plan.windows))[: 64 * CANDIDATES]
    windows = [plan.windows[index] for index in drawn]
    shares = [round(scene.tissue.area_in(window.region) / window.region.area_px, 1) for window in windows]
    order = np.argsort(np.abs(np.array(shares) - 0.5), kind="stable")[:CANDIDATES]
    return [windows[index] for index in order]


def _read(scene: Scene, windows: list[Window]) -> Iterator[RGBImage]:
    for window in windows:
        yield scene.reader(window.region)


def _balance(pixels: RGBImage, glass: RGB) -> float:
    """How nearly a window is half background: 0 where it is all or nothing, at most 1/2."""
    share = float(_background(pixels, glass).mean())
    return min(share, 1 - share)


def _background(pixels: RGBImage, glass: RGB) -> BoolImage:
    """Which px have the color of the background in every channel."""
    distance = cv2.absdiff(pixels, np.full_like(pixels, glass)).max(axis=2)
    return np.asarray(distance <= GLASS_LEVELS, np.bool_)


def _answers_to_background(translator: Translator, pixels: RGBImage, glass: RGB) -> npt.NDArray[np.uint8]:
    """What the generator makes of the background in a window, well away from everything else: (count, 3)."""
    answer = translator(pixels[np.newaxis])[0]
    side = 2 * APART_PX + 1
    apart = cv2.erode(_background(pixels, glass).view(np.uint8), np.ones((side, side), np.uint8)) > 0
    return np.asarray(answer[apart], np.uint8)


def _answer_beside_tissue(translator: Translator, pixels: RGBImage, glass: RGB) -> npt.NDArray[np.uint8]:
    """What the generator makes of background that is put into half of a window: (count, 3)."""
    composed, half = pixels.copy(), pixels.shape[1] // 2
    composed[:, half:] = glass
    answer = translator(composed[np.newaxis])[0]
    apart = min(APART_PX, math.ceil(half / 4))
    return np.asarray(answer[:, half + apart :].reshape(-1, 3), np.uint8)
