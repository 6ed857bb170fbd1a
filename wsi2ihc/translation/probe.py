"""Probe the model before a translation: background fill, and plausibility of its output."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UnreadableSlideError
from ..geometry import RGB, Region, RGBImage, ceil_to, floor_to
from ..models.model_spec import Translator, describe_fault
from .inference_setup import InferenceSetup, PreparedSlide, background_mask
from .window_size import background_output
from .windows import Plan, Window

CANDIDATES, MAX_WINDOWS = 16, 4
"""Windows that are read; and of these the ones closest to half background, which are translated (at most a quarter of
all windows)."""

MIN_PX = 2_000
"""Fewest px of background for a reliable median."""

MARGIN_PX = 16
"""Background px closer than this to anything else are ignored."""


def background_fill(inference: InferenceSetup, prepared: PreparedSlide, plan: Plan) -> RGB:
    """Determine the color of untranslated area: the output of the model for background.

    A local network translates a window of background. A network that normalizes by the statistics of its window would
    output gray for it, since a uniform window has no variance. It translates windows of the slide with both tissue and
    background, and the color is the median of its output over the background.
    """
    translator = inference.translators[0]
    if inference.is_local:
        return background_output(translator, plan.layout, prepared.shown_background)
    windows = _mixed_windows(prepared, plan)
    outputs = np.concatenate(
        [_output_over_background(translator, pixels, prepared.shown_background) for pixels in windows]
    )
    if len(outputs) < MIN_PX:
        outputs = _output_beside_tissue(translator, windows[0], prepared.shown_background)
    red, green, blue = (int(value) for value in np.rint(np.median(outputs, axis=0)))
    return red, green, blue


def _mixed_windows(prepared: PreparedSlide, plan: Plan) -> list[RGBImage]:
    """Read at least one window of the plan with both tissue and background."""
    count = max(1, min(MAX_WINDOWS, len(plan.windows) // 4))
    read = (prepared.reader(window.region) for window in _candidates(prepared, plan))
    return sorted(read, key=lambda pixels: -_balance(pixels, prepared.shown_background))[:count]


def _candidates(prepared: PreparedSlide, plan: Plan) -> list[Window]:
    """Select the windows closest to half tissue by the mask, in random order among equals."""
    drawn = np.random.default_rng(0).permutation(len(plan.windows))[: 64 * CANDIDATES]
    windows = [plan.windows[index] for index in drawn]
    fractions = [round(prepared.tissue.area_in(window.region) / window.region.area_px, 1) for window in windows]
    order = np.argsort(np.abs(np.array(fractions) - 0.5), kind="stable")[:CANDIDATES]
    return [windows[index] for index in order]


def _balance(pixels: RGBImage, background: RGB) -> float:
    """Return the smaller of the fractions of background and of the rest: 0 to 1/2."""
    fraction = float(background_mask(pixels, background).mean())
    return min(fraction, 1 - fraction)


def _output_over_background(translator: Translator, pixels: RGBImage, background: RGB) -> npt.NDArray[np.uint8]:
    """Return the output over the background of a window, `MARGIN_PX` away from everything else: (count, 3)."""
    output = translator(pixels[np.newaxis])[0]
    side = 2 * MARGIN_PX + 1
    inside = cv2.erode(background_mask(pixels, background).view(np.uint8), np.ones((side, side), np.uint8)) > 0
    return np.asarray(output[inside], np.uint8)


def _output_beside_tissue(translator: Translator, pixels: RGBImage, background: RGB) -> npt.NDArray[np.uint8]:
    """Replace half of a window by background, and return the output over it: (count, 3)."""
    composed, half = pixels.copy(), pixels.shape[1] // 2
    composed[:, half:] = background
    output = translator(composed[np.newaxis])[0]
    margin = min(MARGIN_PX, math.ceil(half / 4))
    return np.asarray(output[:, half + margin :].reshape(-1, 3), np.uint8)


CHECKS, CORE_PX = 2, 128
"""Number of windows that are checked, and the side of the checked part in px."""

MIN_STD = 3.0
"""Smallest standard deviation of tissue, in gray levels."""


def implausible_outputs(inference: InferenceSetup, prepared: PreparedSlide, plan: Plan, name: str) -> tuple[str, ...]:
    """Warn about a model whose output does not depend on the tissue: one color, or only 0 and 255.

    Raises
    ------
    ModelError
        If an output is not finite.
    """
    windows = sorted(plan.windows, key=lambda window: -prepared.tissue.area_in(window.core))[:CHECKS]
    outputs = [output for window in windows if (output := _output(inference, prepared, window)) is not None]
    if not outputs:
        return ()
    fault = describe_fault(np.concatenate(outputs))
    return (f"model {name} translates tissue into {fault}: its weights are unusable or untrained",) if fault else ()


def _output(inference: InferenceSetup, prepared: PreparedSlide, window: Window) -> RGBImage | None:
    """Translate the center of a window; None without structure, or if it is damaged, which is reported later."""
    translator = inference.translators[0]
    side = ceil_to(CORE_PX + 2 * translator.halo_px, translator.multiple_px)
    region = window.region
    x, y = (
        start + floor_to(max(0, length - side) // 2, translator.stride_px)
        for start, length in ((region.x, region.width), (region.y, region.height))
    )
    try:
        pixels = prepared.reader(Region(x, y, side, side))
    except UnreadableSlideError:
        return None
    if float(pixels.std()) < MIN_STD:
        return None
    output: RGBImage = translator(pixels[np.newaxis])[0]
    return output
