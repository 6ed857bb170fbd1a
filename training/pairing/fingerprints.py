"""What a slide's patches were made of: by what is told whether they have to be cut anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from wsi2ihc.errors import SlideNotFoundError
from wsi2ihc.files import read_regular

from .manifest import SlidePair

LARGEST_TRANSFORM_BYTES = 64 << 20
"""Of the JSON file of a saved transform, which has some kB."""

_T = TypeVar("_T")


def fingerprint_of(pair: SlidePair, reading: Mapping[str, str] | None = None) -> str:
    """Of what a slide's patches are made of. If it changes, they are cut anew.

    Slides count by name, size and time of change: hashing them would take minutes each. Patient, level and split do
    not enter; they are looked up when the patches get their numbers.

    Parameters
    ----------
    pair
        The row.
    reading
        As `PairsOptions.reading`.

    Raises
    ------
    SlideNotFoundError
        If a file of the pair is gone.
    """
    transform = pair.transform
    if isinstance(transform, Path):
        file = transform / "transform.json" if transform.is_dir() else transform
        # it holds the hash of the arrays beside it
        given: object = hashlib.sha256(_looked_at(file, _read)).hexdigest()
    else:
        given = transform
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    tissue = _file_facts(pair.tissue) if isinstance(pair.tissue, Path) else pair.tissue
    return _hash(
        [
            *(_file_facts(file) for file in files),
            pair.he_mpp,
            pair.ihc_mpp,
            given,
            *_chosen(tissue, reading),
            *_images(pair),
        ]
    )


def row_print_of(pair: SlidePair, reading: Mapping[str, str] | None = None) -> str:
    """Of what the manifest's row says of that, by names alone: what is left to go by while the files are not there."""
    transform = pair.transform.name if isinstance(pair.transform, Path) else pair.transform
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    tissue = pair.tissue.name if isinstance(pair.tissue, Path) else pair.tissue
    named = [file and file.name for file in files]
    return _hash([*named, pair.he_mpp, pair.ihc_mpp, transform, *_chosen(tissue, reading), *_images(pair)])


def _images(pair: SlidePair) -> list[str]:
    """Which images of the files are meant; nothing where none is chosen, as before images could be."""
    return [f"{side}{image}" for side, image in (("he", pair.he_image), ("ihc", pair.ihc_image)) if image]


def _chosen(tissue: object, reading: Mapping[str, str] | None) -> list[object]:
    """What is not the default, so that data sets that were made before there was a choice need not be cut again."""
    chosen = {**(reading or {}), **({"tissue": tissue} if tissue is not None else {})}
    return [dict(sorted(chosen.items()))] if chosen else []


def _read(path: Path) -> bytes:
    return read_regular(path, LARGEST_TRANSFORM_BYTES)


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _file_facts(path: Path | None) -> tuple[str, int, int] | None:
    if path is None:
        return None
    status = _looked_at(path, Path.stat)
    return path.name, status.st_size, status.st_mtime_ns


def _looked_at(path: Path, look: Callable[[Path], _T]) -> _T:
    try:
        return look(path)
    except OSError as error:
        raise SlideNotFoundError(f"{path} cannot be looked at ({error.strerror}); check the path") from error
