"""Check the model's output on a few places of tissue, before the whole slide is translated."""

from __future__ import annotations

import numpy as np

from ..arrays import RGBImage
from ..errors import UnreadableSlideError
from ..generator.probe import describe_fault
from ..geometry import Region, ceil_to
from ..plan import Plan, Window
from .machine import Machine
from .scene import Scene

PLACES, CORE_PX = 2, 128
"""Number of places that are checked, and their side in px."""

STRUCTURE = 3.0
"""Smallest standard deviation, in gray levels, of a place with tissue."""


def doubtful_answers(machine: Machine, scene: Scene, plan: Plan, name: str) -> tuple[str, ...]:
    """Warn about a model whose output does not depend on the tissue: one color, or only 0 and 255.

    Raises
    ------
    ModelError
        If an output is not finite.
    """
    windows = sorted(plan.windows, key=lambda window: -scene.tissue.area_in(window.core))[:PLACES]
    outputs = [output for window in windows if (output := _output(machine, scene, window)) is not None]
    if not outputs:
        return ()
    fault = describe_fault(np.concatenate(outputs))
    return (f"model {name} answers tissue with {fault}: its weights are unusable or untrained",) if fault else ()


def _output(machine: Machine, scene: Scene, window: Window) -> RGBImage | None:
    """Translate the middle of a window; None if it has no structure, or is damaged, which reading it later reports."""
    translator = machine.translators[0]
    lattice, multiple = translator.lattice_px, translator.multiple_px
    side = ceil_to(CORE_PX + 2 * translator.halo_px, multiple)
    region = window.region
    x, y = (
        start + max(0, length - side) // 2 // lattice * lattice
        for start, length in ((region.x, region.width), (region.y, region.height))
    )
    try:
        pixels = scene.reader(Region(x, y, side, side))
    except UnreadableSlideError:
        return None
    if float(pixels.std()) < STRUCTURE:
        return None
    output: RGBImage = translator(pixels[np.newaxis])[0]
    return output
