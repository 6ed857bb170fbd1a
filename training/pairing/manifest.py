"""The manifest: a table of which IHC slide belongs to which H&E slide.

What is wrong with a row is a problem of that row, and the others go on. Nothing is opened here but the table.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wsi2ihc.errors import DatasetError
from wsi2ihc.slide import NO_CHOICE, Choice

from ..data.files import read_lines
from ..data.pairs import ROLE_NAMES, Role
from . import cells
from .cells import BadCellError, Matrix, Tissue, UnreachableError

_COLUMNS = {
    "patient": ("patient_id", "patient"),
    "slide": ("slide_id", "slide"),
    "he": ("he_path", "he"),
    "ihc": ("ihc_path", "ihc"),
    "her2": ("her2",),
    "he_mpp": ("he_mpp",),
    "ihc_mpp": ("ihc_mpp",),
    "split": ("split",),
    "landmarks": ("landmarks",),
    "he_landmarks": ("he_landmarks",),
    "ihc_landmarks": ("ihc_landmarks",),
    "transform": ("transform",),
    "tissue": ("tissue",),
    "he_series": ("he_series",),
    "he_page": ("he_page",),
    "ihc_series": ("ihc_series",),
    "ihc_page": ("ihc_page",),
}
"""What each column may be called. The first four are needed."""

_T = TypeVar("_T")

_NEEDED = ("patient", "slide", "he", "ihc")

_MISSPELT = 0.75
"""How alike (`difflib`) a name that means nothing is to that of a column which is not there, if that is meant."""


@dataclass(frozen=True, slots=True)
class SlidePair:
    """One row of the manifest.

    row:       the line of the file on which it begins; the head is on line 1
    patient, slide:
               ids. Slides of one patient stay in one split; the slide's id names its folder.
    he, ihc:   the slides, relative to the manifest's folder where they were so written
    her2:      "0", "1+", "2+", "3+", or None where the manifest does not say
    he_mpp, ihc_mpp:
               µm per level-0 px that replace what the slide says
    role:      what the row's split asks for; None to have it drawn
    he_landmarks, ihc_landmarks:
               tables of points, both or none
    transform: H&E µm to IHC µm: a matrix, the path of a saved transform, or None to have the slides registered
    tissue:    of the H&E: "auto", "none" (everything), or a mask file; None as the options say
    he_image, ihc_image:
               which image of each file is meant
    """

    row: int
    patient: str
    slide: str
    he: Path
    ihc: Path
    her2: str | None = None
    he_mpp: float | None = None
    ihc_mpp: float | None = None
    role: Role | None = None
    he_landmarks: Path | None = None
    ihc_landmarks: Path | None = None
    transform: Matrix | Path | None = None
    tissue: Tissue | Path | None = None
    he_image: Choice = NO_CHOICE
    ihc_image: Choice = NO_CHOICE


@dataclass(frozen=True, slots=True)
class Member:
    """What a row says of its slide's place among the splits; the fields are those of `SlidePair`.

    There is one for each row in which these cells can be understood, whatever is wrong with the rest of it: who goes
    where may not depend on which disks are there today.
    """

    patient: str
    slide: str
    her2: str | None = None
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row cannot be used: its line, the slide's id ("" if it has none), and one line for people."""

    row: int
    slide: str
    message: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as it was read, once: what of it is needed later is here.

    path:     of the table
    rows:     those that can be used, in its order
    members:  of the splits; of all rows, as far as they can be understood
    problems: of the rows that cannot be used, by row
    unreachable:
              of the rows that cannot be used, those with which nothing is wrong but that a file is not there now
    sha256:   of the table's bytes
    cells:    everything that is written in it, each once
    ignored:  columns that mean nothing here, as they are called in lower case
    """

    path: Path
    rows: tuple[SlidePair, ...]
    members: tuple[Member, ...]
    problems: tuple[RowProblem, ...]
    sha256: str
    unreachable: tuple[SlidePair, ...] = ()
    cells: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Columns: ``patient_id``, ``slide_id``, ``he_path``, ``ihc_path`` (also without what follows the underscore); and
    where wanted ``her2``, ``he_mpp``, ``ihc_mpp``, ``split``, ``landmarks`` (two tables separated by ";", the H&E's
    first) or ``he_landmarks`` and ``ihc_landmarks``, ``he_series``, ``he_page``, ``ihc_series``, ``ihc_page`` (which
    image of a file), and ``transform``. That is empty (the slides are registered),
    "identity", six numbers (the matrix from H&E µm to IHC µm, row by row), or the path of a saved transform.
    ``tissue`` is auto, none or a mask of the H&E slide, as for `translate`. Relative paths start at
    the manifest's folder.

    Raises
    ------
    DatasetError
        If the table cannot be read, has no rows, lacks a column, has it under two names, or has one whose name is
        misspelt.
    """
    table = read_lines(path)
    names = _column_names(path, table.rows[0].keys())
    rows = {
        number: {column: line[names[column]] if column in names else "" for column in _COLUMNS}
        for number, line in zip(table.lines, table.rows, strict=True)
    }
    problems = list(_contradictions(path.parent, rows))
    pairs, unreachable = [], []
    for number, row in rows.items():
        read = _read_row(path.parent, number, row)
        problems += [RowProblem(number, row["slide"], message) for message in (*read.problems, *read.unreachable)]
        pairs += [read.pair] if read.pair and not read.unreachable else []
        unreachable += [(read.pair, read.unreachable)] if read.pair and read.unreachable else []
    wrong = Counter(problem.row for problem in problems)
    return Manifest(
        path,
        rows=tuple(pair for pair in pairs if pair.row not in wrong),
        members=tuple(member for row in rows.values() if (member := _member(row))),
        problems=tuple(sorted(problems, key=lambda problem: problem.row)),
        sha256=table.sha256,
        unreachable=tuple(pair for pair, messages in unreachable if wrong[pair.row] == len(messages)),
        cells=frozenset(cell for line in table.rows for cell in line.values()),
        ignored=tuple(sorted(name for name in table.rows[0] if name and name not in names.values())),
    )


def _column_names(path: Path, found: Iterable[str]) -> dict[str, str]:
    """How the table calls the columns that it has."""
    present = set(found)
    names: dict[str, str] = {}
    for column, spellings in _COLUMNS.items():
        used = [name for name in spellings if name in present]
        if len(used) > 1:
            raise DatasetError(f"{path} has both columns {used[0]} and {used[1]}; keep one of them")
        if used:
            names[column] = used[0]
    if lacking := [_COLUMNS[column][0] for column in _NEEDED if column not in names]:
        needed = ", ".join(_COLUMNS[column][0] for column in _NEEDED)
        raise DatasetError(f"{path} has no column {', '.join(lacking)} (it needs {needed})")
    for name in sorted(present - set(names.values())):
        unused = [spelling for column, spellings in _COLUMNS.items() if column not in names for spelling in spellings]
        if meant := difflib.get_close_matches(name, unused, 1, _MISSPELT):
            raise DatasetError(f"{path} has a column {name!r:.40}; if {meant[0]} is meant, call it so, else otherwise")
    return names


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """The pair of a row, if its cells mean one; all that is wrong with it; and which files are not there just now."""

    pair: SlidePair | None
    problems: Sequence[str]
    unreachable: Sequence[str]


def _read_row(folder: Path, number: int, row: Mapping[str, str]) -> _ReadRow:
    problems: list[str] = []
    unreachable: list[str] = []

    def tried(read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except BadCellError as error:
            problems.append(str(error))
            return None

    def found(read: Callable[[], _T]) -> _T | Path | None:
        try:
            return read()
        except UnreachableError as error:
            unreachable.append(str(error))
            return error.path
        except BadCellError as error:
            problems.append(str(error))
            return None

    def file(text: str, what: str) -> Path | None:
        return found(lambda: cells.file(folder, text, what))

    patient = tried(lambda: cells.patient(row["patient"]))
    slide = tried(lambda: cells.slide_id(row["slide"]))
    he, ihc = file(row["he"], "H&E slide"), file(row["ihc"], "IHC slide")
    her2 = tried(lambda: cells.level(row["her2"]))
    he_mpp = tried(lambda: cells.mpp("he_mpp", row["he_mpp"]))
    ihc_mpp = tried(lambda: cells.mpp("ihc_mpp", row["ihc_mpp"]))
    role = tried(lambda: cells.role(row["split"]))
    marks = tried(lambda: cells.landmarks(row))
    he_landmarks = file(marks[0], "table of H&E landmarks") if marks else None
    ihc_landmarks = file(marks[1], "table of IHC landmarks") if marks else None
    transform = found(lambda: cells.transform(folder, row["transform"]))
    tissue = found(lambda: cells.tissue(folder, row["tissue"]))
    he_image, ihc_image = tried(lambda: cells.image("he", row)), tried(lambda: cells.image("ihc", row))
    if problems or patient is None or slide is None or he is None or ihc is None:
        return _ReadRow(None, problems, unreachable)
    pair = SlidePair(
        number,
        patient,
        slide,
        he,
        ihc,
        her2,
        he_mpp,
        ihc_mpp,
        role,
        he_landmarks,
        ihc_landmarks,
        transform,
        tissue,
        he_image or NO_CHOICE,
        ihc_image or NO_CHOICE,
    )
    return _ReadRow(pair, problems, unreachable)


def _member(row: Mapping[str, str]) -> Member | None:
    """The row's place among the splits; None where it cannot be understood."""
    try:
        return Member(cells.patient(row["patient"]), row["slide"], cells.level(row["her2"]), cells.role(row["split"]))
    except BadCellError:
        return None


def _contradictions(folder: Path, rows: Mapping[int, Mapping[str, str]]) -> Iterator[RowProblem]:
    """What rows say against each other. All rows concerned are at fault: nobody can tell which one is right."""

    def at_fault(numbers: Iterable[int], message: str) -> Iterator[RowProblem]:
        return (RowProblem(number, rows[number]["slide"], message) for number in numbers)

    # Folders are named by the ids, and some file systems do not tell upper from lower case.
    for numbers in _shared({number: row["slide"].casefold() for number, row in rows.items()}):
        slide = rows[numbers[0]]["slide"]
        yield from at_fault(numbers, f"rows {_listed(numbers)} have the slide_id {slide!r:.60}; give each its own")
    for column, stain in (("he", "H&E"), ("ihc", "IHC")):
        for numbers in _shared({number: _real(folder, row[column]) for number, row in rows.items()}):
            name = Path(rows[numbers[0]][column]).name
            yield from at_fault(numbers, f"rows {_listed(numbers)} have the same {stain} slide {name}; keep one")
    for number, row in rows.items():
        if (he := _real(folder, row["he"])) and he == _real(folder, row["ihc"]):
            yield from at_fault([number], f"{Path(he).name} is given as H&E and as IHC")
    for numbers in _shared({number: row["patient"] for number, row in rows.items()}):
        roles = {ROLE_NAMES.get(rows[number]["split"].lower()) for number in numbers} - {None}
        if len(roles) > 1:
            patient, named = rows[numbers[0]]["patient"], " and ".join(sorted(map(str, roles)))
            message = f"the patient {patient!r:.60} is in {named} (rows {_listed(numbers)}); give them one split"
            yield from at_fault(numbers, message)


def _shared(keys: Mapping[int, str]) -> list[list[int]]:
    """The rows that have a key in common, where that is not empty."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, key in keys.items():
        groups[key].append(number)
    return [numbers for key, numbers in groups.items() if key and len(numbers) > 1]


def _real(folder: Path, text: str) -> str:
    # the real path: a file may be spelt in several ways (a/../b, links)
    return os.path.realpath(folder / text) if text and not cells.CONTROL.search(text) else ""


def _listed(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:6]))
    return text if len(numbers) <= 6 else f"{text} and {len(numbers) - 6} more"
