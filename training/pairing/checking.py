"""Is a data set on disk what it says it is? Every file of it is read."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.files import read_json, sha256_of_file
from wsi2ihc.geometry import Size
from wsi2ihc.progress import Progress, ProgressCallback, silent

from ..data.images import THREADS, read_pair, room_for
from ..data.layouts import find_pairs
from ..data.pairs import ROLE_NAMES, Pair
from ..data.table import STATEMENT_NAME, TABLE_NAME, read_rows
from .checking_store import is_ours, store_problems
from .places import SPLIT_NAMES
from .store import STORE_NAME
from .strays import strays
from .words import reason

_SHOWN = 20

_ADVICE = (
    "the same `wsi2ihc pairs` again puts right what is gone or has another size; it cuts those slides anew, no others",
    "a file that has changed and kept its size is cut anew once it has been removed; files that the data set does not "
    "name are never removed, so move them away",
)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check_dataset` found.

    patches:  how many were looked at
    problems: one line each
    advice:   what to do about them, one line each; none without problems
    """

    patches: int
    problems: tuple[str, ...]
    advice: tuple[str, ...] = ()

    def shown(self, limit: int = _SHOWN) -> tuple[str, ...]:
        """The first problems, and how many more there are."""
        more = len(self.problems) - limit
        return (*self.problems[:limit], f"… and {more} more") if more > 0 else self.problems


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the table as far as it can be understood: a name for messages, the pair, checksums ("" if not known)."""

    where: str
    pair: Pair
    sums: tuple[str, str] = ("", "")


def check_dataset(folder: Path, progress: ProgressCallback = silent) -> CheckReport:
    """Read a data set and list all that is wrong with it.

    Of a data set with a ``pairs.csv``: all files are there, are 8-bit RGB, can be decoded, have one size and the
    checksums of the table (where it has such); folders named after a split hold that split; no patient, slide or
    group is in two splits; there is no image that the table does not name; and the counts and
    the side of the patches in ``dataset.json`` are right. Of one that `build_pairs` has made, also: there is such a
    table, and what is kept to go on with is whole (`checking_store`). Of other data sets that training can read: what
    of this applies. Test patches are read as well.

    Parameters
    ----------
    folder
        The data set, or its ``pairs.csv``.
    progress
        Told of every pair.

    Raises
    ------
    DatasetError
        If there is no such folder, or its table cannot be read as one.
    """
    if folder.name == TABLE_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'a file' if folder.exists() else 'not there'}; name the folder of a data set")
    problems: list[str] = []
    if (folder / TABLE_NAME).is_file():
        rows = list(_rows(folder, problems))
        problems += _twice(rows)
        problems += _strays(folder, rows)
    elif is_ours(folder):
        again = f"there is no {TABLE_NAME}: the data set is not complete; run the same `wsi2ihc pairs` again"
        return CheckReport(0, (again,))
    else:
        try:
            rows = [_Row(str(pair.he), pair) for pair in find_pairs(folder).pairs]
        except (DatasetError, OptionError) as error:
            return CheckReport(0, (str(error),))
    problems += _misplaced(folder, rows)
    problems += _parted(rows)
    statement = _statement(folder, problems)
    problems += _pixels(rows, statement.get("patch_px"), progress)
    problems += _miscounted(rows, statement)
    if is_ours(folder):
        problems += _of_store(folder)
    return CheckReport(len(rows), tuple(problems), _ADVICE if problems and is_ours(folder) else ())


def _of_store(folder: Path) -> Iterator[str]:
    """What is wrong with the rest of a data set of our own: as its table names slides and files, there or not."""
    lines = read_rows(folder / TABLE_NAME).rows
    slides = {line["slide"] for line in lines if line.get("slide")}
    files = {folder / line[stain] for line in lines for stain in ("he", "ihc") if line[stain]}
    return store_problems(folder, slides, files)


def _rows(folder: Path, problems: list[str]) -> Iterator[_Row]:
    """The rows of the table whose files are there; what is wrong with the others goes to ``problems``."""
    table = folder / TABLE_NAME
    read = read_rows(table)
    if lacking := {"he", "ihc"} - read.rows[0].keys():
        raise DatasetError(f"{table} has no column {', '.join(sorted(lacking))} (it needs he and ihc)")
    for number, line in zip(read.lines, read.rows, strict=True):
        where = f"{TABLE_NAME}, row {number}"
        missing = [name or "no name" for name in (line["he"], line["ihc"]) if not name or not (folder / name).is_file()]
        split, half = line.get("split", "").lower(), line.get("half", "").lower()
        problems += [f"{where}: {name} is not there" for name in dict.fromkeys(missing)]
        if split and split not in ROLE_NAMES:
            problems.append(f"{where}: the split is {split!r:.40}, not one of train, val, test")
        if half not in ("", "left", "right") or bool(half) != (line["he"] == line["ihc"]):
            problems.append(f"{where}: the half is {half!r:.40}, but he and ihc are {line['he']} and {line['ihc']}")
        elif not missing:
            pair = Pair(
                name=Path(line["he"]).stem,
                he=folder / line["he"],
                ihc=folder / line["ihc"],
                half=half,  # type: ignore[arg-type]
                role=ROLE_NAMES.get(split),
                group=line.get("group") or None,
                patient=line.get("patient") or None,
                slide=line.get("slide") or None,
                her2=line.get("her2") or None,
            )
            yield _Row(where, pair, (line.get("sha256_he", ""), line.get("sha256_ihc", "")))


def _twice(rows: Iterable[_Row]) -> Iterator[str]:
    first: dict[Path, str] = {}
    for row in rows:
        for file in dict.fromkeys((row.pair.he, row.pair.ihc)):
            if (other := first.setdefault(file, row.where)) != row.where:
                yield f"{row.where}: {file.name} is also that of {other.removeprefix(f'{TABLE_NAME}, ')}"


def _strays(folder: Path, rows: Iterable[_Row]) -> Iterator[str]:
    """Images in the folders of the data set that no row names."""
    named = {file for row in rows for file in (row.pair.he, row.pair.ihc)}
    listed = {file.parent.relative_to(folder).parts[:1] for file in named if file.is_relative_to(folder)}
    for path in strays(folder, named, (parts[0] for parts in listed if parts)):
        yield f"{path} is not in {TABLE_NAME}"


def _misplaced(folder: Path, rows: Iterable[_Row]) -> Iterator[str]:
    """Files whose folder or name says another split than their row."""
    for row in rows:
        for file in dict.fromkeys((row.pair.he, row.pair.ihc)):
            parts = file.relative_to(folder).parts if file.is_relative_to(folder) else (file.parent.name, file.name)
            says = {ROLE_NAMES[part.lower()] for part in parts[:-1] if part.lower() in ROLE_NAMES}
            if row.pair.role and says and says != {row.pair.role}:
                yield f"{row.where}: the split is {row.pair.role}, but {'/'.join(parts)} lies in {' and '.join(says)}"


def _parted(rows: Iterable[_Row]) -> Iterator[str]:
    """Patients, slides and groups that are in two splits; slides only of patients that are not."""
    parted: set[str | None] = set()
    for kind in ("patient", "slide", "group"):
        roles: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            name = getattr(row.pair, kind)
            if name and row.pair.role and row.pair.patient not in parted:
                roles[name].add(row.pair.role)
        for name, found in sorted(roles.items()):
            if len(found) > 1:
                yield f"the {kind} {name!r:.60} is in {' and '.join(sorted(found))}"
                parted |= {name} if kind == "patient" else set()


def _statement(folder: Path, problems: list[str]) -> dict[str, Any]:
    """What ``dataset.json`` says; empty if there is none."""
    path = folder / STATEMENT_NAME
    try:
        statement = read_json(path)
    except FileNotFoundError:
        if (folder / STORE_NAME).exists():
            problems.append(f"there is no {STATEMENT_NAME}: the data set is not complete; run the command again")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{STATEMENT_NAME} cannot be read as JSON ({reason(error)})")
        return {}
    if not isinstance(statement, dict):
        problems.append(f"{STATEMENT_NAME} is no JSON object")
        return {}
    return statement


def _pixels(rows: Sequence[_Row], patch_px: object, progress: ProgressCallback) -> list[str]:
    """Decode and hash all files, in threads; the pairs in flight bound the memory."""
    problems: list[str] = []
    sizes: dict[Size, list[str]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged files: a problem that names the file follows
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done, (row, (size, found)) in enumerate(zip(rows, pool.map(_look, rows), strict=True), 1):
                problems += found
                if size:
                    sizes[size].append(row.where)
                progress(Progress("checking", done, len(rows), "pair"))
        finally:
            pool.shutdown(cancel_futures=True)
    usual = Size(patch_px, patch_px) if isinstance(patch_px, int) and patch_px > 0 else None
    if usual is None and sizes:
        usual = max(sizes, key=lambda size: len(sizes[size]))
    source = f"{STATEMENT_NAME} says" if patch_px else "most others have"
    for size, places in sizes.items():
        if size != usual:
            problems += [f"{where}: {size} px, but {source} {usual}" for where in places]
    return problems


def _look(row: _Row) -> tuple[Size | None, list[str]]:
    """The size of one pair (None if it cannot be decoded), and what is wrong with its files."""
    problems = []
    for file, expected in dict.fromkeys(zip((row.pair.he, row.pair.ihc), row.sums, strict=True)):
        try:
            content = sha256_of_file(file) if expected else ""
        except OSError as error:
            return None, [f"{row.where}: {file} cannot be read ({reason(error)})"]
        if content != expected.lower():
            problems.append(f"{row.where}: {file.name} has changed: its checksum is not that of the table")
    try:
        with room_for(row.pair):
            he, _ = read_pair(row.pair)
            size = Size(he.shape[1], he.shape[0])
    except DatasetError as error:
        return None, [*problems, f"{row.where}: {error}"]
    return size, problems


def _miscounted(rows: Sequence[_Row], statement: dict[str, Any]) -> Iterator[str]:
    """Where ``dataset.json`` counts other pairs than there are."""
    counts = statement.get("counts")
    if not isinstance(counts, dict):
        return
    for role, split in SPLIT_NAMES.items():
        stated = found if isinstance(found := counts.get(split), dict) else {}
        own = [row.pair for row in rows if row.pair.role == role]
        if stated.get("pairs", 0) != len(own):
            yield f"{STATEMENT_NAME} counts {stated.get('pairs', 0)} pairs for {split}, but there are {len(own)}"
        levels = dict(Counter(pair.her2 for pair in own if pair.her2))
        if isinstance(stated.get("her2"), dict) and stated["her2"] != levels:
            yield f"{STATEMENT_NAME} counts {stated['her2']} by HER2 level for {split}, but there are {levels}"
