"""The folder of a data set while it grows: slide by slide, each of them whole or to be cut again.

    store.json                      what the data set was begun with
    slides/SLIDE/record.json        what was cut of a slide; there when all of it is
    slides/SLIDE/patches/           its patches until they get their numbers
    slides/SLIDE/…                  what else is kept of a slide, such as its transform and pictures
    places.json                     which patch has got which number (`numbering`)
    HE/, IHC/ (or train/, val/, test/), pairs.csv, rejected.csv, dataset.json
                                    the data set

A patch is in its slide's folder or at the place that ``places.json`` gives it, and nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from wsi2ihc.errors import OutputError, OutputExistsError, SlideNotFoundError
from wsi2ihc.locks import LOCK, locked

from ..data.table import STATEMENT_NAME
from ..files import cannot_write, make_folder, write_whole
from . import places
from .encoding import EncodedPatch
from .manifest import SlidePair
from .records import RECORD_NAME, PatchRecord, SlideRecord, read_record, write_record

STORE_NAME = "store.json"

_T = TypeVar("_T")

_FORMAT = {"format": "wsi2ihc pairs", "version": 1}


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
    facts = [*(_file_facts(file) for file in files), pair.he_mpp, pair.ihc_mpp, given]
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


class PairsStore:
    """The folder of a data set that this process may write; see `open_store`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.options = dict(options)
        self.placed = places.read_places(folder)
        """Of every file that has had a place: where it is without one, and that place. Kept as ``places.json`` is."""

    @property
    def side_by_side(self) -> bool:
        """Whether both images of a pair go into one file."""
        return bool(self.options.get("side_by_side", False))

    def slide_folder(self, slide: str) -> Path:
        """Where the files of one slide are kept."""
        return places.slide_folder(self.folder, slide)

    def completed(self, slide: str, fingerprint: str) -> SlideRecord | None:
        """The record of a slide that need not be cut again.

        None if it was not cut to its end, was cut from something else, or one of its patches is gone.
        """
        record = read_record(self.slide_folder(slide))
        if record is None or (record.slide, record.fingerprint) != (slide, fingerprint):
            return None
        found = (
            staged.is_file() or ((place := self.placed.get(staged)) and place.is_file())
            for patch in record.kept
            for staged in places.staged_files(self.folder, slide, patch, self.side_by_side)
        )
        return record if all(found) else None

    def begin(self, slide: str) -> SlideWriter:
        """Start to cut a slide. What was cut of it before is removed, wherever it is.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        folder = self.slide_folder(slide)
        try:
            # In this order: the data set is not complete any more, nor is the slide; only then its patches go.
            (self.folder / STATEMENT_NAME).unlink(missing_ok=True)
            (folder / RECORD_NAME).unlink(missing_ok=True)
            staging = places.staging_folder(self.folder, slide)
            for staged, place in self.placed.items():
                if staged.parent == staging:
                    place.unlink(missing_ok=True)
            if staging.exists():
                shutil.rmtree(staging)
        except OSError as error:
            raise cannot_write(folder, error) from error
        make_folder(staging)
        return SlideWriter(self, slide)


class SlideWriter:
    """Takes the patches of one slide; nothing of it counts before `complete`.

    Patches are written without a copy beside them and without waiting for the disk: a patch without a record is worth
    nothing, and is removed by the next run. So ``kill -9`` leaves no half patch in a data set. After a power cut it may
    (the record can reach the disk before the patches do); their checksums tell.
    """

    def __init__(self, store: PairsStore, slide: str) -> None:
        self._store = store
        self._slide = slide
        self._patches: list[PatchRecord] = []

    def add(
        self,
        at_px: tuple[int, int],
        at_um: tuple[float, float],
        figures: Mapping[str, float | None],
        *,
        rejected: str = "",
        encoded: EncodedPatch | None = None,
    ) -> None:
        """Take one patch.

        Parameters
        ----------
        at_px, at_um
            Its top left corner, on the working grid and on the H&E slide.
        figures
            What was measured of it. What is not finite is kept as None.
        rejected
            Why it is left out; "" if it is kept.
        encoded
            Its files; of a patch that is kept.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        if bool(rejected) == bool(encoded):
            raise ValueError("a patch is either left out for a reason, or has files")
        kept = encoded or EncodedPatch((), "", "")
        measured = {name: _finite(value) for name, value in figures.items()}
        patch = PatchRecord(*at_px, *at_um, measured, rejected, kept.sha256_he, kept.sha256_ihc)
        if encoded:
            store = self._store
            files = places.staged_files(store.folder, self._slide, patch, store.side_by_side)
            for path, content in zip(files, encoded.files, strict=True):
                try:
                    path.write_bytes(content)
                except OSError as error:
                    raise cannot_write(path, error) from error
        self._patches.append(patch)

    def complete(self, fingerprint: str, mpp: float, facts: Mapping[str, Any] | None = None) -> SlideRecord:
        """Write the record: from now on the slide need not be cut again.

        Parameters
        ----------
        fingerprint
            As `fingerprint_of` gave it before the slides were opened.
        mpp
            µm per px of the patches.
        facts
            What else to keep, for JSON.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        patches = tuple(sorted(self._patches, key=lambda patch: (patch.y_px, patch.x_px)))
        record = SlideRecord(self._slide, fingerprint, mpp, patches, dict(facts or {}))
        write_record(self._store.slide_folder(self._slide), record)
        return record


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


@contextlib.contextmanager
def open_store(folder: Path, options: Mapping[str, Any]) -> Iterator[PairsStore]:
    """Open the folder of a data set to write it, new or to go on with, and keep other runs out of it meanwhile.

    Parameters
    ----------
    folder
        Not there, empty, or a data set that was begun with the same options.
    options
        What all patches of a data set have in common, for JSON: their size, mpp and limits, how slides are registered.
        ``side_by_side`` means images that hold both stains.

    Raises
    ------
    OutputExistsError
        If the folder holds something else, or a data set with other options. Nothing in it is then touched.
    OutputError
        If it is a file, cannot be written, or another run is writing it.
    """
    content = json.dumps(_FORMAT | {"options": options}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _check_folder(folder, json.loads(content)["options"])
    with locked(folder, f"another run is writing the data set {folder}; wait for it, or choose another folder"):
        _check_folder(folder, json.loads(content)["options"])  # again, now that nobody else can begin one
        _remove_leftovers(folder)
        if not (folder / STORE_NAME).exists():
            write_whole(folder / STORE_NAME, content.encode())
        yield PairsStore(folder, options)


def _remove_leftovers(folder: Path) -> None:
    """What killed runs left of files that this one may have no reason to write."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            path.unlink()


def _check_folder(folder: Path, options: Mapping[str, Any]) -> None:
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise OutputError(f"{folder} is a file; name a folder for the data set")
        return
    try:
        # what a run leaves that is killed while it writes its first file
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(f".{STORE_NAME}.")} - {LOCK}
        begun = json.loads((folder / STORE_NAME).read_text(encoding="utf-8")) if STORE_NAME in names else None
    except ValueError as error:
        raise OutputExistsError(f"{folder / STORE_NAME} is damaged; choose another folder") from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({error.strerror}); choose another folder") from error
    if begun is None:
        if names:
            raise OutputExistsError(
                f"{folder} is not empty, and what it holds was not begun by this command; choose another folder"
            )
        return
    if not isinstance(begun, dict) or {key: begun.get(key) for key in _FORMAT} != _FORMAT:
        raise OutputExistsError(f"{folder} holds a data set of another kind or version; choose another folder")
    if changed := _difference(begun.get("options") or {}, options):
        raise OutputExistsError(f"{folder} holds a data set that was begun {changed}; choose another folder")


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The first option that differs, in words; "" if none does."""
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            return _difference(was, now, f"{prefix}{name}.")
        return f"with {prefix}{name} {json.dumps(was)}, not {json.dumps(now)}"
    return ""
