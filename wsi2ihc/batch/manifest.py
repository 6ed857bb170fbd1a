"""Which slides to translate: a CSV, a folder, or a pattern of names; with what is wrong of them, all of it at once."""

from __future__ import annotations

import csv
import dataclasses
import glob
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ManifestError, OptionError
from ..translation.options import TranslateOptions
from .cells import option_cells

SLIDE_SUFFIXES = frozenset({
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".zvi", ".czi",
})  # fmt: skip
"""Of files that are taken for slides in a folder."""

OUTPUT_SUFFIX = ".ome.tiff"

_SLIDE_COLUMNS = ("path", "slide")
_OWN_COLUMNS = (*_SLIDE_COLUMNS, "output", "mpp", "model")


@dataclass(frozen=True, slots=True)
class Row:
    """A slide that was asked for.

    line:     of the CSV, from 1 with the heads; place in the list of files else
    slide:    path or URL
    output:   base name of the virtual slide
    mpp:      as stated; None if it is not
    model:    name or file
    options:  of the translation
    """

    line: int
    slide: str
    output: str
    mpp: float | None
    model: str
    options: TranslateOptions

    @property
    def name(self) -> str:
        """Base name of the slide."""
        return self.slide.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row, in one line."""

    line: int
    name: str
    message: str

    def __str__(self) -> str:
        message = self.message.removeprefix(f"{self.name}: ")
        return f"line {self.line}, {self.name}: {message}"


def read_rows(source: str, model: str, options: TranslateOptions) -> tuple[list[Row], list[Problem]]:
    """The slides of a CSV, a folder or a pattern; and the rows of which nothing can be made. No slide is opened.

    Parameters
    ----------
    source
        A file whose name ends in ``.csv``; a folder; or a pattern such as ``slides/*.svs``.
    model, options
        What a row does not say itself.

    Raises
    ------
    ManifestError
        If there is no such file or folder, no slide in it, or a column has no meaning.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        rows, problems = _from_csv(path, model, options)
    else:
        files = _files(source)
        rows = [
            Row(number, str(file), output_name(file.name), None, model, options) for number, file in enumerate(files, 1)
        ]  # fmt: skip
        problems = []
    return rows, [*problems, *_clashes(rows)]


def output_name(slide: str) -> str:
    """The name of a slide's output: its own without its suffix, and `OUTPUT_SUFFIX`."""
    stem = slide
    for suffix in (".ome.tiff", ".ome.tif", *sorted(SLIDE_SUFFIXES)):
        if slide.lower().endswith(suffix) and len(slide) > len(suffix):
            stem = slide[: -len(suffix)]
            break
    return stem + OUTPUT_SUFFIX


def _files(source: str) -> list[Path]:
    folder = Path(source)
    if folder.is_dir():
        found = sorted(file for file in folder.iterdir() if _is_slide(file))
        if not found:
            raise ManifestError(f"{folder} holds no slide (names that end in {', '.join(sorted(SLIDE_SUFFIXES))})")
        return found
    found = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207 (any pattern, also absolute)
    found = [file for file in found if file.is_file()]
    if not found:
        raise ManifestError(f"{source} is no CSV, no folder, and no file matches it")
    return found


def _is_slide(file: Path) -> bool:
    return file.suffix.lower() in SLIDE_SUFFIXES and file.is_file() and not file.name.startswith(".")


def _from_csv(path: Path, model: str, options: TranslateOptions) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for line, cells in _lines(path):
        slide = next((cells[column] for column in _SLIDE_COLUMNS if cells.get(column)), "")
        name = slide.rstrip("/").rpartition("/")[2] or "?"
        try:
            rows.append(_row(path.parent, line, slide, cells, model, options))
        except (ManifestError, OptionError) as error:
            problems.append(Problem(line, name, str(error)))
    return rows, problems


def _row(
    folder: Path, line: int, slide: str, cells: Mapping[str, str], model: str, options: TranslateOptions
) -> Row:  # fmt: skip
    if not slide:
        raise ManifestError("no slide is named; fill the column path")
    where = slide if "://" in slide else str(folder / slide)
    output = cells.get("output") or output_name(Path(slide).name)
    if not output.lower().endswith((".ome.tiff", ".ome.tif")):
        output += OUTPUT_SUFFIX
    if "/" in output or "\\" in output or output.startswith(".") or not output.isprintable():
        raise ManifestError(f"the output {output!r:.80} is no plain file name; outputs lie in the output folder itself")
    stated = cells.get("mpp", "")
    try:
        mpp = float(stated) if stated else None
    except ValueError:
        raise ManifestError(f"mpp is {stated!r:.40}, not a number of µm per px") from None
    named = cells.get("model") or model
    own_model = str(folder / named) if cells.get("model") and (folder / named).is_file() else named
    own = {name: cell for name, cell in cells.items() if cell and name not in _OWN_COLUMNS}
    return Row(line, where, output, mpp, own_model, dataclasses.replace(options, **option_cells(own, folder, options)))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV that hold something, with their numbers; heads in lower case, with underscores."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            heads = [cell.strip().lower().replace("-", "_") for cell in next(reader, [])]
            if not set(heads) & set(_SLIDE_COLUMNS):
                raise ManifestError(f"{path} has no column path (separated by commas?); its columns are {heads}")
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
            yield from _at_fault(same, f"lines {_listed(row.line for row in same)} have the output {same[0].output}; "
                                 "name others in the column output")  # fmt: skip


def _at_fault(rows: Iterable[Row], message: str) -> Iterator[Problem]:
    return (Problem(row.line, row.name, message) for row in rows)


def _listed(numbers: Iterable[int]) -> str:
    every = [str(number) for number in numbers]
    return ", ".join(every[:6]) + (f" and {len(every) - 6} more" if len(every) > 6 else "")
