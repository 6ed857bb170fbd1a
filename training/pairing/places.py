"""Where the files of a patch are: in its slide's folder, or at its place in the data set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsi2ihc.errors import OutputExistsError
from wsi2ihc.files import read_json
from wsi2ihc.registration.folder import OWN_NAMES

from ..data.pairs import Role
from .records import PatchRecord
from .words import reason

PLACES_NAME = "places.json"

ATTEMPT_NAME = "attempt"

PATCHES_NAME = "patches.png"

KEPT_NAMES = (*OWN_NAMES, PATCHES_NAME)
"""Files that are kept of a slide, beside its record and its patches."""

SPLIT_NAMES: dict[Role, str] = {"train": "train", "validation": "val", "test": "test"}
"""What the roles are called in names of folders and files."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one kept patch.

    slide:      its slide's id
    x_px, y_px: which of its patches
    split:      "train", "val", "test"
    name:       of its files, without ".png"
    """

    slide: str
    x_px: int
    y_px: int
    split: str
    name: str


def slide_folder(folder: Path, slide: str) -> Path:
    """Where the files of one slide are kept."""
    return folder / "slides" / slide


def attempt_folder(folder: Path, slide: str) -> Path:
    """Where one slide is being cut, or was, without success."""
    return slide_folder(folder, slide) / ATTEMPT_NAME


def staging_folder(folder: Path, slide: str) -> Path:
    """Where the patches of one slide are until they get their numbers."""
    return slide_folder(folder, slide) / "patches"


def staged_files(folder: Path, slide: str, patch: PatchRecord | Place, side_by_side: bool) -> tuple[Path, ...]:
    """The files of a patch in its slide's folder: H&E and IHC, or the one that holds both."""
    stem = f"{patch.x_px}_{patch.y_px}"
    names = (f"{stem}.png",) if side_by_side else (f"{stem}_he.png", f"{stem}_ihc.png")
    return tuple(staging_folder(folder, slide) / name for name in names)


def relative_files(place: Place, side_by_side: bool) -> tuple[str, ...]:
    """The files of a patch at its place, relative to the data set, in the same order."""
    tail = f"{place.split}/{place.name}.png"
    return (tail,) if side_by_side else (f"HE/{tail}", f"IHC/{tail}")


def moves(folder: Path, places: Iterable[Place], side_by_side: bool) -> dict[Path, Path]:
    """Of all files: where each is before it has its place, and where then."""
    return {
        staged: folder / relative
        for place in places
        for staged, relative in zip(
            staged_files(folder, place.slide, place, side_by_side), relative_files(place, side_by_side), strict=True
        )
    }


def as_json(places: Iterable[Place], side_by_side: bool) -> bytes:
    """The content of ``places.json``."""
    rows = ",\n".join(
        json.dumps([place.slide, place.x_px, place.y_px, place.split, place.name], ensure_ascii=False)
        for place in places
    )
    return f'{{"side_by_side": {json.dumps(side_by_side)}, "places": [\n{rows}\n]}}\n'.encode()


def read_places(folder: Path) -> dict[Path, Path]:
    """The `moves` of ``places.json``; none if there is no such file.

    Raises
    ------
    OutputExistsError
        If it is damaged: nobody knows then which file belongs where.
    """
    path = folder / PLACES_NAME
    try:
        facts = read_json(path)
        return moves(folder, [Place(*row) for row in facts["places"]], facts["side_by_side"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputExistsError(f"{path} cannot be read ({reason(error)}); choose another folder") from error
