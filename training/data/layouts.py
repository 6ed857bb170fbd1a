"""Layouts of paired datasets: BCI, pix2pix, ``pairs.csv``.

`find_pairs` tries the layouts in a fixed order: a table (`read_table`), folders of stains with splits in them, splits
with folders of stains in them, folders such as ``trainA``, and side-by-side images. It then adds the metadata of
``dataset.json`` and of BCI's file names. No image is opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.files import folders_in, images_by_stem, images_in, linked_files, read_json
from wsi2ihc.slide.metadata import MPP_RANGE
from wsi2ihc.tables import CsvTable, read_csv
from wsi2ihc.text import original

from .dataset import ROLE_NAMES, Order, Pair, PairedData, Role

TABLE_NAME = "pairs.csv"
METADATA_NAME = "dataset.json"

LEVELS = ("0", "1+", "2+", "3+")
"""HER2 levels in ascending order."""

LEVEL_NAMES = {level: level for level in LEVELS} | {level.rstrip("+"): level for level in LEVELS}
_MPP_TOLERANCE = 0.01
"""Relative difference of µm per px within a dataset: too small to see, but more than rounding causes."""

LAYOUTS = (
    "pairs.csv; HE/ and IHC/ (or A/ and B/), with train/, val/, test/ in them or not; train/, val/, test/ with HE/ and "
    "IHC/ (or A/ and B/) in each; trainA/ and trainB/, valA/ and valB/, testA/ and testB/; side-by-side images in "
    "train/, val/, test/ or directly in the folder"
)
"""Supported layouts, in one line."""

_HE_NAMES, _IHC_NAME, _LETTERS = ("he", "h&e", "h_e", "h-e"), "ihc", ("a", "b")
_FOLDER_NAMES = frozenset({*_HE_NAMES, _IHC_NAME, *_LETTERS, *ROLE_NAMES})

_SPLIT_OF_ONE_STAIN = re.compile(
    rf"(?P<split>{'|'.join(ROLE_NAMES)})[_-]?(?P<kind>{'|'.join((*_HE_NAMES, _IHC_NAME, *_LETTERS))})"
)
"""Folder such as ``trainA``, in lower case."""

_STAIN_IN_NAME = re.compile(r"[ ._-](h[&_-]?e|ihc|[ab])$", re.IGNORECASE)
"""End of a file name that states the stain, as in ``P1_HE.png``."""

_MAX_SUBFOLDERS = 50
"""Maximum number of subfolders in which a dataset is looked for if the given folder holds none."""

_BCI_NAME = re.compile(r"(?P<number>\d+)_(?P<split>train|val|test)_(?P<her2>0|[123]\+)")


def read_table(path: Path) -> tuple[tuple[Pair, ...], float | None]:
    """Read the pairs of a ``pairs.csv`` in its order, and their µm per px (None if not stated).

    Columns: ``he`` and ``ihc``, paths relative to the table; and optionally ``number``, ``split`` (train, val, valid,
    validation, test), ``group``, ``patient``, ``slide``, ``her2`` (0, 1+, 2+, 3+, with or without the plus), ``mpp``,
    and ``half``: the position of the H&E ("left", "right") in an image that holds both; ``he`` and ``ihc`` are then the
    same file. Other columns are ignored.

    Raises
    ------
    DatasetError
        If a column, a value or a file is missing, or a value is invalid.
    """
    rows = read_rows(path).rows
    if lacking := {"he", "ihc"} - rows[0].keys():
        raise DatasetError(f"{path} has no column {', '.join(sorted(lacking))} (it needs he and ihc)")
    pairs = tuple(_pair(path, number, row) for number, row in enumerate(rows, 2))
    _check_files(path, pairs)
    return pairs, _common_mpp(path, [row.get("mpp", "") for row in rows])


def read_rows(path: Path) -> CsvTable:
    """Read the rows of a ``pairs.csv`` with names as they were before they were escaped for spreadsheets."""
    table = read_csv(path)
    return replace(table, rows=tuple({name: original(cell) for name, cell in row.items()} for row in table.rows))


def _pair(path: Path, row_number: int, row: Mapping[str, str]) -> Pair:
    where = f"{path}, row {row_number}"
    for column in ("he", "ihc"):
        if not row[column]:
            raise DatasetError(f"{where}: no file in the column {column}")
    number = row.get("number", "")
    if number and not (number.isascii() and number.isdigit()):
        raise DatasetError(f"{where}: the number is {number!r:.40}")
    he, ihc = path.parent / row["he"], path.parent / row["ihc"]
    return Pair(
        name=he.stem,
        he=he,
        ihc=ihc,
        half=_half(where, row),
        role=role_in_table(where, row.get("split", "")),
        group=row.get("group") or None,
        patient=row.get("patient") or None,
        slide=row.get("slide") or None,
        her2=_level(where, row.get("her2", "")),
        number=int(number) if number else None,
    )


def _level(where: str, text: str) -> str | None:
    if not text:
        return None
    level = LEVEL_NAMES.get(text.replace(" ", ""))
    if level is None:
        raise DatasetError(
            f"{where}: the HER2 level is {text!r:.40}, not one of {', '.join(LEVELS)} (leave it empty if unknown)"
        )
    return level


def _half(where: str, row: Mapping[str, str]) -> Literal["", "left", "right"]:
    text = row.get("half", "").lower()
    if text not in ("", "left", "right"):
        raise DatasetError(f"{where}: the half is {text!r:.40}, not left or right (the side of the H&E)")
    if text and row["he"] != row["ihc"]:
        raise DatasetError(f"{where}: a half requires one image of both stains, but he and ihc are two files")
    return text  # type: ignore[return-value]


def role_in_table(where: str, text: str) -> Role | None:
    """Return the role in a field; None if it is empty."""
    if not text:
        return None
    if text.lower() not in ROLE_NAMES:
        raise DatasetError(f"{where}: the split is {text!r:.40}, not one of {', '.join(ROLE_NAMES)}")
    return ROLE_NAMES[text.lower()]


def _check_files(path: Path, pairs: tuple[Pair, ...]) -> None:
    missing = [file for pair in pairs for file in (pair.he, pair.ihc) if not file.is_file()]
    if missing:
        raise DatasetError(f"{path} names {missing[0]}, which does not exist{and_more(len(missing))}")
    seen: dict[str, tuple[int, str]] = {}
    for number, pair in enumerate(pairs, 2):
        files = (("side-by-side image", pair.he),) if pair.half else (("H&E", pair.he), ("IHC", pair.ihc))
        for stain, file in files:
            # the real path: different paths (a/../b, links) may lead to the same file
            first, other = seen.setdefault(os.path.realpath(file), (number, stain))
            if first != number and other == stain:
                raise DatasetError(f"{path}: rows {first} and {number} have the same {stain} {file.name}")
            if other != stain:
                rows = f"row {number}" if first == number else f"rows {first} and {number}"
                raise DatasetError(f"{path}, {rows}: {file.name} is given as {other} and as {stain}")


def _common_mpp(path: Path, cells: list[str]) -> float | None:
    values = []
    for number, cell in enumerate(cells, 2):
        if cell:
            values.append(_mpp(f"{path}, row {number}", cell))
    if not values:
        return None
    if max(values) > min(values) * (1 + _MPP_TOLERANCE):
        raise DatasetError(f"{path}: patches of {min(values):g} and of {max(values):g} µm/px; resample them to one mpp")
    return sorted(values)[len(values) // 2]


def _mpp(where: str, value: object) -> float:
    try:
        mpp = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        mpp = math.nan
    low, high = MPP_RANGE
    if not low <= mpp <= high:  # NaN is not, either
        raise DatasetError(f"{where}: mpp is {value!r:.40}, not a number of µm/px between {low:g} and {high:g}")
    return mpp


def add_metadata(data: PairedData) -> PairedData:
    """Return the dataset with the metadata of the ``dataset.json`` in its folder: mpp, stain, license and name.

    Raises
    ------
    DatasetError
        If that file is not a JSON object, has invalid values, or another mpp than the table.
    """
    path = data.folder / METADATA_NAME
    try:
        statement = read_json(path)
    except FileNotFoundError:
        return data
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON ({getattr(error, 'strerror', None) or error!s:.80})"
        ) from error
    if not isinstance(statement, dict):
        raise DatasetError(f"{path} is not a JSON object")
    for key in ("stain", "license", "name"):
        if not isinstance(statement.get(key, ""), str | None):
            raise DatasetError(f"{path}: {key} is not text")
    mpp = data.mpp
    if statement.get("mpp") is not None:
        mpp = _mpp(str(path), statement["mpp"])
        if data.mpp and not (1 / (1 + _MPP_TOLERANCE) <= mpp / data.mpp <= 1 + _MPP_TOLERANCE):
            raise DatasetError(f"{path} states {mpp:g} µm/px, but {TABLE_NAME} {data.mpp:g}")
    options = statement.get("options")
    icc = options.get("icc") if isinstance(options, dict) else None
    stain, license, name = (statement.get(key) or None for key in ("stain", "license", "name"))
    return dataclasses.replace(
        data, mpp=mpp, stain=stain, license=license, name=name, icc=icc if icc in ("keep", "srgb") else None
    )


def and_more(count: int) -> str:
    """Return the end of a message that names the first of ``count``."""
    return f" (nor are {count - 1} more)" if count > 1 else ""


def find_pairs(folder: Path, *, order: Order = "AB") -> PairedData:
    """Detect the layout of a folder and list its pairs. No image is opened.

    Parameters
    ----------
    folder
        The dataset, or the ``pairs.csv`` in it.
    order
        Of side-by-side images, and of A and B: with AB the H&E is on the left, and in A.

    Raises
    ------
    DatasetError
        If the folder does not exist, no layout fits, a split is empty, a file has no partner or is its own, or a test
        image of BCI has another role.
    OptionError
        If ``order`` is given but nothing lies side by side.
    """
    if folder.name == TABLE_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        if folder.exists():
            raise DatasetError(f"{folder} is a file; give the folder of the patches")
        raise DatasetError(f"there is no folder {folder}")
    try:
        data = _fitting(folder, order)
        inside = None if data else _found_inside(folder, order)
    except OSError as error:
        where = str(error.filename or folder)
        raise DatasetError(f"{where:.300} cannot be read ({error.strerror or error!s:.80})") from error
    if data is None:
        hint = f", but in {inside}: give that folder" if inside else ""
        raise DatasetError(f"no paired patches in {folder}{hint}; supported layouts are {LAYOUTS}")
    if order != "AB" and not any(pair.half for pair in data.pairs) and not data.is_lettered:
        raise OptionError(f"an order {order} is for side-by-side images; {folder} has {data.layout}")
    if same := linked_files((pair.he, pair.ihc) for pair in data.pairs if not pair.half):
        raise DatasetError(
            f"{same[0]} and {same[1]} are one file, but given as H&E and as IHC; give the folder of the IHC"
        )
    return add_metadata(_with_bci_names(data))


def _fitting(folder: Path, order: Order) -> PairedData | None:
    """Return the dataset in the first layout that fits; None if none does."""
    table = folder / TABLE_NAME
    if table.is_file():
        if order != "AB":
            raise OptionError(f"an order {order} is for side-by-side images in folders; {table} states the sides")
        pairs, mpp = read_table(table)
        return PairedData(folder, f"a table {TABLE_NAME}", pairs, mpp=mpp)
    folders = folders_in(folder, _FOLDER_NAMES)
    splits = _splits(folders)
    if kinds := _he_and_ihc(folder, folders, order):
        return _stains_first(folder, kinds)
    if any(_he_and_ihc(split, folders_in(split, _FOLDER_NAMES), order) for split in splits):
        return _splits_first(folder, splits, order)
    if found := _splits_of_stains(folder, order):
        return found
    if splits:
        pairs = tuple(pair for split in splits for pair in _side_by_side(split, order))
        return PairedData(folder, f"side by side in {_names(splits)} ({_halves(order)})", pairs)
    if images_in(folder):
        return PairedData(folder, f"side by side in the folder ({_halves(order)})", tuple(_side_by_side(folder, order)))
    return None


def _found_inside(folder: Path, order: Order) -> Path | None:
    """Return a folder up to two levels deeper that is a dataset."""
    level = [folder]
    for _ in range(2):
        level = [inside for one in level for inside in _visible_folders(one)][:_MAX_SUBFOLDERS]
        for one in level:
            with contextlib.suppress(DatasetError, OptionError, OSError):
                if _fitting(one, order):
                    return one
    return None


def _visible_folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))
    return [folder / name for name in names]


@dataclasses.dataclass(frozen=True, slots=True)
class _StainFolders:
    """Folders of both stains, and how the letters A and B were interpreted, for the line that describes the layout."""

    he: Path
    ihc: Path
    note: str = ""


def _stains_first(folder: Path, kinds: _StainFolders) -> PairedData:
    """Read HE/ and IHC/, with or without splits in them."""
    he, ihc = kinds.he, kinds.ihc
    he_splits, ihc_splits = _splits(folders_in(he, _FOLDER_NAMES)), _splits(folders_in(ihc, _FOLDER_NAMES))
    stated = " and ".join(f"{name}/" for name in sorted((he.name, ihc.name), key=str.lower)) + kinds.note
    if not he_splits and not ihc_splits:
        pairs = _two_folders(he, ihc, _role_of(folder))
        return PairedData(folder, stated, pairs, is_lettered=bool(kinds.note))
    partners = {split.name.lower(): split for split in ihc_splits}
    names = {split.name.lower() for split in he_splits}
    for splits, others, other in ((he_splits, partners.keys(), ihc), (ihc_splits, names, he)):
        if unmatched := next((split for split in splits if split.name.lower() not in others), None):
            raise DatasetError(f"{unmatched} has no partner in {other}")
    pairs = tuple(
        pair for split in he_splits for pair in _two_folders(split, partners[split.name.lower()], _role_of(split))
    )
    return PairedData(folder, f"{stated}, each with {_names(he_splits)}", pairs, is_lettered=bool(kinds.note))


def _splits_first(folder: Path, splits: list[Path], order: Order) -> PairedData:
    """Read train/, val/, test/ with HE/ and IHC/ in each."""
    found = [(split, _he_and_ihc(split, folders_in(split, _FOLDER_NAMES), order)) for split in splits]
    if lacking := next((split for split, kinds in found if kinds is None), None):
        raise DatasetError(f"{lacking} lacks the HE/ and IHC/ that the other splits have")
    pairs = tuple(pair for split, one in found if one for pair in _two_folders(one.he, one.ihc, _role_of(split)))
    notes = {one.note for _, one in found if one}
    names = "A/ and B/" if notes == {_letters(order)} else "HE/ and IHC/"
    return PairedData(folder, f"{_names(splits)}, each with {names}{min(notes)}", pairs, is_lettered=any(notes))


def _splits_of_stains(folder: Path, order: Order) -> PairedData | None:
    """Read trainA/, trainB/ and so on; None if there is no such folder."""
    with os.scandir(folder) as entries:
        matches = {
            entry.name: found
            for entry in entries
            if (found := _SPLIT_OF_ONE_STAIN.fullmatch(entry.name.lower())) and entry.is_dir()
        }
    splits: dict[str, dict[str, Path]] = {}
    for name, found in sorted(matches.items()):
        kinds = splits.setdefault(found["split"], {})
        if (other := kinds.setdefault(found["kind"], folder / name)).name != name:
            raise DatasetError(f"{folder} has both {other.name}/ and {name}/; keep one of them")
    if not splits:
        return None
    pairs: list[Pair] = []
    notes = set()
    for split in sorted(splits, key=list(ROLE_NAMES).index):
        both = _he_and_ihc(folder, splits[split], order)
        if both is None:
            raise DatasetError(
                f"{folder} has {min(splits[split].values()).name}/ without its partner of the other stain"
            )
        pairs += _two_folders(both.he, both.ihc, ROLE_NAMES[split])
        notes.add(both.note)
    names = _names(folder / name for name in sorted(matches))
    return PairedData(folder, f"{names}{min(notes)}", tuple(pairs), is_lettered=any(notes))


def _he_and_ihc(folder: Path, folders: Mapping[str, Path], order: Order) -> _StainFolders | None:
    he = next((folders[name] for name in _HE_NAMES if name in folders), None)
    ihc = folders.get(_IHC_NAME)
    first, second = (folders.get(letter) for letter in _LETTERS)
    if first and second:
        if one := he or ihc:
            raise DatasetError(f"{folder} has {first.name}/ and {second.name}/, and {one.name}/; keep one pair of them")
        return _StainFolders(*((first, second) if order == "AB" else (second, first)), note=_letters(order))
    if he and ihc:
        return _StainFolders(he, ihc)
    if one := he or ihc:
        raise DatasetError(f"{folder} has {one.name}/ but no {'IHC/' if he else 'HE/'}")
    return None


def _letters(order: Order) -> str:
    return f" (the H&E in {order[0]}; --order {order[::-1]} takes it from {order[1]})"


def _splits(folders: Mapping[str, Path]) -> list[Path]:
    return [folders[name] for name in ROLE_NAMES if name in folders]


def _role_of(folder: Path) -> Role | None:
    """Return the role stated by the name of a folder: of the link for a link, but the real name for "."."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    return ROLE_NAMES.get(name.lower())


def _two_folders(he: Path, ihc: Path, role: Role | None) -> tuple[Pair, ...]:
    """Pair the files of two folders by their stems; the suffixes may differ (JPEG for one stain, PNG for the other)."""
    he_files, ihc_files = images_by_stem(he), images_by_stem(ihc)
    if not he_files and not ihc_files:
        raise DatasetError(f"there is no image in {he} and {ihc}; fill or remove them{_folders_instead(he)}")
    for simplify in (_without_stains, _in_lower_case):
        if he_files.keys() != ihc_files.keys():
            he_files, ihc_files = simplify(he_files), simplify(ihc_files)
    for files, others, other in ((he_files, ihc_files, ihc), (ihc_files, he_files, he)):
        if unmatched := sorted(files.keys() - others.keys()):
            more = f" (nor have {len(unmatched) - 1} more)" if len(unmatched) > 1 else ""
            raise DatasetError(f"{files[unmatched[0]]} has no partner of that name in {other}{more}")
    return tuple(Pair(file.stem, file, ihc_files[stem], role=role) for stem, file in he_files.items())


def _without_stains(files: dict[str, Path]) -> dict[str, Path]:
    """Return the files by their stems without the stain, if all names end in one."""
    stems = {_STAIN_IN_NAME.sub("", stem): file for stem, file in files.items()}
    every = all(_STAIN_IN_NAME.search(stem) for stem in files)
    return stems if every and len(stems) == len(files) else files


def _in_lower_case(files: dict[str, Path]) -> dict[str, Path]:
    stems = {stem.casefold(): file for stem, file in files.items()}
    return stems if len(stems) == len(files) else files


def _folders_instead(folder: Path) -> str:
    """Return the end of a message if there are folders where images are expected."""
    if not (inside := _visible_folders(folder)):
        return ""
    return f" (there are folders instead, as {inside[0].name}/: move the images into {folder})"


def _side_by_side(folder: Path, order: Order) -> Iterable[Pair]:
    if not (files := images_by_stem(folder)):
        raise DatasetError(f"there is no image in {folder}; fill or remove it")
    half: Literal["left", "right"] = "left" if order == "AB" else "right"
    role = _role_of(folder)
    return [Pair(stem, file, file, half, role) for stem, file in files.items()]


def level_in_name(name: str) -> str | None:
    """Return the HER2 level in a file name of BCI, as "2+" in ``00000_test_2+``; None for any other name."""
    found = _BCI_NAME.fullmatch(name)
    return found["her2"] if found else None


def _with_bci_names(data: PairedData) -> PairedData:
    """Take number, role and HER2 level from BCI's file names (00000_train_1+) where nothing else states them.

    BCI itself has train and test; datasets in its format have val as well. Each name is considered by itself: a file
    with another name must not turn BCI's test images into training images.
    """
    names = [_BCI_NAME.fullmatch(pair.name) for pair in data.pairs]
    if not any(names):
        return data
    pairs = tuple(_as_named(pair, name) for pair, name in zip(data.pairs, names, strict=True))
    _check_bci_tests(pairs, names)
    which = "" if all(names) else f"{sum(map(bool, names))} of {len(names)} "
    return dataclasses.replace(data, pairs=pairs, layout=f"{data.layout}; {which}names as in BCI")


def _check_bci_tests(pairs: Iterable[Pair], names: Iterable[re.Match[str] | None]) -> None:
    """Check that no test image is used for training. Folders and tables may use training images for tests."""
    named = zip(pairs, names, strict=True)
    misplaced = [pair for pair, name in named if name and name["split"] == "test" and pair.role != "test"]
    if misplaced:
        more = f", and so are {len(misplaced) - 1} more" if len(misplaced) > 1 else ""
        raise DatasetError(
            f"{misplaced[0].he} is a test image of BCI by its name, but is used for {misplaced[0].role}{more}; test "
            "images are never used for training, so move such files to test, or remove them"
        )


def _as_named(pair: Pair, name: re.Match[str] | None) -> Pair:
    if name is None:
        return pair
    return dataclasses.replace(
        pair,
        number=int(name["number"]) if pair.number is None else pair.number,
        role=pair.role or ROLE_NAMES[name["split"]],
        her2=pair.her2 or name["her2"],
    )


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(f"{folder.name}/" for folder in folders)


def _halves(order: Order) -> str:
    return f"H&E {'left' if order == 'AB' else 'right'}"
