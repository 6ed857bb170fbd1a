"""How far a generator looks, as a fact that the rest of the program can use without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dependency:
    """Which input pixels an output pixel depends on, along one axis (the wider of the two).

    radius_px:    no output pixel depends on input pixels farther away than this
    lattice_px:   shifting the input by a multiple of this shifts the output alike; by anything else, the output is
                  unrelated
    per_phase:    for output positions 0, 1, …, lattice_px - 1 (modulo the lattice): the reach to the left and to the
                  right in px
    reasons:      why the network is not a local function of its input after all, one sentence each; empty where it is
    """

    radius_px: int
    lattice_px: int
    per_phase: tuple[tuple[int, int], ...]
    reasons: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether each output pixel depends on its surroundings only, and on nothing else of the image."""
        return not self.reasons


PIXELWISE = Dependency(radius_px=0, lattice_px=1, per_phase=((0, 0),))
"""Each output pixel depends on the input pixel in its place only."""
