"""What an evaluation gives: the scores of every method on the same images, and what they were scored with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi2ihc.arrays import RGBImage

from .calibration import Calibration
from .frechet import DistributionDistances
from .levels import LevelCalls
from .methods import Method
from .scores import ImageFacts, Scores


@dataclass(frozen=True, slots=True, eq=False)
class MethodResult:
    """One method.

    method:     what it is
    scores:     over whole images
    interior:   without a margin at every border; None where images are too small to have an interior
    distances:  FID and KID by level, and of all under ""; empty where there are no weights
    calls:      HER2 levels of slides by their stained area and their H-score; empty where there is nothing to fit to
    """

    method: Method
    scores: Scores
    interior: Scores | None = None
    distances: Mapping[str, DistributionDistances] = field(default_factory=dict)
    calls: tuple[LevelCalls, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One pair of images with the answers of all methods.

    why:      why it was chosen, as in "best" or "level 2+"
    image:    what it is
    he:       None where there is none
    virtual:  by the methods' names
    """

    why: str
    image: ImageFacts
    he: RGBImage | None
    reference: RGBImage
    virtual: Mapping[str, RGBImage]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All of it.

    subject:      what was scored, in a line: the data set and its split, or two folders
    unit:         what intervals are taken over, in the plural: "patients", "slides", "groups", "patches"
    levels:       HER2 levels to make rows for, also those without images
    methods:      models or given images first, then floors
    calibration:  thresholds, and where they come from
    reference_calls:
                  HER2 levels as the references themselves are read by the same cuts: what can be reached
    interior_px:  the margin of the interior
    inception:    facts of the weights; or the reason why there are none, under "reason"
    examples:     pictures to show
    notes:        what a reader has to know
    facts:        JSON values: the data set, the options, versions
    """

    subject: str
    unit: str
    levels: tuple[str, ...]
    methods: tuple[MethodResult, ...]
    calibration: Calibration
    reference_calls: tuple[LevelCalls, ...] = ()
    interior_px: int = 0
    inception: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
