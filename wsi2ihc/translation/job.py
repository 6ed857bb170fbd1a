"""A translation that is settled but not begun: what every later step looks up."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import RGB
from ..generator.model import Generator
from ..plan import Layout, Plan
from ..slide import Slide
from .machine import Machine
from .options import TranslateOptions
from .scene import Scene


@dataclass(frozen=True, slots=True)
class Job:
    """A translation that is settled but not begun."""

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

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting the result."""
        return (*self.slide.info.problems, *self.scene.warnings, *self.scene.mask.warnings, *self.machine.warnings)

    @property
    def blend(self) -> str:
        """How windows are joined: "exact" or "overlap"."""
        return "overlap" if self.layout.overlap_px else "exact"
