"""Folder of a registration: metrics, transform and figures."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..atomic_files import write_atomically
from ..errors import OutputError, OutputExistsError, TransformError
from ..files import json_bytes, read_json
from ..geometry import RGBImage
from ..locks import LOCK, exclusive_lock
from ..slide import Slide, agreeing_levels
from ..system import versions
from .figures import checkerboard, deformation_figure, figure_mpp, thumbnail
from .landmarks import LandmarkErrors, MatchedLandmarks, contradiction, diagonal_um, landmark_errors
from .register import Registration, RegistrationOptions, Stage
from .transform import SlideFrame, Transform, frame_of, identity
from .transform_io import FORMAT as TRANSFORM_FORMAT
from .transform_io import TRANSFORM_NAME, load_transform, save_transform

FORMAT, VERSION = "wsi2ihc registration", 1

REPORT_NAME = "registration.json"
BEFORE_NAME, AFTER_NAME, DEFORMATION_NAME = "before.png", "after.png", "deformation.png"
OWN_NAMES = (REPORT_NAME, TRANSFORM_NAME, Path(TRANSFORM_NAME).with_suffix(".npz").name, BEFORE_NAME, AFTER_NAME,
             DEFORMATION_NAME)  # fmt: skip


@contextlib.contextmanager
def reserved(folder: Path, overwrite: bool) -> Iterator[None]:
    """Lock the folder of a registration against other runs while the body writes it; errors as in `check_folder`.

    A new folder that stays empty is removed at the end. With ``overwrite``, a complete registration is replaced; failed
    and interrupted ones always are.

    Raises
    ------
    OutputBusyError
        If another run is writing it.
    """
    was_locked = check_folder(folder, overwrite)
    created = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        with exclusive_lock(
            folder, f"another run is registering into {folder}: wait for it to end, or choose another folder"
        ):
            check_folder(folder, overwrite, was_locked)  # again, now that no other run can start
            yield
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()  # fails if it is not empty, as intended


def check_folder(folder: Path, overwrite: bool, was_locked: bool | None = None) -> bool:
    """Check before any work whether a registration can be written to a folder, as in `reserved`.

    Returns whether an interrupted run left its lock, or ``was_locked`` if that was checked before.

    Raises
    ------
    OutputExistsError
        If a registration exists and may not be replaced, or the folder contains other files.
    OutputError
        If it is a file or cannot be written.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"output {folder} exists and is not a folder: name a folder")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if existing == folder else []
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be read ({error.strerror}): choose another") from error
    if was_locked is None:
        was_locked = LOCK in names
    visible = [name for name in names if name != LOCK and not name.endswith(".partial")]
    if foreign := _foreign(folder, visible, was_locked):
        raise OutputExistsError(
            f"output folder {folder} holds other files ({foreign[:60]}): name a new folder, or an empty one"
        )
    if not overwrite and is_complete(folder):
        raise OutputExistsError(f"{folder} already holds a registration: choose another folder, or allow it with "
                                "--overwrite")  # fmt: skip
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {existing} is not writable: change its permissions, or write elsewhere")
    return was_locked


def _foreign(folder: Path, names: list[str], was_locked: bool) -> str:
    """Return the first file that does not belong to a registration; "" if all do.

    Names are not sufficient: other programs may write a ``before.png``.
    """
    report, transform = _json(folder / REPORT_NAME), _json(folder / TRANSFORM_NAME)
    is_reported = REPORT_NAME in names and report.get("format") == FORMAT
    # invalid JSON is a damaged registration if all other files belong to one
    if transform and transform.get("format") != TRANSFORM_FORMAT:
        return TRANSFORM_NAME
    if is_reported:
        return ""
    if REPORT_NAME in names and (report or not was_locked):
        return REPORT_NAME
    others = [name for name in names if name not in OWN_NAMES]
    # a transform that was saved from Python has no status
    is_ours = was_locked or "status" in transform
    return next(iter(others or ([] if is_ours else names)), "")


def is_complete(folder: Path) -> bool:
    """Return whether the folder contains all files of a successful registration."""
    if _json(folder / REPORT_NAME).get("status") != "registered":
        return False
    if not all((folder / name).is_file() for name in (BEFORE_NAME, AFTER_NAME, DEFORMATION_NAME)):
        return False
    try:
        load_transform(folder)
    except TransformError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or invalid."""
    try:
        facts = read_json(path)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


@dataclass(frozen=True, slots=True, eq=False)
class RegistrationReport:
    """Report of a registration."""

    fixed: SlideFrame  # frames of the slides
    moving: SlideFrame  # frames of the slides
    options: RegistrationOptions
    registration: Registration  # result
    matched: MatchedLandmarks | None = None  # landmarks on both slides, if any
    before: LandmarkErrors | None = None  # their errors without a transform
    after: tuple[LandmarkErrors, ...] = ()  # their errors after each stage

    def to_json(self) -> dict[str, Any]:
        """Convert the report to JSON values; numbers that are not finite become null."""
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
        """Warnings about a registration that did not fail, for display."""
        warnings = []
        if self.fixed.quickhash and (self.fixed.quickhash, self.fixed.size) == (
            self.moving.quickhash,
            self.moving.size,
        ):
            warnings.append(
                f"{self.fixed.name} and {self.moving.name} are the same slide; name the slides of both stains"
            )
        if self.before is not None and self.after and self.registration.transform is not None:
            warnings.append(contradiction(self.before, self.after[-1], self.registration.residual_um))
        return tuple(filter(None, warnings))

    @property
    def stages(self) -> list[tuple[Stage, LandmarkErrors | None]]:
        """Stages with the errors of landmarks after each."""
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
    """Make the report of a registration, with the errors of landmarks before it and after each stage."""
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
    """Write the report (``facts``), figures and transform of a registration.

    Files of an earlier registration are removed. ``registration.json`` is removed first and written last, so that a
    folder with this file is complete.

    Raises
    ------
    OutputError
        If the file system refuses.
    UnreadableSlideError
        If a slide cannot be read for a figure; the folder is then unchanged.
    """
    fixed, moving = agreeing_levels(fixed), agreeing_levels(moving)
    figures = {BEFORE_NAME: checkerboard(fixed, moving, None)}
    if transform is not None:
        mpp = figure_mpp((frame_of(fixed.info),))
        figures[AFTER_NAME] = checkerboard(fixed, moving, transform)
        figures[DEFORMATION_NAME] = deformation_figure(transform, thumbnail(fixed, mpp), mpp)
    content = json_bytes(facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OWN_NAMES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written ({error.strerror}): write elsewhere") from error
    for name, figure in figures.items():
        write_figure(folder / name, figure)
    if transform is not None:
        repeated = ("status", "score", "residual_um")
        save_transform(folder, transform, {name: facts[name] for name in repeated if name in facts})
    write_atomically(folder / REPORT_NAME, content)


def write_figure(path: Path, image: RGBImage) -> None:
    """Write an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


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
    """Convert to JSON values, with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
