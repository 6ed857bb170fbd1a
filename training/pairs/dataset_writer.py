"""Write the dataset: patches of each slide, numbering and index.

A `SlideWriter` stages the patches of one slide in ``slides/ID/attempt``. Its record completes the slide, and `commit`
then replaces earlier results. `move_patches` numbers the patches of all completed slides, moves them to their split and
writes the tables. Each step can be interrupted and repeated.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.files import json_bytes, read_json
from wsi2ihc.geometry import RGBImage
from wsi2ihc.storage import LOCK, cannot_write, exclusive_lock, make_folder, write_atomically

from ..data.dataset import Role
from ..data.layouts import METADATA_NAME, TABLE_NAME
from . import records
from .pair_manifest import SlidePair
from .records import (
    KEPT_NAMES,
    PATHS_NAME,
    RECORD_NAME,
    REJECTED_NAME,
    SPLIT_NAMES,
    PatchPath,
    PatchRecord,
    SlideRecord,
    Statement,
    attempt_folder,
    dataset_metadata,
    moves,
    pairs_csv,
    paths_json,
    read_paths,
    read_record,
    rejected_csv,
    slide_folder,
    staged_files,
    staging_folder,
    write_record,
)

_PNG = {"level": 1, "strategy": 3, "filter": 0x80}
"""Run-length encoding with the Paeth filter: the fastest and smallest setting of libpng on tissue (35 ms and 1.6 MB for
1024² px of H&E; its defaults take 90 ms and 1.7 MB, the best of OpenCV 68 ms and 1.6 MB)."""


@dataclass(frozen=True, slots=True)
class EncodedPatch:
    """Encoded files of a pair: one per stain, or one side-by-side image."""

    files: tuple[bytes, ...]
    sha256_he: str
    sha256_ihc: str


def encode_patch(he: RGBImage, ihc: RGBImage, *, side_by_side: bool) -> EncodedPatch:
    """Encode a pair as PNG. This mostly runs without the GIL, so that threads speed it up."""
    images = (np.hstack((he, ihc)),) if side_by_side else (he, ihc)
    files = tuple(bytes(imagecodecs.png_encode(np.ascontiguousarray(image), **_PNG)) for image in images)
    sums = [hashlib.sha256(file).hexdigest() for file in files]
    return EncodedPatch(files, sums[0], sums[-1])


BELONGING = (".json", ".npz")
"""Suffixes of files beside the record that a complete slide needs, unlike metrics."""


class SlideWriter:
    """Writer of the patches of one slide, which take effect with `complete`.

    Patches are written directly and without fsync, since the next run removes patches without a record. A killed
    process leaves no incomplete patch in the dataset. A power failure may, if the record reaches the disk first;
    checksums then reveal it.

    Parameters
    ----------
    dataset
        Folder of the dataset.
    slide
        Slide id.
    placed
        Paths of files, see `PairsStore`.
    side_by_side
        Whether a patch is one file.

    Raises
    ------
    OutputError
        If writing fails.
    """

    def __init__(self, dataset: Path, slide: str, placed: Mapping[Path, Path], *, side_by_side: bool) -> None:
        self.folder = attempt_folder(dataset, slide)
        """Folder for the other files of the slide."""
        self._dataset = dataset
        self._slide = slide
        self._placed = placed
        self._side_by_side = side_by_side
        self._patches: list[PatchRecord] = []
        self._staging = self.folder / staging_folder(dataset, slide).name
        make_folder(self._staging)

    def add(
        self,
        at_px: tuple[int, int],
        at_um: tuple[float, float],
        metrics: Mapping[str, float | None],
        *,
        rejected: str = "",
        encoded: EncodedPatch | None = None,
    ) -> None:
        """Add one patch.

        Parameters
        ----------
        at_px, at_um
            Top left corner on the working grid and on the H&E slide.
        metrics
            Quality metrics; values that are not finite become None.
        rejected
            Reason of rejection; "" if kept.
        encoded
            Files of a kept patch.

        Raises
        ------
        OutputError
            If writing fails.
        """
        if bool(rejected) == bool(encoded):
            raise ValueError("a patch is either rejected or has files")
        kept = encoded or EncodedPatch((b"",), "", "")
        measured = {name: _finite(value) for name, value in metrics.items()}
        sizes = [len(content) for content in kept.files]
        patch = PatchRecord(
            *at_px, *at_um, measured, rejected, kept.sha256_he, kept.sha256_ihc, sizes[0], sizes[-1]
        )  # fmt: skip
        if encoded:
            files = staged_files(self._dataset, self._slide, patch, self._side_by_side)
            for file, content in zip(files, encoded.files, strict=True):
                path = self._staging / file.name
                try:
                    path.write_bytes(content)
                except OSError as error:
                    raise cannot_write(path, error) from error
        self._patches.append(patch)

    def complete(
        self, fingerprint: str, mpp: float, metadata: Mapping[str, Any] | None = None, row: str = ""
    ) -> SlideRecord:
        """Write the record and replace earlier results of the slide.

        Parameters
        ----------
        fingerprint
            Output of `fingerprint_of` before the slides were open_slide_pair.
        mpp
            µm per px of the patches.
        metadata
            Further metadata, for JSON.
        row
            Output of `row_hash`.

        Raises
        ------
        OutputError
            If writing fails.
        """
        patches = tuple(sorted(self._patches, key=lambda patch: (patch.y_px, patch.x_px)))
        try:
            files = {
                path.name: path.stat().st_size for path in sorted(self.folder.iterdir()) if path.suffix in BELONGING
            }
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        record = SlideRecord(self._slide, fingerprint, mpp, patches, dict(metadata or {}), row, files)
        write_record(self.folder, record)
        commit(self._dataset, self._slide, self._placed)
        return record


def commit(dataset: Path, slide: str, placed: Mapping[Path, Path]) -> None:
    """Replace earlier results of a slide by a completed attempt.

    It can be interrupted and repeated: an attempt with a record is complete, and its record is moved last.

    Raises
    ------
    OutputError
        If writing fails.
    """
    folder, attempt, staging = (place(dataset, slide) for place in (slide_folder, attempt_folder, staging_folder))
    aside = attempt / staging.name
    try:
        if aside.exists():  # nothing has been moved yet
            # invalidate the dataset, then the slide, and only then remove its files
            (dataset / METADATA_NAME).unlink(missing_ok=True)
            (folder / RECORD_NAME).unlink(missing_ok=True)
            for staged, place in placed.items():
                if staged.parent == staging:
                    place.unlink(missing_ok=True)
            if staging.exists():
                shutil.rmtree(staging)
            for name in KEPT_NAMES:
                (folder / name).unlink(missing_ok=True)
            aside.replace(staging)
        for path in sorted(attempt.iterdir(), key=lambda path: path.name == RECORD_NAME):
            path.replace(folder / path.name)
        attempt.rmdir()
    except OSError as error:
        raise cannot_write(attempt, error) from error


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


STORE_NAME = "store.json"

FORMAT = {"format": "wsi2ihc pairs", "version": 2}


class PairsStore:
    """Folder of a dataset that this process may write; see `open_dataset_folder`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.options = dict(options)
        self.placed = records.read_paths(folder)
        """Content of ``places.json``: numbered path of each staged file."""

    @property
    def side_by_side(self) -> bool:
        """Whether both images of a pair are stored in one file."""
        return bool(self.options.get("side_by_side", False))

    @property
    def moved_patches(self) -> Counter[str]:
        """Number of patches in the dataset, by slide."""
        files = Counter(staged.parent.parent.name for staged in self.placed)
        return Counter({slide: count if self.side_by_side else count // 2 for slide, count in files.items()})

    def slide_folder(self, slide: str) -> Path:
        """Return the folder of one slide."""
        return records.slide_folder(self.folder, slide)

    def completed(self, slide: str, fingerprint: str) -> SlideRecord | None:
        """Return the record of a completed slide.

        None if it is incomplete, has a different fingerprint, or a file is missing or has a different size.
        """
        record = self._intact(slide)
        return record if record is not None and record.fingerprint == fingerprint else None

    def kept_from(self, slide: str, row_hash: str) -> SlideRecord | None:
        """Return the record of a completed slide by the hash of its row, when its files are unavailable."""
        record = self._intact(slide)
        return record if record is not None and record.row == row_hash else None

    def _intact(self, slide: str) -> SlideRecord | None:
        folder = self.slide_folder(slide)
        record = read_record(folder)
        if record is None or record.slide != slide:
            return None
        beside = (_has_size(folder / name, size) for name, size in record.files.items())
        patches = (
            _has_size(staged, size) or ((place := self.placed.get(staged)) and _has_size(place, size))
            for patch in record.kept
            for staged, size in zip(
                records.staged_files(self.folder, slide, patch, self.side_by_side),
                (patch.bytes_he, patch.bytes_ihc),
                strict=False,  # one side-by-side file
            )
        )
        return record if all(beside) and all(patches) else None

    def begin(self, slide: str) -> SlideWriter:
        """Start the extraction of a slide. Earlier results are kept until it is complete.

        Raises
        ------
        OutputError
            If writing fails.
        """
        self._remove_attempt(slide)
        return SlideWriter(self.folder, slide, self.placed, side_by_side=self.side_by_side)

    def remove_attempts(self, slide: str) -> None:
        """Remove the files of interrupted and failed attempts of a slide.

        Raises
        ------
        OutputError
            If removing fails.
        """
        lock = self.slide_folder(slide) / LOCK
        try:
            lock.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(lock, error) from error
        self._remove_attempt(slide)

    def _remove_attempt(self, slide: str) -> None:
        attempt = records.attempt_folder(self.folder, slide)
        try:
            if attempt.exists():
                shutil.rmtree(attempt)
        except OSError as error:
            raise cannot_write(attempt, error) from error


def _has_size(path: Path, size: int) -> bool:
    """Check that a file exists and has its recorded size, if known."""
    try:
        return size in (0, path.stat().st_size)
    except OSError:
        return False


@contextlib.contextmanager
def open_dataset_folder(folder: Path, options: Mapping[str, Any]) -> Iterator[PairsStore]:
    """Open and lock the folder of a new or existing dataset for writing.

    Parameters
    ----------
    folder
        New or empty folder, or a dataset with the same options.
    options
        Options that all patches share, see `PairsOptions.of_patches`.

    Raises
    ------
    OutputExistsError
        If the folder contains something else or a dataset with different options. It is then not modified.
    OutputError
        If it is a file, cannot be written, or another run is writing it.
    """
    content = json_bytes(FORMAT | {"options": options}, indent=1)
    _check_folder(folder, json.loads(content)["options"])
    with exclusive_lock(folder, f"another run is writing the dataset {folder}; wait for it, or choose another folder"):
        _check_folder(folder, json.loads(content)["options"])  # again, now that it is locked
        for path in folder.glob(".*.partial"):  # files of interrupted runs
            with contextlib.suppress(OSError):
                path.unlink()
        if not (folder / STORE_NAME).exists():
            write_atomically(folder / STORE_NAME, content)
        store = PairsStore(folder, options)
        for record in sorted(folder.glob(f"slides/*/{records.ATTEMPT_NAME}/{RECORD_NAME}")):  # interrupted `commit`
            slide = record.parent.parent
            with slide_lock(slide):
                commit(folder, slide.name, store.placed)
        yield store


_WORKER_TIMEOUT_S = 30.0


def slide_lock(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Lock the folder of a slide; wait for the worker of an interrupted run, which ends within moments."""
    return exclusive_lock(folder, f"another process is writing {folder}; wait for it", timeout_s=_WORKER_TIMEOUT_S)


def _check_folder(folder: Path, options: Mapping[str, Any]) -> None:
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise OutputError(f"{folder} is a file; name a folder for the dataset")
        return
    try:
        # an interrupted run may leave only a partial store file and the lock
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(f".{STORE_NAME}.")} - {LOCK}
        stored = read_json(folder / STORE_NAME) if STORE_NAME in names else None
    except ValueError as error:
        raise OutputExistsError(f"{folder / STORE_NAME} is damaged; choose another folder") from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({error.strerror}); choose another folder") from error
    if stored is None:
        if names:
            raise OutputExistsError(f"{folder} is not empty and not a dataset of this command; choose another folder")
        return
    if not isinstance(stored, dict) or {key: stored.get(key) for key in FORMAT} != FORMAT:
        raise OutputExistsError(f"{folder} contains a dataset of a different kind or version; choose another folder")
    if changed := _difference(stored.get("options") or {}, options):
        raise OutputExistsError(f"{folder} contains a dataset {changed}; choose another folder")


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Return the first different option, for display; "" if there is none."""
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            return _difference(was, now, f"{prefix}{name}.")
        return f"with {prefix}{name} {json.dumps(was)}, not {json.dumps(now)}"
    return ""


_DIGITS = 5
"""Minimum digits of a patch's number in its name, as in BCI."""


def move_patches(
    store: PairsStore, slides: Sequence[tuple[SlidePair, SlideRecord]], roles: Mapping[str, Role], statement: Statement
) -> dict[str, Any]:
    """Assign numbers to the patches of all completed slides, move them to their splits and write the tables.

    Patches are numbered from 0 by slide, row and column. File names follow BCI: number, split and HER2 level, if known.

    Parameters
    ----------
    store
        Folder of the dataset.
    slides
        Slides in the order of the manifest, with their records. Patches of other slides stay in the slides' folders.
    roles
        Role of every slide by id.
    statement
        Content of ``dataset.json`` except counts.

    Returns
    -------
    dict
        Content of ``dataset.json``.

    Raises
    ------
    OutputError
        If writing fails or a patch is missing. A repeated call resumes.
    """
    kept = [(pair, record, patch) for pair, record in slides for patch in record.kept]
    places = _places(kept, roles)
    placed = [(place, *one) for place, one in zip(places, kept, strict=True)]
    splits = {slide: SPLIT_NAMES[role] for slide, role in roles.items()}
    journal = paths_json(places, store.side_by_side)
    tables = {
        TABLE_NAME: pairs_csv(placed, statement.mpp, store.side_by_side),
        REJECTED_NAME: rejected_csv(slides, statement.mpp),
    }
    metadata = dataset_metadata(slides, splits, statement)
    final = json_bytes(metadata)
    files = {PATHS_NAME: journal, **tables, METADATA_NAME: final}
    try:
        if any(_content(store.folder / name) != content for name, content in files.items()):
            (store.folder / METADATA_NAME).unlink(missing_ok=True)
        if _content(store.folder / PATHS_NAME) != journal:
            _gather(store.folder)
            write_atomically(store.folder / PATHS_NAME, journal)
        store.placed = moves(store.folder, places, store.side_by_side)
        for name, content in tables.items():
            _write_changed(store.folder / name, content)
        _distribute(store.placed)
        _remove_empty(store.folder, [pair.slide for pair, _ in slides])
        _write_changed(store.folder / METADATA_NAME, final)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(Path(error.filename or store.folder), error) from error
    return metadata


def _places(kept: Sequence[tuple[SlidePair, SlideRecord, PatchRecord]], roles: Mapping[str, Role]) -> list[PatchPath]:
    digits = max(_DIGITS, len(str(len(kept) - 1)))
    places = []
    for number, (pair, _, patch) in enumerate(kept):
        split = SPLIT_NAMES[roles[pair.slide]]
        name = "_".join(filter(None, (f"{number:0{digits}}", split, pair.her2)))
        places.append(PatchPath(pair.slide, patch.x_px, patch.y_px, split, name))
    return places


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write_changed(path: Path, content: bytes) -> None:
    if _content(path) != content:
        write_atomically(path, content)


def _gather(folder: Path) -> None:
    """Move all numbered patches back to the folders of their slides."""
    for staged, place in read_paths(folder).items():
        if place.exists():
            make_folder(staged.parent)
            place.replace(staged)


def _distribute(wanted: Mapping[Path, Path]) -> None:
    """Move all patches to their numbered paths, without replacing files that are not part of the dataset."""
    for staged, place in wanted.items():
        if staged.exists() and place.exists() and not filecmp.cmp(staged, place, shallow=False):
            raise OutputError(f"{place} already exists and is not part of this dataset; move it, and run again")
    for folder in sorted({place.parent for place in wanted.values()}):
        make_folder(folder)
    for staged, place in wanted.items():
        try:
            staged.replace(place)
        except FileNotFoundError as error:
            if not place.exists():
                raise OutputError(
                    f"the patch {staged} is missing, also at {place}; run again to extract its slide again"
                ) from error


def _remove_empty(folder: Path, slides: Iterable[str]) -> None:
    """Remove folders without patches."""
    emptied = [staging_folder(folder, slide) for slide in slides]
    for split in SPLIT_NAMES.values():
        emptied += [folder / "HE" / split, folder / "IHC" / split, folder / split]
    for path in (*emptied, folder / "HE", folder / "IHC"):
        with contextlib.suppress(OSError):
            path.rmdir()  # fails, as intended, if not empty
