"""Register two slides: coarse, affine, deformation, with acceptance tests."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..concurrency import Progress, ProgressCallback, silent
from ..errors import OptionError
from ..slide import Slide, agreeing_levels, level_problems
from ..text import option
from .affine import Placement, find_placement
from .coarse import find_candidates
from .deformation import refine
from .overview import OverviewPair, RegistrationView, overview_of
from .transform import FloatArray, SlideFrame, Transform, frame_of

SPACING_UM = (16.0, 2000.0)


@dataclass(frozen=True, slots=True)
class RegistrationOptions:
    """Options of `register`; the text of each field is the help of its command-line option.

    The deformation has at most 200 control points along a side; a larger slide gets a wider spacing.
    """

    mirror: bool = option(False, "Also search for an IHC section that lies face down.")
    local: bool = option(True, "Estimate a local deformation in addition to the affine map.")
    spacing_um: float = option(64.0, "Spacing of the control points of the deformation in µm.")

    def __post_init__(self) -> None:
        if not SPACING_UM[0] <= self.spacing_um <= SPACING_UM[1]:
            raise OptionError(
                f"--spacing-um {self.spacing_um:g} is not between {SPACING_UM[0]:g} and {SPACING_UM[1]:g} µm"
            )


StageName: TypeAlias = Literal["coarse", "affine", "local"]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Stage of a registration."""

    name: StageName  # name; the local stage has several steps of one name
    transform: Transform  # transform after the stage
    # coarse: correlation of the overviews; affine: fraction of blocks found where the map predicts them; local:
    # fraction of blocks that agree with their neighbors
    score: float
    seconds: float  # duration; that of the coarse stage includes reading the overviews


def numbered(stages: Sequence[Stage]) -> list[str]:
    """Return the names of stages; stages of the same name are numbered."""
    counts, seen = Counter(stage.name for stage in stages), Counter[str]()
    names = []
    for stage in stages:
        seen[stage.name] += 1
        names.append(f"{stage.name} {seen[stage.name]}" if counts[stage.name] > 1 else stage.name)
    return names


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """Result of a registration."""

    status: Literal["registered", "failed"]  # "registered" or "failed"
    reason: str  # why it failed; "" otherwise
    score: float  # score of the affine stage
    # median cross-validation error of the field, or median residual of the affine map without a field; None if the
    # registration failed
    residual_um: float | None
    # mirrored, angle_deg, scale: parameters of the affine map; clockwise angle on the screen, 0 to 360; moving µm per
    # fixed µm
    mirrored: bool
    angle_deg: float
    scale: float
    stages: tuple[Stage, ...]  # completed stages in order
    transform: Transform | None  # transform from fixed to moving; None if the registration failed


def orientation(matrix: FloatArray) -> tuple[bool, float, float]:
    """Return (mirrored, angle in degrees, scale) of the similarity transform nearest to an affine map (2, 3)."""
    linear = matrix[:, :2]
    determinant = float(np.linalg.det(linear))
    mirrored = determinant < 0
    upright = linear @ np.diag([-1.0, 1.0]) if mirrored else linear
    angle = math.atan2(upright[1, 0] - upright[0, 1], upright[0, 0] + upright[1, 1])
    return mirrored, math.degrees(angle) % 360, math.sqrt(abs(determinant))


_log = logging.getLogger(__name__)


def register(
    fixed: Slide,
    moving: Slide,
    options: RegistrationOptions | None = None,
    progress: ProgressCallback = silent,
    *,
    workers: int = 0,
) -> Registration:
    """Find the transform from the fixed slide (H&E) to the moving slide (IHC).

    Parameters
    ----------
    fixed, moving
        Open slides of known resolution.
    options
        Options of the registration.
    progress
        Called at every step.
    workers
        Number of threads; 0 for one per core.

    Returns
    -------
    Registration
        Result; its status is "failed" if no transform fits well enough.

    Raises
    ------
    MissingResolutionError
        If a slide's resolution is unknown.
    UnreadableSlideError
        If a file is damaged.

    Notes
    -----
    Memory does not depend on the size of the slides: overviews of about 1024² px, 768² px per thread, and the equations
    of the field, at most 0.4 GB for 200² control points. The coarse search and each step take seconds; the time of the
    last steps grows with the tissue.
    """
    options = options or RegistrationOptions()
    steps, clock = _Steps(progress), _Clock()
    steps.begin("reading overviews")
    for slide in (fixed, moving):
        for problem in level_problems(slide):
            _log.warning("%s: %s", slide.info.name, problem)
    fixed, moving = agreeing_levels(fixed), agreeing_levels(moving)
    pair = OverviewPair(overview_of(fixed), overview_of(moving))
    log = _StageLog(pair, frame_of(fixed.info), frame_of(moving.info))
    for overview, what in ((pair.fixed, "H&E"), (pair.moving, "IHC")):
        if not overview.tissue.any():
            return _failed(f"no tissue was found on the {what} slide", log)

    steps.begin("searching placements")
    candidates = find_candidates(pair)
    coarse_s = clock.lap()
    steps.begin("fitting affine maps")
    placement, problem = find_placement(pair, candidates, mirror=options.mirror, workers=workers)
    if placement is None or problem:
        return _failed(problem, log, placement.score if placement else 0.0)
    log.add("coarse", Transform(placement.candidate.matrix), placement.candidate.score, coarse_s)
    log.add("affine", Transform(placement.matrix), placement.score, clock.lap())

    residual_um = placement.residual_um
    if options.local:
        slides = (
            RegistrationView(fixed, pair.fixed.view.background),
            RegistrationView(moving, pair.moving.view.background),
        )
        steps.begin("estimating the local field")
        for step in refine(pair, slides, Transform(placement.matrix), options.spacing_um, workers):
            log.add("local", step.transform, step.agreement, clock.lap())
            residual_um = step.error_um
            steps.begin(f"local field, error {residual_um:.1f} µm")
    return _registered(placement, residual_um, log)


class _Steps:
    """Reports steps, whose total number is unknown."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress, self._count = progress, 0

    def begin(self, note: str) -> None:
        self._progress(Progress("registering", self._count, max(8, self._count + 1), unit="step", note=note))
        self._count += 1


class _Clock:
    """Lap timer."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        return seconds


class _StageLog:
    """Collects stages with transforms between the slides instead of the overviews."""

    def __init__(self, pair: OverviewPair, fixed: SlideFrame, moving: SlideFrame) -> None:
        self.stages: list[Stage] = []
        self._pair, self._fixed, self._moving = pair, fixed, moving

    def add(self, name: StageName, transform: Transform, score: float, seconds: float) -> None:
        between_slides = dataclasses.replace(self._pair.on_slides(transform), fixed=self._fixed, moving=self._moving)
        self.stages.append(Stage(name, between_slides, score, seconds))


def _registered(placement: Placement, residual_um: float, log: _StageLog) -> Registration:
    mirrored, angle_deg, scale = orientation(placement.matrix)
    return Registration(
        status="registered",
        reason="",
        score=placement.score,
        residual_um=residual_um,
        mirrored=mirrored,
        angle_deg=angle_deg,
        scale=scale,
        stages=tuple(log.stages),
        transform=log.stages[-1].transform,
    )


def _failed(reason: str, log: _StageLog, score: float = 0.0) -> Registration:
    return Registration("failed", reason, score, None, False, 0.0, 1.0, tuple(log.stages), None)
