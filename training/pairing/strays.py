"""Images that lie in the folders of a data set and are not of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ..data.files import is_image
from .places import SPLIT_NAMES


def strays(folder: Path, own: Collection[Path], more: Iterable[str] = ()) -> Iterator[Path]:
    """Images of the folders HE, IHC, train, val, test that are none of ``own``, relative to the data set, by name.

    Hidden files, and what is kept of slides, are not looked at. ``more`` names further folders.
    """
    for top in sorted({"HE", "IHC", *SPLIT_NAMES.values(), *more}):
        for path in sorted((folder / top).rglob("*")):
            if path not in own and is_image(path.name) and path.is_file():
                yield path.relative_to(folder)
