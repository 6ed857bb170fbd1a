"""What came out of a registration, as a folder: figures for programs, a transform for the next step, pictures.

Nothing here may identify a patient: of the slides only base names and hashes are told, and no paths at all.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..arrays import RGBImage
from ..errors import OutputError
from ..files import json_bytes
from ..runtime import versions
from ..slide import Slide, agreeing_levels
from .files import save_transform, write_file
from .folder import AFTER_NAME, BEFORE_NAME, DEFORMATION_NAME, FORMAT, OWN_NAMES, REPORT_NAME, VERSION
from .landmarks import LandmarkErrors, MatchedLandmarks, contradiction, diagonal_um, landmark_errors
from .options import RegistrationOptions
from .pictures import checkerboard, deformation_picture, picture_mpp, thumbnail
from .result import Registration, Stage
from .transform import SlideFrame, Transform, frame_of, identity


@dataclass(frozen=True, slots=True, eq=False)
class RegistrationReport:
    """The facts of one registration.

    fixed, moving:  the two slides
    options:        what was asked for
    registration:   what was found
    matched:        landmarks on both slides; None where none were given
    before:         their errors when both slides are laid corner upon corner
    after:          their errors after each of the registration's stages; empty where none were given
    """

    fixed: SlideFrame
    moving: SlideFrame
    options: RegistrationOptions
    registration: Registration
    matched: MatchedLandmarks | None = None
    before: LandmarkErrors | None = None
    after: tuple[LandmarkErrors, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes as it is; what is no finite number is null."""
        found = self.registration
        plain: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "status": found.status,
            "reason": found.reason,
            "score": found.score,
            "residual_um": found.residual_um,
            "angle_deg": found.angle_deg,
            "scale": found.scale,
            "mirrored": found.mirrored,
            "fixed": dataclasses.asdict(self.fixed),
            "moving": dataclasses.asdict(self.moving),
            "options": dataclasses.asdict(self.options),
            "stages": [_stage(stage, errors) for stage, errors in self.stages],
            "landmarks": self._landmarks(),
            "warnings": list(self.warnings),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        finite: dict[str, Any] = _finite(plain)
        return finite

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about a registration that did not fail, one sentence each, for people."""
        doubts = []
        if self.fixed.quickhash and (self.fixed.quickhash, self.fixed.size) == (
            self.moving.quickhash,
            self.moving.size,
        ):
            doubts.append(
                f"{self.fixed.name} and {self.moving.name} are the same slide: this says nothing of an IHC slide; "
                "name the slides of both stains"
            )
        if self.before is not None and self.after and self.registration.transform is not None:
            doubts.append(contradiction(self.before, self.after[-1], self.registration.residual_um))
        return tuple(filter(None, doubts))

    @property
    def stages(self) -> list[tuple[Stage, LandmarkErrors | None]]:
        """The stages, each with the errors of landmarks after it."""
        return list(zip_longest(self.registration.stages, self.after))

    def _landmarks(self) -> dict[str, Any] | None:
        if self.matched is None or self.before is None:
            return None
        return {
            "pairs": len(self.matched.ids),
            "unmatched_fixed": self.matched.unmatched_fixed,
            "unmatched_moving": self.matched.unmatched_moving,
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after[-1]) if self.after else None,
        }


def report_of(
    fixed: SlideFrame,
    moving: SlideFrame,
    options: RegistrationOptions,
    registration: Registration,
    matched: MatchedLandmarks | None = None,
) -> RegistrationReport:
    """Everything that is told of a registration, the errors of landmarks before and after each stage included."""
    if matched is None:
        return RegistrationReport(fixed, moving, options, registration)
    length_um = diagonal_um(moving)
    return RegistrationReport(
        fixed=fixed,
        moving=moving,
        options=options,
        registration=registration,
        matched=matched,
        before=landmark_errors(identity(), matched, length_um),
        after=tuple(landmark_errors(stage.transform, matched, length_um) for stage in registration.stages),
    )


def write_registration(
    folder: Path, fixed: Slide, moving: Slide, transform: Transform | None, facts: Mapping[str, Any]
) -> None:
    """Write a registration: its facts, pictures, and the transform where there is one.

    Files of an earlier registration are removed. ``registration.json`` goes first and comes last, so that a folder
    that has it is complete.

    Parameters
    ----------
    folder
        Made if it is not there. `folder.reserved` says beforehand whether it may be used.
    fixed, moving
        The open slides, for the pictures.
    transform
        From one to the other; None if there is none, and then no picture of it.
    facts
        For ``registration.json``, as `RegistrationReport.to_json` gives them.

    Raises
    ------
    OutputError
        If the file system refuses.
    UnreadableSlideError
        If a slide is damaged where a picture needs it; the folder is then as it was.
    """
    fixed, moving = agreeing_levels(fixed), agreeing_levels(moving)
    pictures = {BEFORE_NAME: checkerboard(fixed, moving, None)}
    if transform is not None:
        mpp = picture_mpp((frame_of(fixed.info),))
        pictures[AFTER_NAME] = checkerboard(fixed, moving, transform)
        pictures[DEFORMATION_NAME] = deformation_picture(transform, thumbnail(fixed, mpp), mpp)
    content = json_bytes(facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OWN_NAMES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written ({error.strerror}): write elsewhere") from error
    for name, picture in pictures.items():
        write_picture(folder / name, picture)
    if transform is not None:
        repeated = ("status", "score", "residual_um")
        save_transform(folder, transform, {name: facts[name] for name in repeated if name in facts})
    write_file(folder / REPORT_NAME, content)


def write_picture(path: Path, image: RGBImage) -> None:
    """Write a picture as PNG, in one piece.

    Raises
    ------
    OutputError
        If the file system refuses.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    write_file(path, buffer.getvalue())


def _stage(stage: Stage, errors: LandmarkErrors | None) -> dict[str, Any]:
    field = stage.transform.field
    return {
        "name": stage.name,
        "score": stage.score,
        "seconds": stage.seconds,
        "matrix": stage.transform.matrix.tolist(),
        "control_points": None if field is None else field.coefficients.shape[:2],
        "spacing_um": None if field is None else field.spacing_um,
        "landmarks": None if errors is None else dataclasses.asdict(errors),
    }


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not know, and plain lists and floats."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
