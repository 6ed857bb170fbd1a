"""Where the H&E of a pair lies on its IHC: as the manifest says, or as registration finds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi2ihc.progress import ProgressCallback
from wsi2ihc.registration.files import load_transform
from wsi2ihc.registration.landmarks import (
    MatchedLandmarks,
    contradiction,
    diagonal_um,
    landmark_errors,
    read_landmark_pair,
)
from wsi2ihc.registration.options import RegistrationOptions
from wsi2ihc.registration.registering import register
from wsi2ihc.registration.report import report_of
from wsi2ihc.registration.transform import Transform, frame_of, identity
from wsi2ihc.registration.warp_plan import check_slide, doubt_of_slide
from wsi2ihc.slide import Slide

from .cells import IDENTITY
from .manifest import SlidePair


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How two slides lie on each other.

    transform: from H&E to IHC; None if registration failed
    reason:    why it did; "" if it did not
    facts:     for ``registration.json``: without times, so that two runs write the same
    """

    transform: Transform | None
    reason: str
    facts: Mapping[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """The facts that a slide's record repeats."""
        kept = ("status", "transform", "score", "residual_um", "angle_deg", "scale", "mirrored")
        return {name: self.facts[name] for name in kept if name in self.facts}


def given_transform(pair: SlidePair, he: Slide, ihc: Slide) -> Transform | None:
    """What the manifest says, made to know both slides; None if they are to be registered.

    Raises
    ------
    TransformError
        If a saved transform cannot be read, or was made for other slides.
    """
    if pair.transform is None:
        return None
    if isinstance(pair.transform, Path):
        loaded = load_transform(pair.transform)
        check_slide(loaded.fixed, he.info)
        check_slide(loaded.moving, ihc.info)
    else:
        loaded = Transform(np.array(pair.transform).reshape(2, 3))
    return dataclasses.replace(loaded, fixed=frame_of(he.info), moving=frame_of(ihc.info))


def slide_doubts(pair: SlidePair, he: Slide, ihc: Slide) -> Iterator[str]:
    """Whether a saved transform may be that of other slides, as far as `given_transform` cannot tell."""
    if isinstance(pair.transform, Path):
        loaded = load_transform(pair.transform)
        yield from filter(None, (doubt_of_slide(loaded.fixed, he.info), doubt_of_slide(loaded.moving, ihc.info)))


def landmarks_of(pair: SlidePair, he: Slide, ihc: Slide) -> MatchedLandmarks | None:
    """The landmarks that both slides have; None if the manifest names none.

    Raises
    ------
    RegistrationError
        If a table cannot be read, or no landmark is on both slides.
    """
    if pair.he_landmarks is None or pair.ihc_landmarks is None:
        return None
    frames = frame_of(he.info), frame_of(ihc.info)
    return read_landmark_pair((pair.he_landmarks, pair.ihc_landmarks), frames[0].mpp, frames[1].mpp)


def align(
    he: Slide, ihc: Slide, options: RegistrationOptions, landmarks: MatchedLandmarks | None, threads: int,
    progress: ProgressCallback,
) -> Alignment:  # fmt: skip
    """Register the IHC slide onto the H&E slide. That it fails is an answer, no exception."""
    found = register(he, ihc, options, progress, workers=threads)
    facts = report_of(frame_of(he.info), frame_of(ihc.info), options, found, landmarks).to_json()
    del facts["created"]
    for stage in facts["stages"]:
        del stage["seconds"]
    return Alignment(found.transform, found.reason, facts)


def as_given(pair: SlidePair, transform: Transform, landmarks: MatchedLandmarks | None) -> Alignment:
    """A transform of the manifest, and how far it misses the landmarks."""
    said = pair.transform
    facts: dict[str, Any] = {
        "status": "given",
        "transform": said.name if isinstance(said, Path) else "identity" if said == IDENTITY else "matrix",
        "fixed": transform.fixed and dataclasses.asdict(transform.fixed),
        "moving": transform.moving and dataclasses.asdict(transform.moving),
        "landmarks": None,
        "warnings": [],
    }
    if landmarks is not None and transform.moving is not None:
        length_um = diagonal_um(transform.moving)
        before, after = (landmark_errors(one, landmarks, length_um) for one in (identity(), transform))
        facts["landmarks"] = {
            "pairs": len(landmarks.ids),
            "unmatched_fixed": landmarks.unmatched_fixed,
            "unmatched_moving": landmarks.unmatched_moving,
            "before": dataclasses.asdict(before),
            "after": dataclasses.asdict(after),
        }
        facts["warnings"] += filter(None, [contradiction(before, after, None)])
    return Alignment(transform, "", facts)
