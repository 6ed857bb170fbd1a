"""Manifest of slide pairs.

`read_manifest` reads a CSV table. Each field is parsed by a function that raises `BadFieldError` with a one-line
message, or `UnreachableError` if a file is unavailable. Problems of a row are collected and do not affect the other
rows.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from wsi2ihc.errors import DatasetError
from wsi2ihc.files import sha256_of_file
from wsi2ihc.slide import NO_CHOICE, Choice
from wsi2ihc.slide.readers.base import hash_of_file
from wsi2ihc.tables import read_csv
from wsi2ihc.text import listed, reason

from ..data.dataset import ROLE_NAMES, Role
from ..data.layouts import LEVEL_NAMES, LEVELS

Tissue = Literal["auto", "none"]
"""Detected tissue, or the whole slide."""

Matrix: TypeAlias = tuple[float, float, float, float, float, float]
"""Affine (2, 3) matrix from H&E µm to IHC µm, row by row."""

IDENTITY: Matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Transform of aligned slides: a restained section, or a warped IHC."""

_MPP_RANGE = (0.02, 50.0)
"""Plausible µm per px of a slide; values outside are in a different unit (250 nm, 4 px/µm)."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Control characters, which are not allowed in paths and one-line messages."""

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
"""Characters not allowed in slide ids, which are folder names."""

_ID_BYTES = 150
"""Maximum length of a slide id: file systems allow names of 255 bytes."""


class BadFieldError(ValueError):
    """Invalid field; the message is one line for display."""


class UnreachableError(BadFieldError):
    """Unavailable file; the field itself may be correct.

    ``path`` is its path.
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def parse_patient(text: str) -> str:
    """Parse a patient id."""
    if not text:
        raise BadFieldError("no patient_id; it is required, since the dataset is split by patient")
    return text


def parse_slide_id(text: str) -> str:
    """Parse a slide id, which must be valid as a folder name."""
    if not text:
        raise BadFieldError("no slide_id; each row needs a unique one")
    if _FORBIDDEN.search(text) or text.startswith(".") or text.endswith("."):
        raise BadFieldError(
            f"the slide_id {text!r:.60} is not valid as a folder name; use letters, digits, spaces, - _ and inner dots"
        )
    if len(text.encode()) > _ID_BYTES:
        raise BadFieldError(f"the slide_id {text!r:.60} is longer than {_ID_BYTES} bytes; shorten it")
    return text


def parse_file(folder: Path, text: str, what: str) -> Path:
    """Parse the path of an existing file (`UnreachableError` if missing); ``what`` describes it in messages."""
    if not text:
        raise BadFieldError(f"no path of the {what}")
    if CONTROL.search(text):
        raise BadFieldError(f"the path of the {what} contains a control character: {text!r:.200}")
    path = folder / text
    try:
        if path.is_file():
            return path
        found = path.exists()
    except (OSError, ValueError) as error:
        raise UnreachableError(path, f"the {what} {text!r:.200} cannot be accessed ({reason(error)})") from error
    if found:
        raise BadFieldError(f"the {what} {path} is not a file")
    raise UnreachableError(path, f"the {what} {path} does not exist; check the path")


def parse_level(text: str) -> str | None:
    """Parse a HER2 level, one of `LEVELS`; None for an empty field."""
    if not text:
        return None
    level = LEVEL_NAMES.get(text.replace(" ", ""))
    if level is None:
        raise BadFieldError(
            f"the HER2 level is {text!r:.40}, not one of {', '.join(LEVELS)} (leave it empty if unknown)"
        )
    return level


def parse_mpp(column: str, text: str) -> float | None:
    """Parse µm per px; None for an empty field."""
    if not text:
        return None
    value = _number(text)
    low, high = _MPP_RANGE
    if not low <= value <= high:
        raise BadFieldError(f"{column} is {text!r:.40}, not a number of µm/px between {low:g} and {high:g}")
    return value


def parse_image(side: str, row: Mapping[str, str]) -> Choice:
    """Parse the image of a slide's file from the columns ``SIDE_series`` and ``SIDE_page``."""
    numbers = []
    for column in (f"{side}_series", f"{side}_page"):
        text = row[column]
        if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise BadFieldError(f"{column} is {text!r:.40}, not a number from 0")
        numbers.append(int(text) if text else None)
    return Choice(*numbers)


def _number(text: str) -> float:
    """Parse a number; NaN if invalid, also for Python-specific notations (1_000, ١)."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def parse_role(text: str) -> Role | None:
    """Parse a split; None for an empty field."""
    if not text:
        return None
    if text.lower() not in ROLE_NAMES:
        raise BadFieldError(f"the split is {text!r:.40}, not one of train, val, test")
    return ROLE_NAMES[text.lower()]


def parse_landmarks(row: Mapping[str, str]) -> tuple[str, str] | None:
    """Parse the names of the landmark tables of H&E and IHC; None if there are none."""
    both = row["landmarks"]
    he, ihc = row["he_landmarks"], row["ihc_landmarks"]
    if both and (he or ihc):
        raise BadFieldError(
            "landmarks are given twice; keep either the column landmarks, or he_landmarks and ihc_landmarks"
        )
    if both:
        parts = [part.strip() for part in both.split(";")]
        if len(parts) != 2 or not all(parts):
            raise BadFieldError(f"landmarks are {both!r:.80}, not two tables separated by a semicolon, the H&E's first")
        he, ihc = parts
    if not he and not ihc:
        return None
    if not he or not ihc:
        raise BadFieldError(f"landmarks are given of the {'H&E' if he else 'IHC'} alone; give both or none")
    return he, ihc


def parse_tissue(folder: Path, text: str) -> Tissue | Path | None:
    """Parse the tissue of the H&E slide; None for an empty field. Mask files are not read."""
    if not text:
        return None
    if text.lower() in ("auto", "none"):
        return "none" if text.lower() == "none" else "auto"
    return parse_file(folder, text, "tissue mask")


def parse_transform(folder: Path, text: str) -> Matrix | Path | None:
    """Parse the transform from H&E to IHC; None for an empty field. Saved transforms are not loaded.

    Numbers are separated by spaces, commas or semicolons.
    """
    if not text:
        return None
    if text.lower() == "identity":
        return IDENTITY
    path = folder / text
    try:
        found, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # not a path, for example too long
        found = is_folder = False
    if is_folder and not (path / "transform.json").is_file():
        raise UnreachableError(
            path, f"the transform {path} contains no transform.json; name the folder or file of a saved transform"
        )
    if found:
        return path
    values = [_number(part) for part in re.split(r"[\s,;]+", text.strip("[]() "))]
    if all(map(math.isnan, values)):
        raise UnreachableError(
            path,
            f"the transform {text!r:.80} is neither identity, nor six numbers, nor an existing saved transform",
        )
    return _matrix(text, values)


def _matrix(text: str, values: Sequence[float]) -> Matrix:
    if len(values) != 6 or not all(map(math.isfinite, values)):
        raise BadFieldError(
            f"the transform {text!r:.80} must be six numbers, the matrix from H&E to IHC µm, row by row"
        )
    a, b, c, d, e, f = values
    if abs(a * e - b * d) < 1e-6:
        raise BadFieldError(f"the transform {text!r:.80} is singular; check the order: a b x, d e y")
    return a, b, c, d, e, f


_COLUMNS = {
    "patient": ("patient_id", "patient"),
    "slide": ("slide_id", "slide"),
    "he": ("he_path", "he"),
    "ihc": ("ihc_path", "ihc"),
    **{
        name: (name,)
        for name in (
            "her2", "he_mpp", "ihc_mpp", "split", "landmarks", "he_landmarks", "ihc_landmarks", "transform", "tissue",
            "he_series", "he_page", "ihc_series", "ihc_page",
        )
    },
}  # fmt: skip
"""Accepted names of each column. The first four columns are required."""

_T = TypeVar("_T")

_NEEDED = ("patient", "slide", "he", "ihc")
_MISSPELT = 0.75
"""Similarity (`difflib`) from which an unknown column is considered a misspelling of a missing one."""


@dataclass(frozen=True, slots=True)
class SlidePair:
    """One row of the manifest."""

    row: int  # first line of the row; the header is on line 1
    # Ids. Slides of one patient stay in one split; the slide id names the folder.
    patient: str
    slide: str
    # paths of the slides; relative paths start at the folder of the manifest
    he: Path
    ihc: Path
    her2: str | None = None  # "0", "1+", "2+", "3+", or None if unknown
    # µm per level-0 px that override those of the slide
    he_mpp: float | None = None
    ihc_mpp: float | None = None
    role: Role | None = None  # stated role; None for a random one
    # landmark tables, both or none
    he_landmarks: Path | None = None
    ihc_landmarks: Path | None = None
    # transform from H&E µm to IHC µm: matrix or path of a saved transform; None to register the slides
    transform: Matrix | Path | None = None
    # tissue of the H&E: "auto", "none" (everything) or a mask file; None as in the options
    tissue: Tissue | Path | None = None
    # selected image of each file
    he_image: Choice = NO_CHOICE
    ihc_image: Choice = NO_CHOICE


@dataclass(frozen=True, slots=True)
class Member:
    """Fields of a row that determine its split; see `SlidePair`.

    Rows with other problems are included, so that the split does not depend on which files are available.
    """

    patient: str
    slide: str
    her2: str | None = None
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Problem of a row: line, slide id ("" if missing) and a one-line message."""

    row: int
    slide: str
    message: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content of a manifest, which is read once."""

    path: Path
    rows: tuple[SlidePair, ...]  # usable rows in order
    members: tuple[Member, ...]  # split fields of all rows, if valid
    problems: tuple[RowProblem, ...]  # problems of unusable rows, by row
    sha256: str
    unreachable: tuple[SlidePair, ...] = ()  # rows that are unusable only because a file is unavailable
    cells: frozenset[str] = frozenset()  # all distinct fields
    ignored: tuple[str, ...] = ()  # unknown columns, in lower case


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Required columns are ``patient_id``, ``slide_id``, ``he_path``, ``ihc_path`` (or without the suffix). Optional are
    ``her2``, ``he_mpp``, ``ihc_mpp``, ``split``, ``landmarks`` (two tables separated by ";", the H&E's first) or
    ``he_landmarks`` and ``ihc_landmarks``, ``he_series``, ``he_page``, ``ihc_series``, ``ihc_page`` (image of a file),
    ``transform`` (empty to register the slides, "identity", six numbers for the matrix from H&E µm to IHC µm row by
    row, or the path of a saved transform), and ``tissue`` (auto, none or a mask of the H&E slide, as for `translate`).
    Relative paths start at the folder of the manifest.

    Raises
    ------
    DatasetError
        If the table cannot be read or has no rows, or a column is missing, ambiguous or misspelled.
    """
    table = read_csv(path)
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
    """Map columns to their names in the table."""
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
            raise DatasetError(f"{path} has an unknown column {name!r:.40}, similar to {meant[0]}; rename it")
    return names


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """Parsed row: the pair, if valid, its problems, and messages about unavailable files."""

    pair: SlidePair | None
    problems: Sequence[str]
    unreachable: Sequence[str]


def _read_row(folder: Path, number: int, row: Mapping[str, str]) -> _ReadRow:
    problems: list[str] = []
    unreachable: list[str] = []

    def tried(read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except BadFieldError as error:
            problems.append(str(error))
            return None

    def found(read: Callable[[], _T]) -> _T | Path | None:
        try:
            return read()
        except UnreachableError as error:
            unreachable.append(str(error))
            return error.path
        except BadFieldError as error:
            problems.append(str(error))
            return None

    def file(text: str, what: str) -> Path | None:
        return found(lambda: parse_file(folder, text, what))

    patient = tried(lambda: parse_patient(row["patient"]))
    slide = tried(lambda: parse_slide_id(row["slide"]))
    he, ihc = file(row["he"], "H&E slide"), file(row["ihc"], "IHC slide")
    her2 = tried(lambda: parse_level(row["her2"]))
    he_mpp = tried(lambda: parse_mpp("he_mpp", row["he_mpp"]))
    ihc_mpp = tried(lambda: parse_mpp("ihc_mpp", row["ihc_mpp"]))
    role = tried(lambda: parse_role(row["split"]))
    marks = tried(lambda: parse_landmarks(row))
    he_landmarks = file(marks[0], "table of H&E landmarks") if marks else None
    ihc_landmarks = file(marks[1], "table of IHC landmarks") if marks else None
    transform = found(lambda: parse_transform(folder, row["transform"]))
    tissue = found(lambda: parse_tissue(folder, row["tissue"]))
    he_image, ihc_image = tried(lambda: parse_image("he", row)), tried(lambda: parse_image("ihc", row))
    if problems or patient is None or slide is None or he is None or ihc is None:
        return _ReadRow(None, problems, unreachable)
    pair = SlidePair(
        number, patient, slide, he, ihc, her2, he_mpp, ihc_mpp, role, he_landmarks, ihc_landmarks, transform, tissue,
        he_image or NO_CHOICE, ihc_image or NO_CHOICE,
    )  # fmt: skip
    return _ReadRow(pair, problems, unreachable)


def _member(row: Mapping[str, str]) -> Member | None:
    """Parse the split fields of a row; None if invalid."""
    try:
        return Member(parse_patient(row["patient"]), row["slide"], parse_level(row["her2"]), parse_role(row["split"]))
    except BadFieldError:
        return None


def _contradictions(folder: Path, rows: Mapping[int, Mapping[str, str]]) -> Iterator[RowProblem]:
    """Yield contradictions between rows. All affected rows fail, since the correct one is unknown."""

    def at_fault(numbers: Iterable[int], message: str) -> Iterator[RowProblem]:
        return (RowProblem(number, rows[number]["slide"], message) for number in numbers)

    # ids are folder names, and some file systems ignore case
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
    """Return groups of rows with an equal, non-empty key."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, key in keys.items():
        groups[key].append(number)
    return [numbers for key, numbers in groups.items() if key and len(numbers) > 1]


def _real(folder: Path, text: str) -> str:
    # resolved, since a file has several paths (a/../b, links)
    return os.path.realpath(folder / text) if text and not CONTROL.search(text) else ""


def _listed(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:6]))
    return text if len(numbers) <= 6 else f"{text} and {len(numbers) - 6} more"


_Member: TypeAlias = tuple[SlidePair, str, Path]
"""Row, stain and file."""


def find_duplicate_files(pairs: Iterable[SlidePair]) -> Iterator[RowProblem]:
    """Yield a problem for every row with a slide file that occurs more than once.

    Files of equal size are compared by their start and end, then entirely. All affected rows fail, since the correct
    one is unknown.
    """
    sizes: dict[int, list[_Member]] = defaultdict(list)
    for pair in pairs:
        for stain, path in (("H&E", pair.he), ("IHC", pair.ihc)):
            with contextlib.suppress(OSError):
                sizes[path.stat().st_size].append((pair, stain, path))
    for alike in sizes.values():
        for likely in _grouped(alike, hash_of_file):
            for same in _grouped(likely, sha256_of_file):
                yield from _problems(same)


def _grouped(members: Sequence[_Member], hash_of: Callable[[Path], str]) -> list[list[_Member]]:
    """Group files by their hashes. Unreadable files are skipped; opening them later raises the error."""
    if len(members) < 2:
        return []
    groups: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        with contextlib.suppress(OSError):
            groups[hash_of(member[2])].append(member)
    return [group for group in groups.values() if len(group) > 1]


def _problems(same: Sequence[_Member]) -> Iterator[RowProblem]:
    files = [f"{path.name} ({stain} of row {pair.row})" for pair, stain, path in same]
    for pair in {pair.row: pair for pair, _, _ in same}.values():
        yield RowProblem(pair.row, pair.slide, f"these files are identical: {listed(files)}; keep one of them")


@dataclass(frozen=True, slots=True)
class Folders:
    """Replacements of paths in messages, longest first."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest) -> Folders:
        """Collect the paths in a manifest and its folder."""
        parts = {part.strip() for cell in manifest.cells for part in (cell, *cell.split(";"))}
        own = manifest.path.parent
        names: dict[str, str] = {}
        for cell in {part for part in parts if Path(part).name and not any(character < " " for character in part)}:
            for path in (cell, str(own / cell), str((own / cell).resolve())):
                names[path] = Path(cell).name
        names |= {f"{folder}/": "" for folder in (own, own.resolve()) if str(folder) != "."}
        return cls(dict(sorted(names.items(), key=lambda item: -len(item[0]))))

    def removed(self, message: str) -> str:
        """Replace paths in a message by base names."""
        for path, name in self.names.items():
            if "/" in path or "\\" in path:
                message = message.replace(path, name)
        return message
