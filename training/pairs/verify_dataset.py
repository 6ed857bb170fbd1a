"""Verify a dataset on disk.

`check_dataset` lists all problems of a paired dataset: table, files, splits, pixels and counts. For datasets written by
`build_pairs`, also the index is compared with the records.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.concurrency import Progress, ProgressCallback, silent
from wsi2ihc.errors import DatasetError, OptionError, TransformError
from wsi2ihc.files import read_json, sha256_of_file
from wsi2ihc.geometry import Size
from wsi2ihc.registration.transform_io import TRANSFORM_NAME, load_transform
from wsi2ihc.text import reason

from ..data.dataset import ROLE_NAMES, Pair
from ..data.images import THREADS, read_pair, reserved_memory
from ..data.layouts import METADATA_NAME, TABLE_NAME, find_pairs, read_rows
from .dataset_writer import FORMAT, STORE_NAME
from .quality import Limits
from .slide_record import (
    PATCHES_NAME,
    RECORD_NAME,
    REGISTRATION_NAME,
    SPLIT_NAMES,
    SlideRecord,
    read_record,
    unlisted_files,
)

_REPAIR = "the same `wsi2ihc pairs` command extracts its slide again"


def is_ours(folder: Path) -> bool:
    """Check whether a dataset was written by `build_pairs`."""
    return (folder / STORE_NAME).exists() or any(folder.glob(f"{PATCHES_NAME}/*/*/{RECORD_NAME}"))


def _store_problems(folder: Path) -> Iterator[str]:
    without = "`wsi2ihc pairs` cannot resume this dataset; it can still be used for training"
    try:
        stored = read_json(folder / STORE_NAME)
    except FileNotFoundError:
        yield f"there is no {STORE_NAME}: {without}"
        return
    except (OSError, ValueError) as error:
        yield f"{STORE_NAME} cannot be read as JSON ({reason(error)}): {without}"
        return
    if not isinstance(stored, dict) or {key: stored.get(key) for key in FORMAT} != FORMAT:
        yield f"{STORE_NAME} is of another kind or version: {without}"


def _index_problems(
    folder: Path, records: Mapping[Path, SlideRecord | None], statement: Mapping[str, Any]
) -> Iterator[str]:
    """Compare the index with the records of its extractions."""
    named: dict[Path, set[Path]] = defaultdict(set)
    homes: dict[str, set[Path]] = defaultdict(set)
    for line in read_rows(folder / TABLE_NAME).rows:
        files = {folder / line[stain] for stain in ("he", "ihc") if line[stain]}
        for file in files:
            named[file.parent].add(file)
            homes[line.get("slide", "")].add(file.parent)
    for slide, extractions in sorted(homes.items()):
        if len(extractions) > 1:
            yield f"the patches of the slide {slide!r:.60} are from {len(extractions)} extractions: {_REPAIR}"
    for extraction, record in records.items():
        where = extraction.relative_to(folder).as_posix()
        if record is None:
            yield f"{where}/{RECORD_NAME} is missing or damaged: {_REPAIR}"
            continue
        kept = {folder / path for patch in _under(record, statement).kept for path in record.paths(patch)}
        if differ := sorted(kept ^ named[extraction]):
            more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
            yield f"{where}/{RECORD_NAME} and {TABLE_NAME} do not both name {differ[0].name}{more}"
        yield from _registration_problems(extraction / REGISTRATION_NAME, f"{where}/{REGISTRATION_NAME}", record)


def _under(record: SlideRecord, statement: Mapping[str, Any]) -> SlideRecord:
    """Return the record under the limits of ``dataset.json``, if it states valid ones."""
    with contextlib.suppress(LookupError, TypeError, OptionError):
        return record.under(Limits(**statement["options"]["limits"])) or record
    return record


def _registration_problems(folder: Path, where: str, record: SlideRecord) -> Iterator[str]:
    is_intact = True
    for name, size in record.files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            yield f"{where}/{name} is missing: {_REPAIR}"
            is_intact = False
            continue
        if found != size:
            yield f"{where}/{name} has {found:,} bytes instead of {size:,}: {_REPAIR}"
            is_intact = False
    if is_intact and TRANSFORM_NAME in record.files:
        try:
            load_transform(folder)
        except TransformError as error:
            yield f"{where}: {error!s:.200}; remove {TRANSFORM_NAME}, and {_REPAIR}"


_SHOWN = 20

_ADVICE = (
    "the same `wsi2ihc pairs` command restores missing files and files of a different size; it extracts only the "
    "affected slides again",
    "a changed file of equal size is restored after you remove it; files not listed in the dataset are never removed, "
    "so move them",
)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Number of pairs that `check_dataset` has checked, problems and remedies, one line each."""

    patches: int
    problems: tuple[str, ...]
    advice: tuple[str, ...] = ()

    def shown(self, limit: int = _SHOWN) -> tuple[str, ...]:
        """Return the first problems and the number of further ones."""
        more = len(self.problems) - limit
        return (*self.problems[:limit], f"… and {more} more") if more > 0 else self.problems


@dataclass(frozen=True, slots=True)
class _Row:
    """Valid row of the table: name for messages, pair, and checksums ("" if unknown)."""

    where: str
    pair: Pair
    sums: tuple[str, str] = ("", "")


def check_dataset(folder: Path, progress: ProgressCallback = silent) -> CheckReport:
    """Read a dataset, including test, and list all problems.

    For a dataset with ``pairs.csv``, checks that all files exist, are decodable 8-bit RGB images of one size and match
    the checksums of the table (if any); that folders named after a split contain only that split; that no patient,
    slide or group is in two splits; that all images are listed; and that ``dataset.json`` states the right counts and
    patch size. For a dataset written by `build_pairs`, also checks that the table exists and the files needed to resume
    are intact. For other supported datasets, the applicable checks are made.

    Parameters
    ----------
    folder
        Dataset, or its ``pairs.csv``.
    progress
        Called after every pair.

    Raises
    ------
    DatasetError
        If there is no such folder, or its table cannot be read.
    """
    if folder.name == TABLE_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'a file' if folder.exists() else 'not there'}; name the folder of a dataset")
    problems: list[str] = []
    if (folder / TABLE_NAME).is_file():
        rows = list(_rows(folder, problems))
        records = _records(folder) if is_ours(folder) else {}
        problems += _duplicate_files(rows)
        problems += _unlisted_files(folder, rows, filter(None, records.values()))
    elif is_ours(folder):
        again = f"there is no {TABLE_NAME}: the dataset is incomplete; run the same `wsi2ihc pairs` command again"
        return CheckReport(0, (again,))
    else:
        try:
            rows = [_Row(str(pair.he), pair) for pair in find_pairs(folder).pairs]
        except (DatasetError, OptionError) as error:
            return CheckReport(0, (str(error),))
    if not is_ours(folder):
        problems += _misplaced(folder, rows)
    problems += _split_across(rows)
    statement = _statement(folder, problems)
    problems += _pixels(rows, statement.get("patch_px"), progress)
    problems += _wrong_counts(rows, statement)
    if is_ours(folder):
        problems += _store_problems(folder)
        problems += _index_problems(folder, records, statement)
    return CheckReport(len(rows), tuple(problems), _ADVICE if problems and is_ours(folder) else ())


def _records(folder: Path) -> dict[Path, SlideRecord | None]:
    """Return the records of all extractions in the index."""
    lines = read_rows(folder / TABLE_NAME).rows
    extractions = {(folder / line["he"]).parent for line in lines if line.get("he")}
    return {one: read_record(one) for one in sorted(extractions) if one.is_relative_to(folder)}


def _rows(folder: Path, problems: list[str]) -> Iterator[_Row]:
    """Yield the valid rows of the table; append the problems of others to ``problems``."""
    table = folder / TABLE_NAME
    read = read_rows(table)
    if lacking := {"he", "ihc"} - read.rows[0].keys():
        raise DatasetError(f"{table} has no column {', '.join(sorted(lacking))} (it needs he and ihc)")
    for number, line in zip(read.lines, read.rows, strict=True):
        where = f"{TABLE_NAME}, row {number}"
        missing = [name or "no name" for name in (line["he"], line["ihc"]) if not name or not (folder / name).is_file()]
        split, half = line.get("split", "").lower(), line.get("half", "").lower()
        problems += [f"{where}: {name} is missing" for name in dict.fromkeys(missing)]
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


def _duplicate_files(rows: Iterable[_Row]) -> Iterator[str]:
    first: dict[Path, str] = {}
    for row in rows:
        for file in dict.fromkeys((row.pair.he, row.pair.ihc)):
            if (other := first.setdefault(file, row.where)) != row.where:
                yield f"{row.where}: {file.name} is also that of {other.removeprefix(f'{TABLE_NAME}, ')}"


def _unlisted_files(folder: Path, rows: Iterable[_Row], records: Iterable[SlideRecord]) -> Iterator[str]:
    """Yield images in the folders of the dataset that are neither listed in the table nor in a record."""
    named = {file for row in rows for file in (row.pair.he, row.pair.ihc)}
    tops = {file.parent.relative_to(folder).parts[:1] for file in named if file.is_relative_to(folder)}
    named |= {folder / path for record in records for path in record.file_sizes()}
    for path in unlisted_files(folder, named, (parts[0] for parts in tops if parts)):
        yield f"{path} is not in {TABLE_NAME}"


def _misplaced(folder: Path, rows: Iterable[_Row]) -> Iterator[str]:
    """Yield files in the folder of a different split than that of their row."""
    for row in rows:
        for file in dict.fromkeys((row.pair.he, row.pair.ihc)):
            parts = file.relative_to(folder).parts if file.is_relative_to(folder) else (file.parent.name, file.name)
            says = {ROLE_NAMES[part.lower()] for part in parts[:-1] if part.lower() in ROLE_NAMES}
            if row.pair.role and says and says != {row.pair.role}:
                yield f"{row.where}: the split is {row.pair.role}, but {'/'.join(parts)} lies in {' and '.join(says)}"


def _split_across(rows: Iterable[_Row]) -> Iterator[str]:
    """Yield patients, slides and groups in several splits; slides only if their patient is in one split."""
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
    """Read ``dataset.json``; empty if there is none."""
    path = folder / METADATA_NAME
    try:
        statement = read_json(path)
    except FileNotFoundError:
        if (folder / STORE_NAME).exists():
            problems.append(f"there is no {METADATA_NAME}: the dataset is incomplete; run the command again")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{METADATA_NAME} cannot be read as JSON ({reason(error)})")
        return {}
    if not isinstance(statement, dict):
        problems.append(f"{METADATA_NAME} is not a JSON object")
        return {}
    return statement


def _pixels(rows: Sequence[_Row], patch_px: object, progress: ProgressCallback) -> list[str]:
    """Decode and hash all files in threads. Memory bound: the pairs in flight."""
    problems: list[str] = []
    sizes: dict[Size, list[str]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged files before the error that names the file
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done, (row, (size, found)) in enumerate(zip(rows, pool.map(_check_pair, rows), strict=True), 1):
                problems += found
                if size:
                    sizes[size].append(row.where)
                progress(Progress("checking", done, len(rows), "pair"))
        finally:
            pool.shutdown(cancel_futures=True)
    usual = Size(patch_px, patch_px) if isinstance(patch_px, int) and patch_px > 0 else None
    if usual is None and sizes:
        usual = max(sizes, key=lambda size: len(sizes[size]))
    source = f"{METADATA_NAME} says" if patch_px else "most others have"
    for size, places in sizes.items():
        if size != usual:
            problems += [f"{where}: {size} px, but {source} {usual}" for where in places]
    return problems


def _check_pair(row: _Row) -> tuple[Size | None, list[str]]:
    """Return the size of one pair (None if it cannot be decoded) and the problems of its files."""
    problems = []
    for file, expected in dict.fromkeys(zip((row.pair.he, row.pair.ihc), row.sums, strict=True)):
        try:
            content = sha256_of_file(file) if expected else ""
        except OSError as error:
            return None, [f"{row.where}: {file} cannot be read ({reason(error)})"]
        if content != expected.lower():
            problems.append(f"{row.where}: {file.name} has changed: its checksum differs from the table")
    try:
        with reserved_memory(row.pair):
            he, _ = read_pair(row.pair)
            size = Size(he.shape[1], he.shape[0])
    except DatasetError as error:
        return None, [*problems, f"{row.where}: {error}"]
    return size, problems


def _wrong_counts(rows: Sequence[_Row], statement: dict[str, Any]) -> Iterator[str]:
    """Yield differences between the counts of ``dataset.json`` and the table."""
    counts = statement.get("counts")
    if not isinstance(counts, dict):
        return
    for role, split in SPLIT_NAMES.items():
        stated = found if isinstance(found := counts.get(split), dict) else {}
        own = [row.pair for row in rows if row.pair.role == role]
        if stated.get("pairs", 0) != len(own):
            yield f"{METADATA_NAME} counts {stated.get('pairs', 0)} pairs for {split}, but there are {len(own)}"
        levels = dict(Counter(pair.her2 for pair in own if pair.her2))
        if isinstance(stated.get("her2"), dict) and stated["her2"] != levels:
            yield f"{METADATA_NAME} counts {stated['her2']} by HER2 level for {split}, but there are {levels}"
