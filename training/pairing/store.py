"""The folder of a data set while it grows: slide by slide, each of them whole or to be cut again.

    store.json                      what the data set was begun with
    slides/SLIDE/record.json        what was cut of a slide; there when all of it is
    slides/SLIDE/patches/           its patches until they get their numbers
    slides/SLIDE/…                  what else is kept of a slide, such as its transform and pictures
    slides/SLIDE/attempt/           the same while it is being cut, and what is left of that if it fails
    places.json                     which patch has got which number (`numbering`)
    HE/, IHC/ (or train/, val/, test/), pairs.csv, rejected.csv, dataset.json
                                    the data set

A patch is in its slide's folder or at the place that ``places.json`` gives it, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.files import json_bytes, read_json
from wsi2ihc.locks import LOCK, locked

from ..files import cannot_write, write_whole
from . import places
from .alone import alone
from .records import RECORD_NAME, SlideRecord, read_record
from .slide_writer import SlideWriter, promote

STORE_NAME = "store.json"

FORMAT = {"format": "wsi2ihc pairs", "version": 1}


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

    @property
    def placed_patches(self) -> Counter[str]:
        """Patches that are in the data set, by slide."""
        files = Counter(staged.parent.parent.name for staged in self.placed)
        return Counter({slide: count if self.side_by_side else count // 2 for slide, count in files.items()})

    def slide_folder(self, slide: str) -> Path:
        """Where the files of one slide are kept."""
        return places.slide_folder(self.folder, slide)

    def completed(self, slide: str, fingerprint: str) -> SlideRecord | None:
        """The record of a slide that need not be cut again.

        None if it was not cut to its end, was cut from something else, or one of its files is gone or has another size.
        """
        record = self._whole(slide)
        return record if record is not None and record.fingerprint == fingerprint else None

    def kept_from(self, slide: str, row_print: str) -> SlideRecord | None:
        """The record of a slide that was cut from a row of the manifest that said the same, as far as names go.

        None as for `completed`.
        """
        record = self._whole(slide)
        return record if record is not None and record.row == row_print else None

    def _whole(self, slide: str) -> SlideRecord | None:
        folder = self.slide_folder(slide)
        record = read_record(folder)
        if record is None or record.slide != slide:
            return None
        beside = (_is_whole(folder / name, size) for name, size in record.files.items())
        patches = (
            _is_whole(staged, size) or ((place := self.placed.get(staged)) and _is_whole(place, size))
            for patch in record.kept
            for staged, size in zip(
                places.staged_files(self.folder, slide, patch, self.side_by_side),
                (patch.bytes_he, patch.bytes_ihc),
                strict=False,  # one file that holds both
            )
        )
        return record if all(beside) and all(patches) else None

    def begin(self, slide: str) -> SlideWriter:
        """Start to cut a slide. What was cut of it before stays until all of it is there anew.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        self._remove_attempt(slide)
        return SlideWriter(self.folder, slide, self.placed, side_by_side=self.side_by_side)

    def settle(self, slide: str) -> None:
        """Remove what runs have left beside a slide that were killed, or whose attempt failed.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        lock = self.slide_folder(slide) / LOCK
        try:
            lock.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(lock, error) from error
        self._remove_attempt(slide)

    def _remove_attempt(self, slide: str) -> None:
        attempt = places.attempt_folder(self.folder, slide)
        try:
            if attempt.exists():
                shutil.rmtree(attempt)
        except OSError as error:
            raise cannot_write(attempt, error) from error


def _is_whole(path: Path, size: int) -> bool:
    """Whether a file is there and has the size that it was written with, where that is known."""
    try:
        return size in (0, path.stat().st_size)
    except OSError:
        return False


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
    content = json_bytes(FORMAT | {"options": options}, indent=1)
    _check_folder(folder, json.loads(content)["options"])
    with locked(folder, f"another run is writing the data set {folder}; wait for it, or choose another folder"):
        _check_folder(folder, json.loads(content)["options"])  # again, now that nobody else can begin one
        _remove_leftovers(folder)
        if not (folder / STORE_NAME).exists():
            write_whole(folder / STORE_NAME, content)
        store = PairsStore(folder, options)
        for record in sorted(folder.glob(f"slides/*/{places.ATTEMPT_NAME}/{RECORD_NAME}")):  # a run was killed then
            slide = record.parent.parent
            with alone(slide):
                promote(folder, slide.name, store.placed)
        yield store


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
        begun = read_json(folder / STORE_NAME) if STORE_NAME in names else None
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
    if not isinstance(begun, dict) or {key: begun.get(key) for key in FORMAT} != FORMAT:
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
