"""From the patches of all slides to a data set: numbers, folders, tables.

All of it can be killed at any moment and be done again. The order of the steps sees to that:

1. If the patches have other places than wanted, ``dataset.json`` goes, all patches go back to their slides' folders,
   and only then ``places.json`` says the new places. So a file at a place is always the one that ``places.json`` means.
2. The tables are written. From here on ``pairs.csv`` names files that are not there yet, and training refuses it.
3. Every patch is moved to its place, by a rename.
4. ``dataset.json`` is written: the data set is complete.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OutputError
from wsi2ihc.files import json_bytes

from ..data.pairs import Role
from ..data.table import STATEMENT_NAME, TABLE_NAME
from ..files import cannot_write, make_folder, write_whole
from .manifest import SlidePair
from .places import PLACES_NAME, SPLIT_NAMES, Place, as_json, moves, read_places, staging_folder
from .records import PatchRecord, SlideRecord
from .store import PairsStore
from .table import REJECTED_NAME, Statement, dataset_facts, pairs_csv, rejected_csv

_DIGITS = 5
"""Of a patch's number in its name, at least; BCI has as many."""


def place_patches(
    store: PairsStore, slides: Sequence[tuple[SlidePair, SlideRecord]], roles: Mapping[str, Role], statement: Statement
) -> dict[str, Any]:
    """Make the data set of all slides that are complete.

    Patches are numbered from 0, slide by slide in the order given, and by rows and columns within a slide. Their names
    are those of BCI: number, split, and HER2 level where that is known.

    Parameters
    ----------
    store
        Where they are.
    slides
        In the manifest's order, with their records. What the folder holds of others stays in the folders of those.
    roles
        Of every slide, by its id.
    statement
        For ``dataset.json``.

    Returns
    -------
    dict
        What ``dataset.json`` says.

    Raises
    ------
    OutputError
        If the file system refuses, or a patch is gone. To do it again goes on from there.
    """
    kept = [(pair, record, patch) for pair, record in slides for patch in record.kept]
    places = _places(kept, roles)
    placed = [(place, *one) for place, one in zip(places, kept, strict=True)]
    splits = {slide: SPLIT_NAMES[role] for slide, role in roles.items()}
    journal = as_json(places, store.side_by_side)
    tables = {
        TABLE_NAME: pairs_csv(placed, statement.mpp, store.side_by_side),
        REJECTED_NAME: rejected_csv(slides, statement.mpp),
    }
    facts = dataset_facts(slides, splits, statement)
    final = json_bytes(facts)
    files = {PLACES_NAME: journal, **tables, STATEMENT_NAME: final}
    try:
        if any(_content(store.folder / name) != content for name, content in files.items()):
            (store.folder / STATEMENT_NAME).unlink(missing_ok=True)
        if _content(store.folder / PLACES_NAME) != journal:
            _gather(store.folder)
            write_whole(store.folder / PLACES_NAME, journal)
        store.placed = moves(store.folder, places, store.side_by_side)
        for name, content in tables.items():
            _write_changed(store.folder / name, content)
        _distribute(store.placed)
        _remove_empty(store.folder, [pair.slide for pair, _ in slides])
        _write_changed(store.folder / STATEMENT_NAME, final)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(Path(error.filename or store.folder), error) from error
    return facts


def _places(kept: Sequence[tuple[SlidePair, SlideRecord, PatchRecord]], roles: Mapping[str, Role]) -> list[Place]:
    digits = max(_DIGITS, len(str(len(kept) - 1)))
    places = []
    for number, (pair, _, patch) in enumerate(kept):
        split = SPLIT_NAMES[roles[pair.slide]]
        name = "_".join(filter(None, (f"{number:0{digits}}", split, pair.her2)))
        places.append(Place(pair.slide, patch.x_px, patch.y_px, split, name))
    return places


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write_changed(path: Path, content: bytes) -> None:
    if _content(path) != content:
        write_whole(path, content)


def _gather(folder: Path) -> None:
    """Take all patches back from the places that ``places.json`` gives them."""
    for staged, place in read_places(folder).items():
        if place.exists():
            make_folder(staged.parent)
            place.replace(staged)


def _distribute(wanted: Mapping[Path, Path]) -> None:
    """Move all patches to their places; those that are there stay. What is not of the data set is not replaced."""
    for staged, place in wanted.items():
        if staged.exists() and place.exists() and not filecmp.cmp(staged, place, shallow=False):
            raise OutputError(f"{place} is in the way, and not of this data set; move it elsewhere, and run again")
    for folder in sorted({place.parent for place in wanted.values()}):
        make_folder(folder)
    for staged, place in wanted.items():
        try:
            staged.replace(place)
        except FileNotFoundError as error:
            if not place.exists():
                raise OutputError(
                    f"the patch {staged} is gone, and is not at {place} either; run again to have its slide cut anew"
                ) from error


def _remove_empty(folder: Path, slides: Iterable[str]) -> None:
    """Folders that have lost their last patch."""
    emptied = [staging_folder(folder, slide) for slide in slides]
    for split in SPLIT_NAMES.values():
        emptied += [folder / "HE" / split, folder / "IHC" / split, folder / split]
    for path in (*emptied, folder / "HE", folder / "IHC"):
        with contextlib.suppress(OSError):
            os.rmdir(path)  # noqa: PTH106 (refuses what is not empty, and that is meant)
