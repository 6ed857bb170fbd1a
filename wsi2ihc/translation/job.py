"""A translation that is settled but not begun: what every later step looks up."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import RGB
from ..generator.model import Generator
from ..geometry import Size
from ..plan import Layout, Plan
from ..slide import Slide
from ..tissue import TissueMask
from .identity import Identity
from .machine import Machine
from .options import TranslateOptions
from .scene import Scene


@dataclass(frozen=True, slots=True)
class Settled:
    """What another run settled for this slide, so that all that work on it agree to the bit.

    mask:        the tissue
    statistics:  normalisation statistics of the slide (see `Machine`), or None
    layout:      how windows are laid out
    cell:        size of the cells
    fill:        colour of what is not translated
    """

    mask: TissueMask
    statistics: bytes | None
    layout: Layout
    cell: Size
    fill: RGB


@dataclass(frozen=True, slots=True)
class Job:
    """A translation that is settled but not begun. ``identity`` is what its pixels follow from."""

    slide: Slide
    generator: Generator
    options: TranslateOptions
    scene: Scene
    machine: Machine
    layout: Layout
    plan: Plan
    fill: RGB
    workers: int
    batch_size: int
    seconds: dict[str, float]
    identity: Identity

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting the result."""
        return (*self.slide.info.problems, *self.scene.warnings, *self.scene.mask.warnings, *self.machine.warnings)

    @property
    def blend(self) -> str:
        """How windows are joined: "exact" or "overlap"."""
        return "overlap" if self.layout.overlap_px else "exact"

    @property
    def can_have_seams(self) -> bool:
        """Where no window needs a margin, each pixel is translated by itself, and there is nothing to measure."""
        return self.layout.margin_px > 0
