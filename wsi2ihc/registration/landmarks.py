"""Landmarks on both slides, and the registration error they show."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import RegistrationError
from ..tables import csv_rows, open_csv
from .transform import FloatArray, SlideFrame, Transform, to_moving

LARGEST_FILE_BYTES = 64 << 20
FARTHEST_PX = 1e8
"""Largest plausible coordinate."""

LEAST_TO_CONTRADICT = 3
"""Smallest number of landmarks for a contradiction."""

CONTRADICTS_FROM_UM = 20.0
"""Smallest median error of a contradiction: two cells, the accuracy of manual landmarks and of neighboring sections."""

CONTRADICTS_RESIDUAL, CONTRADICTS_BEFORE = 3.0, 0.5
"""Landmarks contradict a registration if their median error is more than three times the distance at which it found its
own blocks, and more than half of what it was without it."""


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """Landmarks of one slide: unique ids, and points (N, 2) in µm from the top left corner."""

    ids: tuple[str, ...]
    points_um: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class MatchedLandmarks:
    """Landmarks on both slides, in the order of the file of the fixed slide."""

    ids: tuple[str, ...]  # ids of the pairs
    fixed_um: FloatArray  # (N, 2), on either slide
    moving_um: FloatArray  # (N, 2), on either slide
    unmatched_fixed: int  # number of landmarks on one slide only
    unmatched_moving: int  # number of landmarks on one slide only


@dataclass(frozen=True, slots=True)
class LandmarkErrors:
    """Target registration errors of landmarks on the moving slide."""

    count: int  # number of pairs
    median_um: float  # statistics of the errors
    p90_um: float  # statistics of the errors
    max_um: float  # statistics of the errors
    # median_rtre, p90_rtre: statistics of the errors relative to the diagonal of the moving slide
    median_rtre: float
    p90_rtre: float


def read_landmarks(path: Path, mpp: tuple[float, float]) -> Landmarks:
    """Read the landmarks of one slide.

    Parameters
    ----------
    path
        CSV file, separated by commas or semicolons, with the columns ``X`` and ``Y`` in any case. The first other
        column is the id; without one it is the number of the row.
    mpp
        Resolution of the slide, µm per level-0 px along (x, y).

    Raises
    ------
    RegistrationError
        If the file cannot be read or has missing columns, no landmarks, duplicate ids or invalid coordinates.
    """
    head, rows = _table(path)
    names = [name.strip().lower() for name in head]
    if names.count("x") != 1 or names.count("y") != 1:
        raise RegistrationError(
            f"{path.name}: the header row has no columns X and Y ({', '.join(head)[:80]!r}); rename the columns"
        )
    x, y = names.index("x"), names.index("y")
    column = next((number for number in range(len(names)) if number not in (x, y)), None)
    ids = [str(number) if column is None else _cell(row, column) for number, (_, row) in enumerate(rows, start=1)]
    points = np.array([[_coordinate(row, axis, line, path) for axis in (x, y)] for line, row in rows], np.float64)
    if not rows:
        raise RegistrationError(f"{path.name}: it contains no landmarks; name a file with rows, or none")
    seen: set[str] = set()
    for (line, _), name in zip(rows, ids, strict=True):
        if name in seen:
            raise RegistrationError(f"{path.name}, line {line}: duplicate landmark {name!r}; remove one")
        seen.add(name)
    return Landmarks(tuple(ids), (points + 0.5) * np.array(mpp))


def read_landmark_pair(
    files: tuple[Path, Path], mpp: tuple[float, float], moving_mpp: tuple[float, float]
) -> MatchedLandmarks:
    """Read the landmarks of both slides and match them.

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
    """Match landmarks by their ids and count those on one slide only.

    Raises
    ------
    RegistrationError
        If no id is on both slides.
    """
    index = {name: number for number, name in enumerate(moving.ids)}
    common = [(number, index[name]) for number, name in enumerate(fixed.ids) if name in index]
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
    """Compute the errors of a transform on the moving slide; of `identity`, those before registration.

    The relative error (rTRE) is the distance divided by the diagonal of the image in which it is measured, see
    `diagonal_um` (Borovec et al., "ANHIR: Automatic Non-rigid Histological Image Registration Challenge", IEEE Trans.
    Med. Imaging 39(10), 2020).
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
    """Return why landmarks contradict a transform, by the errors without and with it; "" if they do not or are too few.

    ``residual_um`` is the median residual of the registration, if known.
    """
    least_um = max(CONTRADICTS_FROM_UM, CONTRADICTS_RESIDUAL * (residual_um or 0.0))
    if after.count < LEAST_TO_CONTRADICT or after.median_um <= least_um:
        return ""
    if after.median_um <= CONTRADICTS_BEFORE * before.median_um:
        return ""
    own = "" if residual_um is None else f", where blocks of tissue miss by {residual_um:.3g} µm"
    return (
        f"the landmarks contradict the transform: it misses them by {after.median_um:.3g} µm (median; without it "
        f"{before.median_um:.3g}){own}; inspect after.png, and check that both files belong to these slides"
    )


def diagonal_um(frame: SlideFrame) -> float:
    """Return the diagonal of a slide in µm."""
    return math.hypot(frame.size.width * frame.mpp[0], frame.size.height * frame.mpp[1])


def _quantiles(errors_um: npt.NDArray[np.float64]) -> tuple[float, float]:
    median, p90 = np.percentile(errors_um, (50, 90))
    return float(median), float(p90)


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the header, and the numbered rows that are not empty."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise RegistrationError(
                f"{path.name} is larger than {LARGEST_FILE_BYTES >> 20} MB, so it holds no landmarks"
            )
        with open_csv(path, LARGEST_FILE_BYTES) as file:
            head = file.readline()
            file.seek(0)
            rows = list(csv_rows(file, ";" if head.count(";") > head.count(",") else ","))
    except FileNotFoundError:
        raise RegistrationError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise RegistrationError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from error
    except UnicodeDecodeError as error:
        raise RegistrationError(f"{path.name}: not a UTF-8 text file; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise RegistrationError(f"{path.name}: not a CSV file ({error}); export the landmarks again") from error
    if not rows:
        raise RegistrationError(f"{path.name}: the file is empty; give a CSV file with the columns X and Y")
    return rows[0][1], rows[1:]


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
        raise RegistrationError(
            f"{path.name}, line {line}: {text[:40]!r} is not a coordinate in px; write a plain number"
        )
    return value


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3])[:60] + (" …" if len(ids) > 3 else "")
