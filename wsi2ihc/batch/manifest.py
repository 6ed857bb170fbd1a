"""Which slides to translate: a CSV, a folder, or a pattern of names; with what is wrong of them, all of it at once."""

from __future__ import annotations

import csv
import dataclasses
import glob
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BatchError, ManifestError
from ..files import open_regular
from ..notation import listed
from ..slide import dicom_files, dicom_slides, is_dicom, is_zarr
from ..translation.options import TranslateOptions
from .cells import option_cells
from .places import marker_path
from .privacy import base_name, told

SLIDE_SUFFIXES = frozenset({
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".zvi", ".czi",
})  # fmt: skip
"""Of files that are taken for slides in a folder, beside DICOM slides and OME-Zarrs (see `_files`)."""

OUTPUT_SUFFIX = ".ome.tiff"

LONGEST_NAME_BYTES = 200
"""Of an output: file systems take 255, and partial files and reports have longer names."""

LARGEST_LIST_BYTES = 256 << 20
"""Size of a CSV: millions of slides."""

_SLIDE_COLUMNS = ("path", "slide")
_OWN_COLUMNS = (*_SLIDE_COLUMNS, "output", "mpp", "model", "series", "page")


@dataclass(frozen=True, slots=True)
class Row:
    """A slide that was asked for.

    line:     of the CSV, from 1 with the heads; place in the list of files else
    slide:    path or URL
    output:   base name of the virtual slide
    mpp:      as stated; None if it is not
    model:    name or file
    options:  of the translation
    series:   which image of the file, by its number; None: the largest RGB image
    page:     which page of the file
    """

    line: int
    slide: str
    output: str
    mpp: float | None
    model: str
    options: TranslateOptions
    series: int | None = None
    page: int | None = None

    @property
    def name(self) -> str:
        """Base name of the slide."""
        return base_name(self.slide)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row, in one line; its output is "" where not even that is known."""

    line: int
    name: str
    message: str
    output: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message.removeprefix(f'{self.name}: ')}"


def read_rows(
    source: str, model: str, options: TranslateOptions, *, mpp: float | None = None, recursive: bool = False
) -> tuple[list[Row], list[Problem]]:
    """The slides of a CSV, a folder or a pattern; and the rows of which nothing can be made. No slide is opened.

    Parameters
    ----------
    source
        A file whose name ends in ``.csv``; a folder; or a pattern such as ``slides/*.svs``.
    model, options, mpp
        What a row does not say itself.
    recursive
        Also take the slides in the folders of a folder, but for hidden ones.

    Raises
    ------
    ManifestError
        If there is no such file or folder, no slide in it, or a column has no meaning.
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
            if message := _what_is_wrong(file):
                name = _readable(file.name)
                problems.append(Problem(number, name, message, output_name(name)))
            else:
                rows.append(Row(number, str(file), output_name(file.name), mpp, model, options))
    return rows, sorted([*problems, *_clashes(rows)], key=lambda problem: problem.line)


def shard_of(rows: Sequence[Row], shard: str) -> list[Row]:
    """The rows of one of N shards, ``"I/N"`` with I from 0: every N-th by the name of its output.

    The same rows whatever the order of the manifest, and whatever any task of an array job can open: so that they cover
    it once, and some indices can be submitted again.

    Raises
    ------
    BatchError
        If it is no such text.
    """
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 0 <= int(number) < int(count)):
        raise BatchError(f"--shard {shard!r:.40} is not I/N with 0 ≤ I < N, such as 0/8 for the first of eight")
    return sorted(rows, key=lambda row: row.output)[int(number) :: int(count)]


def _what_is_wrong(file: Path) -> str:
    """Why a file cannot be begun with, as far as its name tells; "" if nothing speaks against it."""
    try:
        if not file.exists():
            return "it is a link that leads nowhere; is the place that it names mounted?"
    except OSError as error:
        return f"it cannot be reached ({error.strerror}); check the permissions"
    try:
        file.name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is no text in UTF-8; rename it"
    return "" if file.name.isprintable() else "its name holds characters that cannot be printed; rename it"


def _readable(name: str) -> str:
    """A name for tables and terminals."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(one if one.isprintable() else "?" for one in text)


def output_name(slide: str) -> str:
    """The name of a slide's output: its own without its suffix, and `OUTPUT_SUFFIX`."""
    stem = slide
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr", ".zarr", ".dcm", *sorted(SLIDE_SUFFIXES)):
        if slide.lower().endswith(suffix) and len(slide) > len(suffix):
            stem = slide[: -len(suffix)]
            break
    return stem + OUTPUT_SUFFIX


def _files(source: str, recursive: bool) -> list[Path]:
    """The slides in a folder or of a pattern: files, OME-Zarrs, and DICOM slides, each named by one of its files.

    A folder in the folder that holds DICOM files is named itself: it is one slide, or opening it says that it is not.
    """
    folder = Path(source)
    if folder.is_dir() and not is_zarr(folder):
        every = list(_below(folder) if recursive else folder.iterdir())
        found = [file for file in every if _is_slide(file) or (not recursive and _holds_dicom(file))]
        found += dicom_slides(file for file in every if is_dicom(file))
        found = sorted(file for file in found if not marker_path(file).exists())
        if not found:
            endings = ", ".join(sorted(SLIDE_SUFFIXES))
            raise ManifestError(f"{folder} holds no slide (DICOM, OME-Zarr, or names that end in {endings})")
        return found
    found = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207 (any pattern, also absolute)
    found = [file for file in found if file.is_symlink() or _is_file(file) or is_zarr(file) or _holds_dicom(file)]
    if not found:
        raise ManifestError(f"{source} is no CSV, no folder, and no file matches it")
    dicom = [file for file in found if is_dicom(file)]
    return sorted([*(file for file in found if file not in dicom), *(dicom_slides(dicom) or dicom)])


def _below(folder: Path) -> Iterator[Path]:
    """All files and OME-Zarrs of a folder and of the folders in it, but for hidden folders; links are not followed."""
    for place, folders, names in os.walk(folder):
        zarrs = [name for name in folders if is_zarr(Path(place, name))]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in zarrs]
        yield from (Path(place, name) for name in (*names, *zarrs))


def _holds_dicom(path: Path) -> bool:
    """Whether it is a folder with DICOM files."""
    try:
        return path.is_dir() and not path.name.startswith(".") and bool(dicom_files(path))
    except OSError:
        return False


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # behind a folder that cannot be entered; opening it reports why
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
        except Exception as error:  # a row whose cells nobody has thought of concerns no other row
            problems.append(Problem(line, name, told(error, *cells.values(), *_absolute(path, cells))))
    return rows, problems


def _absolute(path: Path, cells: Mapping[str, str]) -> Iterator[Path]:
    """What cells that are paths mean."""
    return (path.parent / cell for cell in cells.values() if "/" in cell or "\\" in cell)


def _row(
    folder: Path, line: int, slide: str, cells: Mapping[str, str], model: str, options: TranslateOptions
) -> Row:  # fmt: skip
    if not slide:
        raise ManifestError("no slide is named; fill the column path")
    where = slide if "://" in slide else str(folder / slide)
    output = _checked_name(cells.get("output") or output_name(base_name(slide)))
    stated = cells.get("mpp", "")
    try:
        mpp = float(stated) if stated else None
    except ValueError:
        raise ManifestError(f"mpp is {stated!r:.40}, not a number of µm per px") from None
    named = cells.get("model") or model
    own_model = str(folder / named) if cells.get("model") and (folder / named).is_file() else named
    own = {name: cell for name, cell in cells.items() if cell and name not in _OWN_COLUMNS}
    all_options = dataclasses.replace(options, **option_cells(own, folder, options))
    series, page = _number(cells, "series"), _number(cells, "page")
    return Row(line, where, output, mpp, own_model, all_options, series, page)


def _number(cells: Mapping[str, str], column: str) -> int | None:
    """A number from 0 in a cell; None where it is empty."""
    text = cells.get(column, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ManifestError(f"{column} is {text!r:.40}, not a number from 0")
    return int(text)


def _checked_name(output: str) -> str:
    """The name of an output, with its suffix.

    Raises
    ------
    ManifestError
        If it is no name of a file in the output folder, or of no OME-TIFF.
    """
    if "/" in output or "\\" in output:
        raise ManifestError(
            f"the output {base_name(output)!r:.80} is given with a folder, and so is no plain file name; outputs lie "
            "in the output folder itself"
        )
    if output.startswith(".") or not output.isprintable():
        raise ManifestError(f"the output {output!r:.80} is no plain file name; begin with a letter or a digit")
    if output.lower().endswith(".zarr"):
        raise ManifestError(f"the output {output!r:.80} is no OME-TIFF, which is what a batch writes")
    if not output.lower().endswith((".ome.tiff", ".ome.tif")):
        output += OUTPUT_SUFFIX
    if len(output.encode()) > LONGEST_NAME_BYTES:
        raise ManifestError(f"the output's name is longer than {LONGEST_NAME_BYTES} bytes; give it a shorter one")
    return output


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV that hold something, with their numbers; heads in lower case, with underscores."""
    try:
        with io.TextIOWrapper(open_regular(path, LARGEST_LIST_BYTES), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            heads = [cell.strip().lower().replace("-", "_") for cell in next(reader, [])]
            if not set(heads) & set(_SLIDE_COLUMNS):
                raise ManifestError(f"{path} has no column path (separated by commas?); its columns are {heads}")
            if twice := [head for head, times in Counter(heads).items() if head and times > 1]:
                raise ManifestError(f"{path} has two columns {twice[0]}; leave one of them")
            count = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) > len(heads):
                    raise ManifestError(f"{path}, line {reader.line_num}: {len(cells)} cells, {len(heads)} columns")
                count += 1
                yield reader.line_num, {head: cell.strip() for head, cell in zip(heads, cells, strict=False) if head}
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
