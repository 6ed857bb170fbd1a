"""What a cell of the manifest means. All functions raise `BadCellError` where it means nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from wsi2ihc.slide import Choice

from ..data.pairs import ROLE_NAMES, Role
from .words import reason

Tissue = Literal["auto", "none"]
"""Found on the slide, or everything."""

Matrix: TypeAlias = tuple[float, float, float, float, float, float]
"""The (2, 3) matrix of an affine map from H&E µm to IHC µm, row by row."""

IDENTITY: Matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Of slides that lie on each other as they are: the same section restained, or an IHC that was warped before."""

LEVELS = ("0", "1+", "2+", "3+")
"""HER2 levels, weakest first."""

_LEVEL_NAMES = {level: level for level in LEVELS} | {level.rstrip("+"): level for level in LEVELS}

_MPP_RANGE = (0.02, 50.0)
"""µm/px that a slide can have; beyond, a unit was mixed up (250 nm, 4 px/µm)."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that no path has on purpose, and that would break a message of one line."""

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
"""In a slide's id, which is the name of a folder: what leaves it, or what some file system refuses."""

_ID_BYTES = 150
"""Of a slide's id at most: file systems end a name at 255 bytes."""


class BadCellError(ValueError):
    """A cell has no meaning; the message is one line for people."""


class UnreachableError(BadCellError):
    """What a cell names is not there at the moment; the cell may well be right.

    path: what it names
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def patient(text: str) -> str:
    """The patient of a row."""
    if not text:
        raise BadCellError("no patient_id; patients are what is split, so give each row one")
    return text


def slide_id(text: str) -> str:
    """The id of a row's slides, which can name a folder."""
    if not text:
        raise BadCellError("no slide_id; give each row one of its own")
    if _FORBIDDEN.search(text) or text.startswith(".") or text.endswith("."):
        raise BadCellError(
            f"the slide_id {text!r:.60} cannot name a folder; use letters, digits, blanks, and - _ . inside of it"
        )
    if len(text.encode()) > _ID_BYTES:
        raise BadCellError(f"the slide_id {text!r:.60} is longer than {_ID_BYTES} bytes; shorten it")
    return text


def file(folder: Path, text: str, what: str) -> Path:
    """A file that is there (`UnreachableError` if it is not); ``what`` it is, for people."""
    if not text:
        raise BadCellError(f"no path of the {what}")
    if CONTROL.search(text):
        raise BadCellError(f"the path of the {what} has a line break or the like in it: {text!r:.200}")
    path = folder / text
    try:
        if path.is_file():
            return path
        found = path.exists()
    except (OSError, ValueError) as error:
        raise UnreachableError(path, f"the {what} {text!r:.200} cannot be looked at ({reason(error)})") from error
    if found:
        raise BadCellError(f"the {what} {path} is a folder or the like; name a file")
    raise UnreachableError(path, f"the {what} {path} is not there; check the path")


def level(text: str) -> str | None:
    """A HER2 level, one of `LEVELS`; None for an empty cell."""
    if not text:
        return None
    level = _LEVEL_NAMES.get(text.replace(" ", ""))
    if level is None:
        raise BadCellError(
            f"the HER2 level is {text!r:.40}, not one of {', '.join(LEVELS)} (leave it empty if unknown)"
        )
    return level


def mpp(column: str, text: str) -> float | None:
    """µm per px; None for an empty cell."""
    if not text:
        return None
    value = _number(text)
    low, high = _MPP_RANGE
    if not low <= value <= high:
        raise BadCellError(f"{column} is {text!r:.40}, not a number of µm per px between {low:g} and {high:g}")
    return value


def image(side: str, row: Mapping[str, str]) -> Choice:
    """Which image of a slide's file is meant, from the columns ``SIDE_series`` and ``SIDE_page``."""
    numbers = []
    for column in (f"{side}_series", f"{side}_page"):
        text = row[column]
        if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise BadCellError(f"{column} is {text!r:.40}, not a number from 0")
        numbers.append(int(text) if text else None)
    return Choice(*numbers)


def _number(text: str) -> float:
    """A number; NaN for all else, and for what Python alone takes for one (1_000, ١)."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def role(text: str) -> Role | None:
    """The role that a split names; None for an empty cell."""
    if not text:
        return None
    if text.lower() not in ROLE_NAMES:
        raise BadCellError(f"the split is {text!r:.40}, not one of train, val, test")
    return ROLE_NAMES[text.lower()]


def landmarks(row: Mapping[str, str]) -> tuple[str, str] | None:
    """The names of the two tables of landmarks, the H&E's first; None if a row has none."""
    both = row["landmarks"]
    he, ihc = row["he_landmarks"], row["ihc_landmarks"]
    if both and (he or ihc):
        raise BadCellError(
            "landmarks are given in two ways; keep the column landmarks, or he_landmarks and ihc_landmarks"
        )
    if both:
        parts = [part.strip() for part in both.split(";")]
        if len(parts) != 2 or not all(parts):
            raise BadCellError(f"landmarks are {both!r:.80}, not two tables separated by a semicolon, the H&E's first")
        he, ihc = parts
    if not he and not ihc:
        return None
    if not he or not ihc:
        raise BadCellError(f"landmarks are given of the {'H&E' if he else 'IHC'} alone; give both or none")
    return he, ihc


def tissue(folder: Path, text: str) -> Tissue | Path | None:
    """Where a row says the tissue of its H&E slide is; None for an empty cell. A mask is not read."""
    if not text:
        return None
    if text.lower() in ("auto", "none"):
        return "none" if text.lower() == "none" else "auto"
    return file(folder, text, "tissue mask")


def transform(folder: Path, text: str) -> Matrix | Path | None:
    """Where a row says its H&E lies on its IHC; None for an empty cell. A saved transform is not loaded.

    Numbers are separated by blanks, commas or semicolons.
    """
    if not text:
        return None
    if text.lower() == "identity":
        return IDENTITY
    path = folder / text
    try:
        found, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # no path at all: too long, say
        found = is_folder = False
    if is_folder and not (path / "transform.json").is_file():
        raise UnreachableError(
            path, f"the transform {path} holds no transform.json; name the folder or the file of a saved one"
        )
    if found:
        return path
    values = [_number(part) for part in re.split(r"[\s,;]+", text.strip("[]() "))]
    if all(map(math.isnan, values)):
        raise UnreachableError(
            path,
            f"the transform {text!r:.80} is neither identity, nor six numbers, nor a saved transform that is there",
        )
    return _matrix(text, values)


def _matrix(text: str, values: Sequence[float]) -> Matrix:
    if len(values) != 6 or not all(map(math.isfinite, values)):
        raise BadCellError(
            f"the transform {text!r:.80} has to be six numbers, the matrix from H&E to IHC µm, row by row"
        )
    a, b, c, d, e, f = values
    if abs(a * e - b * d) < 1e-6:
        raise BadCellError(f"the transform {text!r:.80} maps the slide onto a line; check the order: a b x, d e y")
    return a, b, c, d, e, f
