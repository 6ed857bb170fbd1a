"""What a slide's patches were made of: by what is told whether they have to be cut anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wsi2ihc.errors import SlideNotFoundError

from .manifest import SlidePair

_T = TypeVar("_T")


def fingerprint_of(pair: SlidePair) -> str:
    """Of what a slide's patches are made of. If it changes, they are cut anew.

    Slides count by name, size and time of change: hashing them would take minutes each. Patient, level and split do
    not enter; they are looked up when the patches get their numbers.

    Raises
    ------
    SlideNotFoundError
        If a file of the pair is gone.
    """
    transform = pair.transform
    if isinstance(transform, Path):
        file = transform / "transform.json" if transform.is_dir() else transform
        # it holds the hash of the arrays beside it
        given: object = hashlib.sha256(_looked_at(file, Path.read_bytes)).hexdigest()
    else:
        given = transform
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    return _hash([*(_file_facts(file) for file in files), pair.he_mpp, pair.ihc_mpp, given])


def row_print_of(pair: SlidePair) -> str:
    """Of what the manifest's row says of that, by names alone: what is left to go by while the files are not there."""
    transform = pair.transform.name if isinstance(pair.transform, Path) else pair.transform
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    return _hash([*(file and file.name for file in files), pair.he_mpp, pair.ihc_mpp, transform])


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
