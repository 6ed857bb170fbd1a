"""Transform of a slide pair: from the manifest or by registration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi2ihc.concurrency import ProgressCallback
from wsi2ihc.registration.landmarks import (
    MatchedLandmarks,
    contradiction,
    diagonal_um,
    landmark_errors,
    read_landmark_pair,
)
from wsi2ihc.registration.register import RegistrationOptions, register
from wsi2ihc.registration.report import report_of
from wsi2ihc.registration.transform import Transform, frame_of, identity
from wsi2ihc.registration.transform_io import load_transform
from wsi2ihc.registration.warped_slide import check_slide, warning_of_slide
from wsi2ihc.slide import Slide

from .pair_manifest import IDENTITY, SlidePair


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """Transform from H&E to IHC, or None and the reason why registration failed; and the content of
    ``registration.json``, without times, so that it is reproducible.
    """

    transform: Transform | None
    reason: str
    metadata: Mapping[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """Part of the metadata that is copied to the slide's record."""
        kept = ("status", "transform", "score", "residual_um", "angle_deg", "scale", "mirrored")
        return {name: self.metadata[name] for name in kept if name in self.metadata}


def given_transform(pair: SlidePair, he: Slide, ihc: Slide) -> Transform | None:
    """Return the manifest's transform with the frames of both slides; None if they have to be registered.

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


def slide_warnings(pair: SlidePair, he: Slide, ihc: Slide) -> Iterator[str]:
    """Yield warnings if a saved transform may belong to other slides."""
    if isinstance(pair.transform, Path):
        loaded = load_transform(pair.transform)
        yield from filter(None, (warning_of_slide(loaded.fixed, he.info), warning_of_slide(loaded.moving, ihc.info)))


def landmarks_of(pair: SlidePair, he: Slide, ihc: Slide) -> MatchedLandmarks | None:
    """Return the landmarks of both slides; None if the manifest has none.

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
    """Register the IHC slide to the H&E slide. A failed registration is returned, not raised."""
    found = register(he, ihc, options, progress, workers=threads)
    metadata = report_of(frame_of(he.info), frame_of(ihc.info), options, found, landmarks).to_json()
    del metadata["created"]
    for stage in metadata["stages"]:
        del stage["seconds"]
    return Alignment(found.transform, found.reason, metadata)


def given_alignment(pair: SlidePair, transform: Transform, landmarks: MatchedLandmarks | None) -> Alignment:
    """Return the alignment for a transform of the manifest, with its landmark errors."""
    given = pair.transform
    metadata: dict[str, Any] = {
        "status": "given",
        "transform": given.name if isinstance(given, Path) else "identity" if given == IDENTITY else "matrix",
        "fixed": transform.fixed and dataclasses.asdict(transform.fixed),
        "moving": transform.moving and dataclasses.asdict(transform.moving),
        "landmarks": None,
        "warnings": [],
    }
    if landmarks is not None and transform.moving is not None:
        length_um = diagonal_um(transform.moving)
        before, after = (landmark_errors(one, landmarks, length_um) for one in (identity(), transform))
        metadata["landmarks"] = {
            "pairs": len(landmarks.ids),
            "unmatched_fixed": landmarks.unmatched_fixed,
            "unmatched_moving": landmarks.unmatched_moving,
            "before": dataclasses.asdict(before),
            "after": dataclasses.asdict(after),
        }
        metadata["warnings"] += filter(None, [contradiction(before, after, None)])
    return Alignment(transform, "", metadata)
