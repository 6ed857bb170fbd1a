"""What comes of a registration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .transform import FloatArray, Transform

StageName: TypeAlias = Literal["coarse", "affine", "local"]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A step of the way.

    name:       the local stage has several steps of one name
    transform:  as far as it was known then
    score:      coarse: correlation of the pictures; affine: share of blocks that are where the map puts them; local:
                share of blocks that agree with their neighbours; each 0 to 1
    seconds:    it took; the coarse stage's are those of looking at the slides, too
    """

    name: StageName
    transform: Transform
    score: float
    seconds: float


def numbered(stages: Sequence[Stage]) -> list[str]:
    """What to call stages; those of one name are numbered."""
    counts, seen = Counter(stage.name for stage in stages), Counter[str]()
    names = []
    for stage in stages:
        seen[stage.name] += 1
        names.append(f"{stage.name} {seen[stage.name]}" if counts[stage.name] > 1 else stage.name)
    return names


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """The outcome, good or bad.

    status:       "registered", or "failed": then there is no transform
    reason:       why it failed, one sentence for people; "" if it did not
    score:        that of the affine stage
    residual_um:  how far blocks lie from where a field puts them that was not fitted to them (median); from where the
                  affine map puts them, if there is no field; None if it failed
    mirrored, angle_deg, scale:
                  of the affine map: face down or not; turn, clockwise as seen on the screen, 0 to 360; µm of the moving
                  slide per µm of the fixed one
    stages:       the steps, in order, as far as they were taken
    transform:    from fixed to moving
    """

    status: Literal["registered", "failed"]
    reason: str
    score: float
    residual_um: float | None
    mirrored: bool
    angle_deg: float
    scale: float
    stages: tuple[Stage, ...]
    transform: Transform | None


def orientation(matrix: FloatArray) -> tuple[bool, float, float]:
    """(mirrored, angle in degrees, scale) of an affine map (2, 3): those of the nearest turn with one scale."""
    linear = matrix[:, :2]
    determinant = float(np.linalg.det(linear))
    mirrored = determinant < 0
    upright = linear @ np.diag([-1.0, 1.0]) if mirrored else linear
    angle = math.atan2(upright[1, 0] - upright[0, 1], upright[0, 0] + upright[1, 1])
    return mirrored, math.degrees(angle) % 360, math.sqrt(abs(determinant))
