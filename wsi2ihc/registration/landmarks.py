"""Landmarks that people set on both slides, and how far a transform misses them.

The files are those of ANHIR and BIRL: a CSV with a head, an id per row (its column may have no name), and ``X`` and
``Y`` in level-0 px. A position of whole px is taken to mean the middle of that pixel, so that it lies at
``(X + 0.5) · mpp`` µm.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import RegistrationError
from ..files import read_regular
from .transform import FloatArray, SlideFrame, Transform, to_moving

LARGEST_FILE_BYTES = 64 << 20
FARTHEST_PX = 1e8
"""No slide has a side of this length; a coordinate beyond it is damage."""

LEAST_TO_CONTRADICT = 3
"""Fewer landmarks say too little."""

CONTRADICTS_FROM_UM = 20.0
"""Median error below which landmarks contradict nothing: two cells, which is what people miss a place by, and what
neighbouring sections differ by."""

CONTRADICTS_RESIDUAL, CONTRADICTS_BEFORE = 3.0, 0.5
"""Landmarks contradict a registration if their median error is more than three times the distance at which it found its
own blocks, and more than half of what it was without it."""


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """What one file says of one slide.

    ids:        one per landmark, all different
    points_um:  (N, 2), µm from the slide's top left corner
    """

    ids: tuple[str, ...]
    points_um: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class MatchedLandmarks:
    """Landmarks that both slides have, in the order of the fixed slide's file.

    ids:               one per pair
    fixed_um:          (N, 2), on the fixed slide
    moving_um:         (N, 2), on the moving slide
    unmatched_fixed:   how many only the fixed slide has
    unmatched_moving:  how many only the moving slide has
    """

    ids: tuple[str, ...]
    fixed_um: FloatArray
    moving_um: FloatArray
    unmatched_fixed: int
    unmatched_moving: int


@dataclass(frozen=True, slots=True)
class LandmarkErrors:
    """Distances between where landmarks are on the moving slide and where a transform puts them.

    count:                     of pairs
    median_um, p90_um, max_um: of the distances
    median_rtre, p90_rtre:     of the distances, as shares of the moving slide's diagonal
    """

    count: int
    median_um: float
    p90_um: float
    max_um: float
    median_rtre: float
    p90_rtre: float


def read_landmarks(path: Path, mpp: tuple[float, float]) -> Landmarks:
    """Read the landmarks of one slide.

    Parameters
    ----------
    path
        A CSV file, separated by commas or semicolons. Columns ``X`` and ``Y`` (in any case) are needed; the first
        other column is the id, and without one the number of the row is.
    mpp
        The slide's resolution, µm per level-0 px along (x, y).

    Raises
    ------
    RegistrationError
        If the file cannot be read, has no such columns, no landmark, an id twice, or something that is no coordinate.
    """
    head, rows = _table(path)
    names = [name.strip().lower() for name in head]
    if names.count("x") != 1 or names.count("y") != 1:
        raise RegistrationError(
            f"{path.name}: the head has no columns X and Y ({', '.join(head)[:80]!r}); name them so"
        )
    x, y = names.index("x"), names.index("y")
    column = next((number for number in range(len(names)) if number not in (x, y)), None)
    ids = [str(number) if column is None else _cell(row, column) for number, (_, row) in enumerate(rows, start=1)]
    points = np.array([[_coordinate(row, place, line, path) for place in (x, y)] for line, row in rows], np.float64)
    if not rows:
        raise RegistrationError(f"{path.name}: there is no landmark in it; give a file with rows, or none")
    seen: set[str] = set()
    for (line, _), name in zip(rows, ids, strict=True):
        if name in seen:
            raise RegistrationError(f"{path.name}, line {line}: the landmark {name!r} is there twice; remove one")
        seen.add(name)
    return Landmarks(tuple(ids), (points + 0.5) * np.array(mpp))


def read_landmark_pair(
    files: tuple[Path, Path], mpp: tuple[float, float], moving_mpp: tuple[float, float]
) -> MatchedLandmarks:
    """Read the files of the fixed and of the moving slide, and pair their landmarks.

    Raises
    ------
    RegistrationError
        If both are one file, or as for `read_landmarks` and `match_landmarks`.
    """
    fixed, moving = read_landmarks(files[0], mpp), read_landmarks(files[1], moving_mpp)
    if files[0].samefile(files[1]):
        raise RegistrationError(
            f"{files[0].name} is given as the landmarks of both slides; name the file of each slide"
        )
    return match_landmarks(fixed, moving)


def match_landmarks(fixed: Landmarks, moving: Landmarks) -> MatchedLandmarks:
    """Pair landmarks by their ids; those that only one slide has are counted.

    Raises
    ------
    RegistrationError
        If no id is on both slides.
    """
    place = {name: number for number, name in enumerate(moving.ids)}
    common = [(number, place[name]) for number, name in enumerate(fixed.ids) if name in place]
    if not common:
        raise RegistrationError(
            f"the two landmark files have no id in common ({_some(fixed.ids)} and {_some(moving.ids)}); "
            "the same place needs the same id in both"
        )
    here, there = (list(numbers) for numbers in zip(*common, strict=True))
    return MatchedLandmarks(
        ids=tuple(fixed.ids[number] for number in here),
        fixed_um=fixed.points_um[here],
        moving_um=moving.points_um[there],
        unmatched_fixed=len(fixed.ids) - len(here),
        unmatched_moving=len(moving.ids) - len(there),
    )


def landmark_errors(transform: Transform, matched: MatchedLandmarks, moving_diagonal_um: float) -> LandmarkErrors:
    """How far a transform misses the landmarks, measured on the moving slide.

    With `identity` as the transform, these are the errors before registration: positions compared as they are, in µm.

    Parameters
    ----------
    transform
        From fixed to moving.
    matched
        At least one pair.
    moving_diagonal_um
        Diagonal of the moving slide, as `diagonal_um` gives it.

    Notes
    -----
    The relative error (rTRE) is the distance divided by the diagonal of the image in which it is measured (Borovec et
    al., "ANHIR: Automatic Non-rigid Histological Image Registration Challenge", IEEE Trans. Med. Imaging 39(10), 2020).
    """
    errors_um = np.linalg.norm(to_moving(transform, matched.fixed_um) - matched.moving_um, axis=1)
    median, p90 = _quantiles(errors_um)
    return LandmarkErrors(
        count=len(errors_um),
        median_um=median,
        p90_um=p90,
        max_um=float(errors_um.max()),
        median_rtre=median / moving_diagonal_um,
        p90_rtre=p90 / moving_diagonal_um,
    )


def contradiction(before: LandmarkErrors, after: LandmarkErrors, residual_um: float | None) -> str:
    """Why landmarks do not bear out a transform, one sentence; "" if they do, or are too few to tell.

    Parameters
    ----------
    before, after
        Their errors without the transform, and with it.
    residual_um
        How far tissue lies from where it puts it (median), by its own measure; None if nobody measured.
    """
    least_um = max(CONTRADICTS_FROM_UM, CONTRADICTS_RESIDUAL * (residual_um or 0.0))
    if after.count < LEAST_TO_CONTRADICT or after.median_um <= least_um:
        return ""
    if after.median_um <= CONTRADICTS_BEFORE * before.median_um:
        return ""
    own = "" if residual_um is None else f", where blocks of tissue miss by {residual_um:.3g} µm"
    return (
        f"the landmarks contradict the transform: it misses them by {after.median_um:.3g} µm (median; without it "
        f"{before.median_um:.3g}){own}; look at after.png, and whether both files are of these slides"
    )


def diagonal_um(frame: SlideFrame) -> float:
    """From one corner of a slide to the opposite one."""
    return math.hypot(frame.size.width * frame.mpp[0], frame.size.height * frame.mpp[1])


def _quantiles(errors_um: npt.NDArray[np.float64]) -> tuple[float, float]:
    median, p90 = np.percentile(errors_um, (50, 90))
    return float(median), float(p90)


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The head, and the rows that are not empty with the numbers of their lines."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise RegistrationError(
                f"{path.name} is larger than {LARGEST_FILE_BYTES >> 20} MB, so it holds no landmarks"
            )
        # with a byte order mark, as spreadsheets write it
        text = read_regular(path, LARGEST_FILE_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise RegistrationError(f"{path}: there is no such file of landmarks; check the path") from None
    except OSError as error:
        raise RegistrationError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from error
    except UnicodeDecodeError as error:
        raise RegistrationError(f"{path.name}: this is no text in UTF-8; save it as CSV in UTF-8") from error
    lines = text.splitlines()
    separator = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    try:
        parsed = list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise RegistrationError(f"{path.name}: this is no CSV file ({error}); export the landmarks again") from error
    if not parsed:
        raise RegistrationError(f"{path.name}: the file is empty; give a CSV file with the columns X and Y")
    return parsed[0], [(line, row) for line, row in enumerate(parsed[1:], start=2) if any(cell.strip() for cell in row)]


def _cell(row: Sequence[str], column: int) -> str:
    text = row[column].strip() if column < len(row) else ""
    # spreadsheets and data frames turn the id 1 into 1.0
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def _coordinate(row: Sequence[str], column: int, line: int, path: Path) -> float:
    text = row[column].strip() if column < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= FARTHEST_PX:
        raise RegistrationError(f"{path.name}, line {line}: {text[:40]!r} is no coordinate in px; write a plain number")
    return value


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3])[:60] + (" …" if len(ids) > 3 else "")
