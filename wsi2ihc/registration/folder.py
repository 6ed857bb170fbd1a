"""The folder of a registration: whether it may be written, and by one run at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import OutputError, OutputExistsError, TransformError
from ..files import read_json
from ..locks import LOCK, locked
from .files import FORMAT as TRANSFORM_FORMAT
from .files import TRANSFORM_NAME, load_transform

FORMAT, VERSION = "wsi2ihc registration", 1

REPORT_NAME = "registration.json"
BEFORE_NAME, AFTER_NAME, DEFORMATION_NAME = "before.png", "after.png", "deformation.png"
OWN_NAMES = (REPORT_NAME, TRANSFORM_NAME, Path(TRANSFORM_NAME).with_suffix(".npz").name, BEFORE_NAME, AFTER_NAME,
             DEFORMATION_NAME)  # fmt: skip


@contextlib.contextmanager
def reserved(folder: Path, overwrite: bool) -> Iterator[None]:
    """Keep other runs out of the folder of a registration while the body makes it.

    A folder that was not there, and gets nothing, is removed at the end.

    Parameters
    ----------
    folder
        Made if it is not there.
    overwrite
        Whether a registration that is there and complete may be replaced. One that has failed, or that a run which was
        killed has left, may be in any case.

    Raises
    ------
    OutputExistsError
        If a registration is there and may not be replaced, or the folder holds something else.
    OutputBusyError
        If another run is writing it.
    OutputError
        If it is a file, or cannot be written to.
    """
    was_locked = check_folder(folder, overwrite)
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        with locked(folder, f"another run is registering into {folder}: wait for it to end, or choose another folder"):
            check_folder(folder, overwrite, was_locked)  # again, now that nobody else can begin
            yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()  # refuses what is not empty, and that is meant


def check_folder(folder: Path, overwrite: bool, was_locked: bool | None = None) -> bool:
    """See early, before any work is done, whether a registration can be written to a folder.

    Parameters
    ----------
    folder, overwrite
        As for `reserved`.
    was_locked
        Whether a run that was killed has left its lock there; None to look.

    Returns
    -------
    bool
        That.

    Raises
    ------
    OutputExistsError
        If a registration is there and may not be replaced, or the folder holds something else.
    OutputError
        If it is a file, or cannot be written to.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"output {folder} exists and is not a folder: name a folder")
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
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
    if not overwrite and _is_complete(folder, visible):
        raise OutputExistsError(f"{folder} already holds a registration: choose another folder, or allow it with "
                                "--overwrite")  # fmt: skip
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {existing} is not writable: change its permissions, or write elsewhere")
    return was_locked


def _foreign(folder: Path, names: list[str], was_locked: bool) -> str:
    """The first file that no registration has left there; "" if there is none.

    The names alone prove nothing: others have a ``before.png``, too.
    """
    report, transform = _json(folder / REPORT_NAME), _json(folder / TRANSFORM_NAME)
    is_reported = REPORT_NAME in names and report.get("format") == FORMAT
    # what is no JSON was ours, if all the rest is: it has been damaged
    if transform and transform.get("format") != TRANSFORM_FORMAT:
        return TRANSFORM_NAME
    if is_reported:
        return ""
    if REPORT_NAME in names and (report or not was_locked):
        return REPORT_NAME
    others = [name for name in names if name not in OWN_NAMES]
    # a transform that was saved from Python says nothing of a status
    is_ours = was_locked or "status" in transform
    return next(iter(others or ([] if is_ours else names)), "")


def _is_complete(folder: Path, names: list[str]) -> bool:
    """Whether a registration is there that ended well, with all of its files."""
    if _json(folder / REPORT_NAME).get("status") != "registered":
        return False
    if not {BEFORE_NAME, AFTER_NAME, DEFORMATION_NAME} <= set(names):
        return False
    try:
        load_transform(folder)
    except TransformError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing if it is not there, or no JSON object."""
    try:
        facts = read_json(path)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
