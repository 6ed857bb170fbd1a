"""Slides that are in a manifest twice, under other names: copies of one file.

The same path is found when the manifest is read. A copy leaks all the same: under two patients the same tissue may be
trained on and tested on.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from wsi2ihc.notation import listed
from wsi2ihc.slide.facts import hash_of_file

from .manifest import RowProblem, SlidePair

_Member: TypeAlias = tuple[SlidePair, str, Path]
"""A row, which stain, and its file."""


def same_slides(pairs: Iterable[SlidePair]) -> Iterator[RowProblem]:
    """A problem of every row that has a slide which another row, or the same one, has as well.

    Only files of one size are looked at, at their beginnings and ends; those that agree there are read as a whole. All
    rows concerned are at fault: nobody can tell which one is right.
    """
    sizes: dict[int, list[_Member]] = defaultdict(list)
    for pair in pairs:
        for stain, path in (("H&E", pair.he), ("IHC", pair.ihc)):
            if (size := _size_of(path)) is not None:
                sizes[size].append((pair, stain, path))
    for alike in sizes.values():
        for likely in _grouped(alike, hash_of_file):
            for same in _grouped(likely, _hash_of_all):
                yield from _problems(same)


def _grouped(members: Sequence[_Member], hash_of: Callable[[Path], str]) -> list[list[_Member]]:
    """Those of one hash, where there are several. What cannot be read is left out: whoever opens it says so."""
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
        yield RowProblem(pair.row, pair.slide, f"these are one and the same file: {listed(files)}; keep one of them")


def _hash_of_all(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
