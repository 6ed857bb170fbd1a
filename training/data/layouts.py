"""The layouts that paired data sets come in, and how they are told apart.

Where several would fit, the first one in this order is taken:

1. ``pairs.csv`` (see `table`)
2. ``HE/`` and ``IHC/`` with ``train/``, ``val/``, ``test/`` in each (BCI)
3. ``HE/`` and ``IHC/`` with the images straight in them
4. ``train/``, ``val/``, ``test/`` with ``HE/`` and ``IHC/`` in each (BCI)
5. ``trainA/`` and ``trainB/``, ``valA/`` and ``valB/``, ``testA/`` and ``testB/`` (MIST, CycleGAN)
6. ``train/``, ``val/``, ``test/`` with images that hold both side by side (pix2pix)
7. such images straight in the folder

In 2 to 5, A and B may stand for HE and IHC: A is the H&E, unless the order is BA. In 3 and 7 the folder's own name
counts if it is ``train``, ``val`` or ``test``, so that a part of a data set can be given. Where no folder says the
role, BCI's names do; a test image of BCI is never anything else. Upper and lower case are the same in names of folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from wsi2ihc.errors import DatasetError, OptionError

from .files import folders_in, images_by_stem, images_in, linked_files
from .pairs import ROLE_NAMES, Order, Pair, PairedData, Role
from .table import TABLE_NAME, read_table, with_statement

LAYOUTS = (
    "pairs.csv; HE/ and IHC/ (or A/ and B/), with train/, val/, test/ in them or not; train/, val/, test/ with HE/ and "
    "IHC/ (or A/ and B/) in each; trainA/ and trainB/, valA/ and valB/, testA/ and testB/; side-by-side images in "
    "train/, val/, test/ or straight in the folder"
)
"""What is understood, in one line."""

_HE_NAMES = ("he", "h&e", "h_e", "h-e")
_IHC_NAME = "ihc"
_LETTERS = ("a", "b")
_FOLDER_NAMES = frozenset({*_HE_NAMES, _IHC_NAME, *_LETTERS, *ROLE_NAMES})

_SPLIT_OF_ONE_STAIN = re.compile(
    rf"(?P<split>{'|'.join(ROLE_NAMES)})[_-]?(?P<kind>{'|'.join((*_HE_NAMES, _IHC_NAME, *_LETTERS))})"
)
"""A folder such as ``trainA``, in lower case."""

_STAIN_IN_NAME = re.compile(r"[ ._-](h[&_-]?e|ihc|[ab])$", re.IGNORECASE)
"""The end of a file's name that says its stain, as in ``P1_HE.png``."""

_MOST_LOOKED_INTO = 50
"""Folders in which a data set is looked for, to name it, where the folder given holds none."""

_BCI_NAME = re.compile(r"(?P<number>\d+)_(?P<split>train|val|test)_(?P<her2>0|[123]\+)")


def find_pairs(folder: Path, *, order: Order = "AB") -> PairedData:
    """Find out which layout a folder has, and list its pairs. No image is opened.

    Parameters
    ----------
    folder:
        the data set, or the ``pairs.csv`` in it
    order:
        of side-by-side images, and of A and B: AB has the H&E on the left, and in A

    Raises
    ------
    DatasetError
        If there is no such folder, no layout fits, a split is empty, a file has no partner or is its own, or a test
        image of BCI is meant for another role.
    OptionError
        If ``order`` is given where nothing lies side by side.
    """
    if folder.name == TABLE_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        if folder.exists():
            raise DatasetError(f"{folder} is a file; name the folder of the patches")
        raise DatasetError(f"there is no folder {folder}")
    try:
        data = _look(folder, order)
    except OSError as error:
        where = str(error.filename or folder)
        raise DatasetError(f"{where:.300} cannot be read ({error.strerror or error!s:.80})") from error
    if order != "AB" and not any(pair.half for pair in data.pairs) and not data.is_lettered:
        raise OptionError(f"an order {order} is for side-by-side images; {folder} has {data.layout}")
    if same := linked_files((pair.he, pair.ihc) for pair in data.pairs if not pair.half):
        raise DatasetError(f"{same[0]} and {same[1]} are one file, but given as H&E and as IHC; name the IHC's folder")
    return with_statement(_with_bci_names(data))


def _look(folder: Path, order: Order) -> PairedData:
    """Try the layouts in their order.

    Raises
    ------
    DatasetError
        If none fits, or the one that does has a fault.
    """
    if data := _fitting(folder, order):
        return data
    inside = _found_inside(folder, order)
    hint = f", but in {inside}: name that folder" if inside else ""
    raise DatasetError(f"no paired patches in {folder}{hint}; understood are {LAYOUTS}")


def _fitting(folder: Path, order: Order) -> PairedData | None:
    """The data set by the first layout that fits; None if none does."""
    table = folder / TABLE_NAME
    if table.is_file():
        if order != "AB":
            raise OptionError(f"an order {order} is for side-by-side images in folders; {table} says it by itself")
        pairs, mpp = read_table(table)
        return PairedData(folder, f"a table {TABLE_NAME}", pairs, mpp=mpp)
    folders = folders_in(folder, _FOLDER_NAMES)
    splits = _splits(folders)
    if kinds := _he_and_ihc(folder, folders, order):
        return _kinds_first(folder, kinds)
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
    """A data set in a folder of the folder, or in one of those."""
    level = [folder]
    for _ in range(2):
        level = [inside for one in level for inside in _visible_folders(one)][:_MOST_LOOKED_INTO]
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
class _Kinds:
    """The folders of both stains; ``said`` is how letters were read, as an end of a layout's line."""

    he: Path
    ihc: Path
    said: str = ""


def _kinds_first(folder: Path, kinds: _Kinds) -> PairedData:
    """HE/ and IHC/, with splits in them or not."""
    he, ihc = kinds.he, kinds.ihc
    he_splits, ihc_splits = _splits(folders_in(he, _FOLDER_NAMES)), _splits(folders_in(ihc, _FOLDER_NAMES))
    stated = " and ".join(f"{name}/" for name in sorted((he.name, ihc.name), key=str.lower)) + kinds.said
    if not he_splits and not ihc_splits:
        pairs = _two_folders(he, ihc, _role_of(folder))
        return PairedData(folder, stated, pairs, is_lettered=bool(kinds.said))
    partners = {split.name.lower(): split for split in ihc_splits}
    names = {split.name.lower() for split in he_splits}
    for splits, others, other in ((he_splits, partners.keys(), ihc), (ihc_splits, names, he)):
        if alone := next((split for split in splits if split.name.lower() not in others), None):
            raise DatasetError(f"{alone} has no partner in {other}")
    pairs = tuple(
        pair for split in he_splits for pair in _two_folders(split, partners[split.name.lower()], _role_of(split))
    )
    return PairedData(folder, f"{stated}, each with {_names(he_splits)}", pairs, is_lettered=bool(kinds.said))


def _splits_first(folder: Path, splits: list[Path], order: Order) -> PairedData:
    """train/, val/, test/ with HE/ and IHC/ in each."""
    found = [(split, _he_and_ihc(split, folders_in(split, _FOLDER_NAMES), order)) for split in splits]
    if lacking := next((split for split, kinds in found if kinds is None), None):
        raise DatasetError(f"{lacking} lacks the HE/ and IHC/ that its sister folders have")
    pairs = tuple(pair for split, one in found if one for pair in _two_folders(one.he, one.ihc, _role_of(split)))
    said = {one.said for _, one in found if one}
    names = "A/ and B/" if said == {_letters(order)} else "HE/ and IHC/"
    return PairedData(folder, f"{_names(splits)}, each with {names}{min(said)}", pairs, is_lettered=any(said))


def _splits_of_stains(folder: Path, order: Order) -> PairedData | None:
    """trainA/ and trainB/, and so on; None if there is no such folder.

    Raises
    ------
    DatasetError
        If one has no partner.
    """
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
    said = set()
    for split in sorted(splits, key=list(ROLE_NAMES).index):
        both = _he_and_ihc(folder, splits[split], order)
        if both is None:
            raise DatasetError(
                f"{folder} has {min(splits[split].values()).name}/ without its partner of the other stain"
            )
        pairs += _two_folders(both.he, both.ihc, ROLE_NAMES[split])
        said.add(both.said)
    names = _names(folder / name for name in sorted(matches))
    return PairedData(folder, f"{names}{min(said)}", tuple(pairs), is_lettered=any(said))


def _he_and_ihc(folder: Path, folders: Mapping[str, Path], order: Order) -> _Kinds | None:
    he = next((folders[name] for name in _HE_NAMES if name in folders), None)
    ihc = folders.get(_IHC_NAME)
    first, second = (folders.get(letter) for letter in _LETTERS)
    if first and second:
        if one := he or ihc:
            raise DatasetError(f"{folder} has {first.name}/ and {second.name}/, and {one.name}/; keep one pair of them")
        return _Kinds(*((first, second) if order == "AB" else (second, first)), said=_letters(order))
    if he and ihc:
        return _Kinds(he, ihc)
    if one := he or ihc:
        raise DatasetError(f"{folder} has {one.name}/ but no {'IHC/' if he else 'HE/'}")
    return None


def _letters(order: Order) -> str:
    return f" (the H&E in {order[0]}; --order {order[::-1]} takes it from {order[1]})"


def _splits(folders: Mapping[str, Path]) -> list[Path]:
    return [folders[name] for name in ROLE_NAMES if name in folders]


def _role_of(folder: Path) -> Role | None:
    """The role that a folder's name says; that of a link, but the real one of "."."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    return ROLE_NAMES.get(name.lower())


def _two_folders(he: Path, ihc: Path, role: Role | None) -> tuple[Pair, ...]:
    """Pair the files of two folders by their stems; the suffixes may differ (JPEG of one stain, PNG of the other)."""
    he_files, ihc_files = images_by_stem(he), images_by_stem(ihc)
    if not he_files and not ihc_files:
        raise DatasetError(f"there is no image in {he} and {ihc}; fill or remove them{_folders_instead(he)}")
    for simpler in (_without_stains, _in_lower_case):
        if he_files.keys() != ihc_files.keys():
            he_files, ihc_files = simpler(he_files), simpler(ihc_files)
    for files, others, other in ((he_files, ihc_files, ihc), (ihc_files, he_files, he)):
        if alone := sorted(files.keys() - others.keys()):
            more = f" (nor have {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DatasetError(f"{files[alone[0]]} has no partner of that name in {other}{more}")
    return tuple(Pair(file.stem, file, ihc_files[stem], role=role) for stem, file in he_files.items())


def _without_stains(files: dict[str, Path]) -> dict[str, Path]:
    """The files by their stems less the stain, if every name ends in one."""
    stems = {_STAIN_IN_NAME.sub("", stem): file for stem, file in files.items()}
    every = all(_STAIN_IN_NAME.search(stem) for stem in files)
    return stems if every and len(stems) == len(files) else files


def _in_lower_case(files: dict[str, Path]) -> dict[str, Path]:
    stems = {stem.casefold(): file for stem, file in files.items()}
    return stems if len(stems) == len(files) else files


def _folders_instead(folder: Path) -> str:
    """Whether folders lie where images should, for the end of a message."""
    if not (inside := _visible_folders(folder)):
        return ""
    return f" (there are folders instead, as {inside[0].name}/: put the images straight into {folder})"


def _side_by_side(folder: Path, order: Order) -> Iterable[Pair]:
    if not (files := images_by_stem(folder)):
        raise DatasetError(f"there is no image in {folder}; fill or remove it")
    half: Literal["left", "right"] = "left" if order == "AB" else "right"
    role = _role_of(folder)
    return [Pair(stem, file, file, half, role) for stem, file in files.items()]


def level_in_name(name: str) -> str | None:
    """The HER2 level that a name of BCI's states, as "2+" in ``00000_test_2+``; None for any other name."""
    found = _BCI_NAME.fullmatch(name)
    return found["her2"] if found else None


def _with_bci_names(data: PairedData) -> PairedData:
    """Take number, role and HER2 level from BCI's names (00000_train_1+) where nothing else gives them.

    BCI itself has train and test; data sets that are cut in its manner have val as well.

    Every name counts by itself: a file of another name among them must not make training images of BCI's test images.
    """
    names = [_BCI_NAME.fullmatch(pair.name) for pair in data.pairs]
    if not any(names):
        return data
    pairs = tuple(_as_named(pair, name) for pair, name in zip(data.pairs, names, strict=True))
    _check_bci_tests(pairs, names)
    which = "" if all(names) else f"{sum(map(bool, names))} of {len(names)} "
    return dataclasses.replace(data, pairs=pairs, layout=f"{data.layout}; {which}names as in BCI")


def _check_bci_tests(pairs: Iterable[Pair], names: Iterable[re.Match[str] | None]) -> None:
    """Folders and tables may keep training images for tests, but not the other way round."""
    named = zip(pairs, names, strict=True)
    misplaced = [pair for pair, name in named if name and name["split"] == "test" and pair.role != "test"]
    if misplaced:
        more = f", and so are {len(misplaced) - 1} more" if len(misplaced) > 1 else ""
        raise DatasetError(
            f"{misplaced[0].he} is a test image of BCI by its name, but meant for {misplaced[0].role}{more}; test is "
            "never trained on, so give such files to test, or remove them"
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
