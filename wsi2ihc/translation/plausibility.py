"""A glance at what the model makes of a little tissue, before all of the slide is translated."""

from __future__ import annotations

import numpy as np

from ..arrays import RGBImage
from ..geometry import Region, ceil_to
from ..plan import Plan, Window
from .machine import Machine
from .scene import Scene

LOOKS, CORE_PX = 2, 128
"""How many places are looked at, and how large they are."""

STRUCTURE = 3.0
"""Standard deviation, in gray levels, of a place that holds tissue."""

SATURATED_SHARE = 0.98
"""Share of values at 0 or 255 above which an answer holds nothing else."""


def doubtful_answers(machine: Machine, scene: Scene, plan: Plan, name: str) -> tuple[str, ...]:
    """Warnings about a model whose answers cannot depend on the tissue: one color, or nothing but 0 and 255.

    Raises
    ------
    ModelError
        If an answer is not finite.
    """
    windows = sorted(plan.windows, key=lambda window: -scene.tissue.area_in(window.core))[:LOOKS]
    answers = [answer for window in windows if (answer := _answer(machine, scene, window)) is not None]
    if not answers:
        return ()
    values = np.concatenate([answer.reshape(-1, 3) for answer in answers])
    if (values == values[0]).all():
        return (
            f"model {name} answers tissue with a single color, {tuple(values[0].tolist())}: "
            "its weights are unusable, or it needs more training",
        )
    if float(np.isin(values, (0, 255)).mean()) > SATURATED_SHARE:
        return (f"model {name} answers tissue with nothing but 0 and 255: its weights are unusable",)
    return ()


def _answer(machine: Machine, scene: Scene, window: Window) -> RGBImage | None:
    """What the model makes of the middle of a window; None where there is no structure."""
    translator = machine.translators[0]
    lattice, multiple = translator.lattice_px, translator.multiple_px
    side = ceil_to(CORE_PX + 2 * translator.halo_px, multiple)
    region = window.region
    x, y = (
        start + max(0, length - side) // 2 // lattice * lattice
        for start, length in ((region.x, region.width), (region.y, region.height))
    )
    pixels = scene.reader(Region(x, y, side, side))
    if float(pixels.std()) < STRUCTURE:
        return None
    answer: RGBImage = translator(pixels[np.newaxis])[0]
    return answer
