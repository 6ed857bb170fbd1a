"""Two slides to a transform, by way of gates that would rather fail than guess.

coarse    placements from the shape of the tissue
affine    each is put to the test, block by block; one has to stand out
local     a field as fine, and as stiff, as the blocks warrant
"""

from __future__ import annotations

import dataclasses
import logging
import time

from ..progress import Progress, ProgressCallback, silent
from ..slide import Slide, agreeing_levels, level_problems
from .coarse import find_candidates
from .options import RegistrationOptions
from .placement import Placement, find_placement
from .refining import refined
from .result import Registration, Stage, StageName, orientation
from .transform import SlideFrame, Transform, frame_of
from .views import OverviewPair, SlideView, look_at

_log = logging.getLogger(__name__)


def register(
    fixed: Slide,
    moving: Slide,
    options: RegistrationOptions | None = None,
    progress: ProgressCallback = silent,
    *,
    workers: int = 0,
) -> Registration:
    """Find out where the moving slide (IHC) shows what the fixed slide (H&E) shows.

    Parameters
    ----------
    fixed, moving
        Open slides of known resolution.
    options
        What is allowed.
    progress
        Told of every step.
    workers
        Threads; 0 for one per core.

    Returns
    -------
    Registration
        With the status "failed" where nothing fits well enough; that is no exception.

    Raises
    ------
    MissingResolutionError
        If a slide's resolution is unknown.
    UnreadableSlideError
        If a file is damaged.

    Notes
    -----
    Memory: overviews of some 1024² px, and a piece of 768² px per thread, whatever the slides; and the equations of the
    field, which has at most 200² control points (0.4 GB then). A coarse search takes seconds, and so does each step;
    the time of the last ones grows with the tissue.
    """
    options = options or RegistrationOptions()
    steps, clock = _Steps(progress), _Clock()
    steps.begin("looking at both slides")
    for slide in (fixed, moving):
        for problem in level_problems(slide):
            _log.warning("%s: %s", slide.info.name, problem)
    fixed, moving = agreeing_levels(fixed), agreeing_levels(moving)
    pair = OverviewPair(look_at(fixed), look_at(moving))
    log = _StageLog(pair, frame_of(fixed.info), frame_of(moving.info))
    for overview, what in ((pair.fixed, "H&E"), (pair.moving, "IHC")):
        if not overview.tissue.any():
            return _failed(f"no tissue was found on the {what} slide", log)

    steps.begin("searching placements")
    candidates = find_candidates(pair)
    coarse_s = clock.lap()
    steps.begin("fitting affine maps")
    placement, doubt = find_placement(pair, candidates, mirror=options.mirror, workers=workers)
    if placement is None or doubt:
        return _failed(doubt, log, placement.score if placement else 0.0)
    log.add("coarse", Transform(placement.candidate.matrix), placement.candidate.score, coarse_s)
    log.add("affine", Transform(placement.matrix), placement.score, clock.lap())

    residual_um = placement.residual_um
    if options.local:
        slides = SlideView(fixed, pair.fixed.view.glass), SlideView(moving, pair.moving.view.glass)
        steps.begin("estimating the local field")
        for step in refined(pair, slides, Transform(placement.matrix), options.spacing_um, workers):
            log.add("local", step.transform, step.agreement, clock.lap())
            residual_um = step.error_um
            steps.begin(f"local field, left-out error {residual_um:.1f} µm")
    return _registered(placement, residual_um, log)


class _Steps:
    """Tells of the steps; how many there will be is not known beforehand."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress, self._count = progress, 0

    def begin(self, note: str) -> None:
        self._progress(Progress("registering", self._count, max(8, self._count + 1), unit="step", note=note))
        self._count += 1


class _Clock:
    """Seconds since the last time that it was asked."""

    def __init__(self) -> None:
        self._asked = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._asked = now - self._asked, now
        return seconds


class _StageLog:
    """Collects stages, between the slides instead of their overviews."""

    def __init__(self, pair: OverviewPair, fixed: SlideFrame, moving: SlideFrame) -> None:
        self.stages: list[Stage] = []
        self._pair, self._fixed, self._moving = pair, fixed, moving

    def add(self, name: StageName, transform: Transform, score: float, seconds: float) -> None:
        whole = dataclasses.replace(self._pair.on_slides(transform), fixed=self._fixed, moving=self._moving)
        self.stages.append(Stage(name, whole, score, seconds))


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
