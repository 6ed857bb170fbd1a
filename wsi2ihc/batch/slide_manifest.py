"""Manifest of a batch: a CSV, a folder, or a glob pattern."""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

from ..atomic_files import make_folder, write_atomically
from ..errors import BatchError, ManifestError
from ..files import read_regular
from ..pyramid import PyramidOptions
from ..slide import dicom_files, dicom_slides, is_dicom, is_zarr
from ..tables import csv_rows, open_csv
from ..text import base_name, listed, one_line_error, option_name
from ..translation.options import TranslateOptions
from .task import marker_path, shards_folder

Parse: TypeAlias = Callable[[str], Any]

_NO_COLUMNS = frozenset({"device", "overwrite", "preview", "resume", "band_px", "subsampling"})
"""Fields of the options of a translation that the manifest cannot set for single slides."""


def option_cells(cells: Mapping[str, str], folder: Path, options: TranslateOptions) -> dict[str, Any]:
    """Return fields of `TranslateOptions` from the cells of a row that are not empty, by the names of the options.

    The path of a tissue mask is relative to ``folder``; cells change the pyramid of ``options``.

    Raises
    ------
    ManifestError
        If a column is not an option, or a cell is invalid.
    """
    values: dict[str, Any] = {}
    pyramid: dict[str, Any] = {}
    of_slide, of_pyramid = _parsers(TranslateOptions), _parsers(PyramidOptions)
    for name, cell in cells.items():
        known = of_slide.get(name) or of_pyramid.get(name)
        if known is None:
            raise ManifestError(f"there is no option {name!r:.40}; columns are path, output, mpp, series, page, model, "
                                f"{', '.join((*of_slide, *of_pyramid))}")  # fmt: skip
        field, parse = known
        try:
            (values if name in of_slide else pyramid)[field] = parse(
                cell.replace(";", ",") if field == "region" else cell
            )
        except ValueError as error:
            raise ManifestError(f"{name}: {cell!r:.40} {error}") from None
    if "tissue" in values and values["tissue"] not in ("auto", "none"):
        values["tissue"] = folder / values["tissue"]
        try:
            exists = values["tissue"].is_file()
        except OSError:  # an invalid file name
            exists = False
        if not exists:
            raise ManifestError(f"there is no tissue mask {cells['tissue']}")
    if pyramid:
        values["pyramid"] = dataclasses.replace(options.pyramid, **pyramid)
    return values


def _parsers(options: type) -> dict[str, tuple[str, Parse]]:
    """Return the field and parser of each column, from the declarations of the command-line options."""
    hints = get_type_hints(options)
    parsers: dict[type, Parse] = {int: _integer, bool: _switch}
    return {
        option_name(one): (one.name, one.metadata.get("parse") or parsers.get(hints[one.name], str))
        for one in dataclasses.fields(options)
        if "help" in one.metadata and one.name not in _NO_COLUMNS
    }


def _switch(text: str) -> bool:
    try:
        return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("is neither yes nor no") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is not an integer") from None


SLIDE_SUFFIXES = frozenset({
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".zvi", ".czi",
})  # fmt: skip
"""Suffixes of slides in a folder, in addition to DICOM slides and OME-Zarrs (see `_files`)."""

OUTPUT_SUFFIX = ".ome.tiff"

LONGEST_NAME_BYTES = 200
"""Longest name of an output: file systems allow 255, and partial files and reports have longer names."""

LARGEST_LIST_BYTES = 256 << 20
"""Largest size of a manifest, for millions of slides."""

_SLIDE_COLUMNS = ("path", "slide")
_OWN_COLUMNS = (*_SLIDE_COLUMNS, "output", "mpp", "model", "series", "page")


@dataclass(frozen=True, slots=True)
class Row:
    """Row of a manifest."""

    line: int  # line in the CSV, from 1 with the header; otherwise the position in the list of files
    slide: str  # path or URL
    output: str  # base name of the virtual slide
    mpp: float | None  # stated resolution, if any
    model: str  # name or file of the model
    options: TranslateOptions  # options of the translation
    series: int | None = None  # number of the image in the file; None for the largest RGB image
    page: int | None = None  # number of the page in the file

    @property
    def name(self) -> str:
        """Base name of the slide."""
        return base_name(self.slide)


@dataclass(frozen=True, slots=True)
class Problem:
    """One-line problem of a row; ``output`` is "" if unknown."""

    line: int
    name: str
    message: str
    output: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message.removeprefix(f'{self.name}: ')}"


def read_rows(
    source: str, model: str, options: TranslateOptions, *, mpp: float | None = None, recursive: bool = False
) -> tuple[list[Row], list[Problem]]:
    """Read the rows of a CSV, folder or pattern, and the rows that cannot be used. No slide is opened.

    The source is a file whose name ends in ``.csv``, a folder (with ``recursive`` also its subfolders, except hidden
    ones), or a pattern such as ``slides/*.svs``. ``model``, ``options`` and ``mpp`` are defaults of rows.

    Raises
    ------
    ManifestError
        If the source does not exist, holds no slide, or has an unknown column.
    """
    path = Path(source)
    if recursive and not path.is_dir():
        raise ManifestError(f"--recursive: {source} is not a folder; a pattern such as 'slides/**/*.svs' is recursive")
    if path.suffix.lower() == ".csv":
        rows, problems = _from_csv(path, model, options)
        rows = [row if row.mpp is not None else dataclasses.replace(row, mpp=mpp) for row in rows]
    else:
        rows, problems = [], []
        for number, file in enumerate(_files(source, recursive), 1):
            if message := _problem_of_file(file):
                name = _readable(file.name)
                problems.append(Problem(number, name, message, output_name(name)))
            else:
                rows.append(Row(number, str(file), output_name(file.name), mpp, model, options))
    return rows, sorted([*problems, *_clashes(rows)], key=lambda problem: problem.line)


@dataclass(frozen=True, slots=True)
class ManifestShard:
    """One of ``count`` parts of a manifest, numbered from 0."""

    number: int
    count: int


def parse_shard(text: str) -> ManifestShard:
    """Parse "I/N"; raises `BatchError`."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 0 <= int(number) < int(count)):
        raise BatchError(f"--shard {text!r:.40} is not I/N with 0 ≤ I < N, such as 0/8 for the first of eight")
    return ManifestShard(int(number), int(count))


def shard_of(rows: Sequence[Row], shard: ManifestShard) -> list[Row]:
    """Return the rows of a shard: every N-th row by the name of its output.

    Neither the order of the manifest nor unreadable slides change the rows of a shard, so shards can be resubmitted.
    """
    return sorted(rows, key=lambda row: row.output)[shard.number :: shard.count]


def _problem_of_file(file: Path) -> str:
    """Return why a file cannot be used, judging by its name; "" if it can."""
    try:
        if not file.exists():
            return "it is a broken link; is its target mounted?"
    except OSError as error:
        return f"it cannot be reached ({error.strerror}); check the permissions"
    try:
        file.name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    return "" if file.name.isprintable() else "its name contains unprintable characters; rename it"


def _readable(name: str) -> str:
    """Return a printable form of a name."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(one if one.isprintable() else "?" for one in text)


def output_name(slide: str) -> str:
    """Return the name of the output of a slide: its name with the suffix replaced by `OUTPUT_SUFFIX`."""
    stem = slide
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr", ".zarr", ".dcm", *sorted(SLIDE_SUFFIXES)):
        if slide.lower().endswith(suffix) and len(slide) > len(suffix):
            stem = slide[: -len(suffix)]
            break
    return stem + OUTPUT_SUFFIX


def _files(source: str, recursive: bool) -> list[Path]:
    """Find the slides of a folder or pattern: files, OME-Zarrs, and DICOM slides, each by one of its files.

    A subfolder with DICOM files counts as one slide; opening it fails if it is not.
    """
    folder = Path(source)
    if folder.is_dir() and not is_zarr(folder):
        every = list(_below(folder) if recursive else folder.iterdir())
        found = [file for file in every if _is_slide(file) or (not recursive and _holds_dicom(file))]
        found += dicom_slides(file for file in every if is_dicom(file))
        found = sorted(file for file in found if not marker_path(file).exists())
        if not found:
            endings = ", ".join(sorted(SLIDE_SUFFIXES))
            raise ManifestError(f"{folder} contains no slide (DICOM, OME-Zarr, or files ending in {endings})")
        return found
    found = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207 (any pattern, also absolute)
    found = [file for file in found if file.is_symlink() or _is_file(file) or is_zarr(file) or _holds_dicom(file)]
    if not found:
        raise ManifestError(f"{source} is not a CSV or folder, and no file matches it")
    dicom = [file for file in found if is_dicom(file)]
    return sorted([*(file for file in found if file not in dicom), *(dicom_slides(dicom) or dicom)])


def _below(folder: Path) -> Iterator[Path]:
    """Iterate over the files and OME-Zarrs of a folder and its visible subfolders, without following links."""
    for parent, folders, names in os.walk(folder):
        zarrs = [name for name in folders if is_zarr(Path(parent, name))]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in zarrs]
        yield from (Path(parent, name) for name in (*names, *zarrs))


def _holds_dicom(path: Path) -> bool:
    """Return whether a path is a visible folder with DICOM files."""
    try:
        return path.is_dir() and not path.name.startswith(".") and bool(dicom_files(path))
    except OSError:
        return False


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # in an inaccessible folder; opening it reports why
        return True


def _is_slide(file: Path) -> bool:
    if file.name.lower().endswith(".zarr") and not file.name.startswith("."):
        return is_zarr(file)
    if file.suffix.lower() not in SLIDE_SUFFIXES or file.name.startswith("."):
        return False
    return _is_file(file) or (file.is_symlink() and not file.exists())  # such a link is reported later


def _from_csv(path: Path, model: str, options: TranslateOptions) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for line, cells in _lines(path):
        slide = next((cells[column] for column in _SLIDE_COLUMNS if cells.get(column)), "")
        name = base_name(slide) or "?"
        try:
            rows.append(_row(path.parent, line, slide, cells, model, options))
        except Exception as error:  # an unexpected error must not affect other rows
            paths = (path.parent / cell for cell in cells.values() if "/" in cell or "\\" in cell)
            problems.append(Problem(line, name, one_line_error(error, *cells.values(), *paths)))
    return rows, problems


def _row(
    folder: Path, line: int, slide: str, cells: Mapping[str, str], model: str, options: TranslateOptions
) -> Row:  # fmt: skip
    if not slide:
        raise ManifestError("the column path is empty")
    where = slide if "://" in slide else str(folder / slide)
    output = _checked_name(cells.get("output") or output_name(base_name(slide)))
    stated = cells.get("mpp", "")
    try:
        mpp = float(stated) if stated else None
    except ValueError:
        raise ManifestError(f"mpp is {stated!r:.40}, not a number of µm/px") from None
    named = cells.get("model") or model
    own_model = str(folder / named) if cells.get("model") and (folder / named).is_file() else named
    own = {name: cell for name, cell in cells.items() if cell and name not in _OWN_COLUMNS}
    all_options = dataclasses.replace(options, **option_cells(own, folder, options))
    series, page = _number(cells, "series"), _number(cells, "page")
    return Row(line, where, output, mpp, own_model, all_options, series, page)


def _number(cells: Mapping[str, str], column: str) -> int | None:
    """Parse a number from 0; None if the cell is empty."""
    text = cells.get(column, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ManifestError(f"{column} is {text!r:.40}, not a number from 0")
    return int(text)


def _checked_name(output: str) -> str:
    """Return the name of an output with its suffix; `ManifestError` if it is not that of an OME-TIFF."""
    if "/" in output or "\\" in output:
        raise ManifestError(
            f"the output {base_name(output)!r:.80} is not a plain file name; outputs are written "
            "to the output folder itself"
        )
    if output.startswith(".") or not output.isprintable():
        raise ManifestError(f"the output {output!r:.80} is not a plain file name; start with a letter or a digit")
    if output.lower().endswith(".zarr"):
        raise ManifestError(f"the output {output!r:.80} is not an OME-TIFF, the format that a batch writes")
    if not output.lower().endswith((".ome.tiff", ".ome.tif")):
        output += OUTPUT_SUFFIX
    if len(output.encode()) > LONGEST_NAME_BYTES:
        raise ManifestError(f"the output's name is longer than {LONGEST_NAME_BYTES} bytes; give it a shorter one")
    return output


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Iterate over the numbered lines of a CSV that are not empty; columns in lower case with underscores."""
    try:
        with open_csv(path, LARGEST_LIST_BYTES) as file:
            table = csv_rows(file)
            _, first = next(table, (1, []))
            heads = [cell.strip().lower().replace("-", "_") for cell in first]
            if not set(heads) & set(_SLIDE_COLUMNS):
                raise ManifestError(f"{path} has no column path (separated by commas?); its columns are {heads}")
            if twice := [head for head, times in Counter(heads).items() if head and times > 1]:
                raise ManifestError(f"{path} has two columns {twice[0]}; leave one of them")
            count = 0
            for line, cells in table:
                if len(cells) > len(heads):
                    raise ManifestError(f"{path}, line {line}: {len(cells)} cells, {len(heads)} columns")
                count += 1
                yield line, {head: cell.strip() for head, cell in zip(heads, cells, strict=False) if head}
    except FileNotFoundError as error:
        raise ManifestError(f"there is no manifest {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} cannot be read as a CSV in UTF-8 ({error!s:.80})") from error
    if not count:
        raise ManifestError(f"{path} names no slide")


def _clashes(rows: Sequence[Row]) -> Iterator[Problem]:
    """Rows whose outputs have one name, on file systems that do not tell upper from lower case as well."""
    named: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        named[row.output.casefold()].append(row)
    for same in named.values():
        if len(same) > 1:
            names = listed([row.name for row in same])
            message = f"{names} have the output {same[0].output}; name others in a CSV's column output"
            yield from (Problem(row.line, row.name, message, row.output) for row in same)


def record_shard(folder: Path, shard: ManifestShard, listed: Sequence[Row]) -> list[str]:
    """Record the manifest of a shard, and return the numbers of shards that were made from another one.

    If the manifest has changed between two tasks of an array job, some slides are in none of them. ``listed`` are all
    rows of the manifest.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    names = "\n".join(sorted(row.output for row in listed))
    path = shards_folder(folder) / f"{shard.number}-of-{shard.count}"
    make_folder(path.parent)
    write_atomically(path, hashlib.sha256(names.encode()).hexdigest().encode())
    return shards_of_other_manifests(folder, shard.count)


def shards_of_other_manifests(folder: Path, count: int) -> list[str]:
    """Return the shards of a count whose manifest differs from that of the most recent shard."""
    notes = sorted(shards_folder(folder).glob(f"*-of-{count}"), key=lambda path: path.stat().st_mtime_ns)
    lists = {path.name.partition("-")[0]: _text_of(path) for path in notes}
    last = next(reversed(lists.values()), "")
    return sorted((number for number, own in lists.items() if own != last), key=int)


def _text_of(path: Path) -> str:
    try:
        return read_regular(path, 1 << 10).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
