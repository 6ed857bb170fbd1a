"""Write a pair dataset: each patch once, and an index of the patches that belong to it.

States on disk in order, and what a kill after each of them leaves:

1. ``store.json``: format, and the options that all patches share. The folder is now recognized as a dataset.
2. ``patches/SLIDE/KEY/``: patches and figures of one extraction, under their final names (`SlideWriter`). KEY is a hash
   of the inputs, and never that of an extraction in the index. Without a record, the next run starts it again.
3. ``patches/SLIDE/KEY/record.json``: the extraction is complete. The next run uses it; the index does not name it yet.
4. ``rejected.csv``, ``pairs.csv`` (the index) and ``dataset.json``: derived from the records by `publish` and each
   replaced atomically, in this order. ``dataset.json`` is removed first, so that it always describes the other two.
5. Extractions that the index replaced are removed. The next run removes the rest.

Nothing that the index names is changed or removed before a new index is published. Only the index decides what belongs
to the dataset: other splits, rows or (unless an extraction lacks a file) limits only rewrite it. Complete extractions
of rows that were removed or failed are kept, and used again when the row returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi2ihc.atomic_files import cannot_write, write_atomically
from wsi2ihc.errors import DatasetError, OutputError, OutputExistsError
from wsi2ihc.files import json_bytes, read_json, sha256_of_file
from wsi2ihc.locks import LOCK, exclusive_lock
from wsi2ihc.system import versions
from wsi2ihc.text import csv_table

from ..data.dataset import Role
from ..data.layouts import METADATA_NAME, TABLE_NAME, read_rows
from .pair_manifest import SlidePair
from .quality import Limits
from .report import Slides, patch_counts, rejections
from .slide_record import (
    PATCHES_NAME,
    RECORD_NAME,
    SPLIT_NAMES,
    PatchRecord,
    SlideRecord,
    extractions,
    read_record,
    remove_extraction,
)

STORE_NAME = "store.json"
REJECTED_NAME = "rejected.csv"

FORMAT = {"format": "wsi2ihc pairs", "version": 3}


class PairsStore:
    """Folder of a dataset; see `open_dataset_folder` for writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.indexed = _read_index(folder)
        """Number of patches of each extraction that the published index names, by its folder."""

    @property
    def counts(self) -> Counter[str]:
        """Number of patches in the published index, by slide."""
        counts: Counter[str] = Counter()
        for extraction, count in self.indexed.items():
            counts[extraction.parent.name] += count
        return counts

    def slide_folder(self, slide: str) -> Path:
        """Return the folder of all extractions of a slide."""
        return self.folder / PATCHES_NAME / slide

    def find(self, slide: str, limits: Limits, *, fingerprint: str = "", row: str = "") -> SlideRecord | None:
        """Return the record of a complete extraction under the given limits, preferably of the one in the index.

        None if there is none with that fingerprint (or row hash, if the files are unavailable), or a file is `missing`.
        """
        for extraction in sorted(extractions(self.slide_folder(slide)), key=lambda one: one not in self.indexed):
            record = read_record(extraction)
            if record is None or (record.fingerprint != fingerprint if fingerprint else record.row != row):
                continue
            if (usable := record.under(limits)) and not self.missing(usable):
                return usable
        return None

    def missing(self, record: SlideRecord) -> Path | None:
        """Return the first file of an extraction that is missing, of another size, or a patch changed after its record
        was written.
        """
        checksums = record.checksums()
        try:
            written_ns = (self.folder / record.folder / RECORD_NAME).stat().st_mtime_ns
            for path, size in record.file_sizes().items():
                file = self.folder / path
                status = file.stat()
                is_suspect = status.st_mtime_ns > written_ns and path in checksums
                if status.st_size != size or (is_suspect and sha256_of_file(file) != checksums[path]):
                    return file
        except OSError as error:
            return Path(error.filename)
        return None

    def new_extraction(self, slide: str, fingerprint: str, limits: Limits) -> Path:
        """Return the folder for a new extraction: equal for equal inputs, but not one that the index names."""
        contents = ([fingerprint, dataclasses.asdict(limits), versions(), number] for number in itertools.count())
        keys = (hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8] for content in contents)
        folders = (self.slide_folder(slide) / key for key in keys)
        return next(folder for folder in folders if folder not in self.indexed)

    def discard(self, slide: str, failed: Path | None = None) -> None:
        """Remove incomplete extractions of a slide, but the figures of ``failed``, which may show the cause."""
        folder = self.slide_folder(slide)
        if not folder.is_dir():
            return
        with slide_lock(folder):
            for extraction in extractions(folder):
                if extraction not in self.indexed and not (extraction / RECORD_NAME).exists():
                    remove_extraction(extraction, with_figures=extraction != failed)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _read_index(folder: Path) -> Counter[Path]:
    try:
        rows = read_rows(folder / TABLE_NAME).rows
    except DatasetError:
        return Counter()
    return Counter((folder / row["he"]).parent for row in rows if row.get("he"))


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
        yield PairsStore(folder)


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


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first different option, for display; "" if there is none."""
    for name in sorted(old.keys() | new.keys()):
        if (was := old.get(name)) != (now := new.get(name)):
            return f"with {name} {json.dumps(was)}, not {json.dumps(now)}"
    return ""


def publish(
    store: PairsStore, slides: Slides, roles: Mapping[str, Role], statement: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Write the index of all complete slides, and remove the extractions that it replaces.

    Parameters
    ----------
    slides
        Slides in the order of the manifest, with their records.
    roles
        Role of every slide by id.
    statement
        Content of ``dataset.json`` except counts; ``mpp`` is the requested resolution.

    Returns
    -------
    dict, bool
        Content of ``dataset.json``, and whether the index has changed.

    Raises
    ------
    OutputError
        If writing fails or a file of a slide is missing.
    """
    splits = {slide: SPLIT_NAMES[role] for slide, role in roles.items()}
    metadata = {
        **statement,
        "counts": patch_counts(slides, splits),
        "rejected": rejections(slides).rejection_counts,
        "without_residual": sum(
            patch.metrics.get("residual_um") is None for _, record in slides for patch in record.kept
        ),
    }
    index = {
        REJECTED_NAME: rejected_csv(slides, statement["mpp"]),
        TABLE_NAME: pairs_csv(slides, splits, statement["mpp"]),
        METADATA_NAME: json_bytes(metadata),
    }
    try:
        changed = [name for name, content in index.items() if _content(store.folder / name) != content]
        if changed:
            if path := next(filter(None, (store.missing(record) for _, record in slides)), None):
                raise OutputError(f"{path} is missing or damaged; run again to extract its slide again")
            (store.folder / METADATA_NAME).unlink(missing_ok=True)
            for name, content in index.items():
                if name in (*changed, METADATA_NAME):
                    write_atomically(store.folder / name, content)
        for pair, record in slides:
            folder = store.slide_folder(pair.slide)
            replaced = [path for path in extractions(folder) if path.name != record.key]
            if replaced or (folder / LOCK).exists():
                with slide_lock(folder):
                    for extraction in replaced:
                        remove_extraction(extraction)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(Path(error.filename or store.folder), error) from error
    return metadata, bool(changed)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


METRICS = (
    "tissue_he", "tissue_ihc", "valid", "residual_um", "correlation", "sharpness_he", "sharpness_ihc", "folds", "pen",
    "stained",
)  # fmt: skip
"""Quality metrics in the order of the columns."""

_OF_SLIDE = ("patient", "slide", "her2", "mpp", "grid_mpp", "x_um", "y_um")
_COLUMNS = ("number", "split", "he", "ihc", "half", *_OF_SLIDE, *METRICS, "sha256_he", "sha256_ihc")
_REJECTED_COLUMNS = ("reason", *_OF_SLIDE, *METRICS)


def pairs_csv(slides: Slides, splits: Mapping[str, str], mpp: float) -> bytes:
    """Return the index of kept patches, which `wsi2ihc.training.data` reads.

    ``mpp`` is the requested resolution. ``grid_mpp`` is the actual one: slides within a few percent of the requested
    resolution are not resampled, as in translation.
    """
    rows: list[dict[str, object]] = []
    for pair, record in slides:
        for patch in record.kept:
            files = [path.as_posix() for path in record.paths(patch)]
            rows.append(
                {
                    "number": len(rows),
                    "split": splits[pair.slide],
                    "he": files[0],
                    "ihc": files[-1],
                    "half": "left" if record.side_by_side else "",
                    **_of_slide(pair, record, patch, mpp),
                    "sha256_he": patch.sha256_he,
                    "sha256_ihc": patch.sha256_ihc,
                }
            )
    side_by_side = any(record.side_by_side for _, record in slides)
    return _csv([name for name in _COLUMNS if name != "half" or side_by_side], rows)


def rejected_csv(slides: Slides, mpp: float) -> bytes:
    """Return the table of rejected patches with reasons."""
    rows = [
        {"reason": patch.rejected, **_of_slide(pair, record, patch, mpp)}
        for pair, record in slides
        for patch in record.patches
        if patch.rejected
    ]
    return _csv(_REJECTED_COLUMNS, rows)


def _of_slide(pair: SlidePair, record: SlideRecord, patch: PatchRecord, mpp: float) -> dict[str, object]:
    metrics = {name: patch.metrics.get(name) for name in METRICS}
    return {
        "patient": pair.patient,
        "slide": pair.slide,
        "her2": pair.her2 or "",
        "mpp": f"{mpp:.6g}",
        "grid_mpp": f"{record.mpp:.6g}",
        "x_um": f"{patch.x_um:.3f}",
        "y_um": f"{patch.y_um:.3f}",
        **{name: "" if value is None else f"{value:.5g}" for name, value in metrics.items()},
    }


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    return csv_table([columns, *([row.get(name, "") for name in columns] for row in rows)], "\n").encode()
