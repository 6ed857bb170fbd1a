"""Write a pair dataset: each patch once, and an index of the patches that belong to it.

States on disk in order, and what a kill after each of them leaves:

1. ``store.json``: format, and the options that all patches share. The folder is now recognized as a dataset.
2. ``patches/SLIDE/KEY/``: patches and figures of one extraction, under their final names (`slide_record.SlideWriter`).
   KEY is a hash of the inputs, the limits, the versions and a counter, which is raised until KEY differs from every
   extraction in the index. Without a record, the next run starts the extraction again.
3. ``patches/SLIDE/KEY/record.json``: the extraction is complete. The next run uses it; the index does not name it yet.
4. ``rejected.csv``, ``pairs.csv`` (the index) and ``dataset.json``, which `publish` derives from the records.
   ``dataset.json`` is removed; then all three are written in this order, each atomically. So whenever ``dataset.json``
   exists, it describes the other two.
5. Extractions that the new index replaced are removed; after a kill, by the next run.

Nothing that the index names is changed or removed before a new index is published. The index alone decides what belongs
to the dataset: new splits or rows only rewrite it, and so do new limits, unless they accept a rejected patch, which
has no files. Complete extractions of rows that were removed or failed are kept, and used again when the row returns.
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

from ..data.layouts import METADATA_NAME, TABLE_NAME, read_rows
from .pair_manifest import SlidePair
from .patient_split import Splits
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


class DatasetFolder:
    """Folder of a dataset; see `open_dataset_folder` for writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.indexed = _read_index(folder)
        """Number of patches of each extraction in the published index, by the folder of the extraction."""

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

    def find(self, slide: str, inputs: str, limits: Limits) -> SlideRecord | None:
        """Return the record of a complete extraction of the same inputs, preferably of the one in the index.

        ``inputs`` is the `fingerprint_of` the pair, or its `row_hash` if the files are unavailable. None if there is no
        such extraction, if one of its files is missing or damaged (`first_missing_file`), or if ``limits`` accept a
        patch without files.
        """
        for extraction in sorted(extractions(self.slide_folder(slide)), key=lambda one: one not in self.indexed):
            record = read_record(extraction)
            if record is None or inputs not in (record.fingerprint, record.row):
                continue
            if (usable := record.with_limits(limits)) and not self.first_missing_file(usable):
                return usable
        return None

    def first_missing_file(self, record: SlideRecord) -> Path | None:
        """Return the first file of an extraction that is missing or damaged.

        A file is damaged if its size differs, or if it was changed after the record was written and its checksum
        differs.
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

        def folder_for(counter: int) -> Path:
            content = json.dumps([fingerprint, dataclasses.asdict(limits), versions(), counter])
            return self.slide_folder(slide) / hashlib.sha256(content.encode()).hexdigest()[:8]

        return next(folder for folder in map(folder_for, itertools.count()) if folder not in self.indexed)

    def discard(self, slide: str, failed: Path | None = None) -> None:
        """Remove incomplete extractions of a slide; keep the figures of ``failed``, which may show why it failed."""
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
def open_dataset_folder(folder: Path, options: Mapping[str, Any]) -> Iterator[DatasetFolder]:
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
    options = json.loads(content)["options"]  # as they are read back, with lists for tuples
    _check_folder(folder, options)
    with exclusive_lock(folder, f"another run is writing the dataset {folder}; wait for it, or choose another folder"):
        _check_folder(folder, options)  # again, now that it is locked
        for path in folder.glob(".*.partial"):  # files of interrupted runs
            with contextlib.suppress(OSError):
                path.unlink()
        if not (folder / STORE_NAME).exists():
            write_atomically(folder / STORE_NAME, content)
        yield DatasetFolder(folder)


_WORKER_TIMEOUT_S = 30.0  # a worker process exits soon after the run that started it


def slide_lock(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Lock the folder of a slide; wait for a worker process of an interrupted run that still writes there."""
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
            raise OutputExistsError(f"{folder} is neither empty nor a dataset of this command; choose another folder")
        return
    found = {key: stored.get(key) for key in FORMAT} if isinstance(stored, dict) else None
    if found != FORMAT:
        described = "an unknown format" if found is None else "{format!r:.40}, version {version!r:.20}".format(**found)
        expected = "{format!r}, version {version}".format(**FORMAT)
        raise OutputExistsError(f"{folder} contains a dataset of {described}, not {expected}; choose another folder")
    if changed := _difference(stored.get("options") or {}, options):
        raise OutputExistsError(f"{folder} contains a dataset made with {changed}; choose another folder")


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first different option, for display; "" if there is none."""
    for name in sorted(old.keys() | new.keys()):
        if (was := old.get(name)) != (now := new.get(name)):
            return f"{name} {json.dumps(was)}; this run asks for {json.dumps(now)}"
    return ""


def publish(
    dataset: DatasetFolder, slides: Slides, splits: Splits, metadata: Mapping[str, Any]
) -> tuple[Mapping[str, Any], bool]:
    """Write the index of all complete slides, and remove the extractions that it replaces.

    Parameters
    ----------
    slides
        Slides in the order of the manifest, with their records.
    metadata
        Content of ``dataset.json`` except counts; ``mpp`` is the requested resolution.

    Returns
    -------
    Mapping, bool
        Content of ``dataset.json``, and whether a file has changed.

    Raises
    ------
    OutputError
        If writing fails or a file of a slide is missing.
    """
    folder, requested_mpp = dataset.folder, metadata["mpp"]
    split_names = {slide: SPLIT_NAMES[role] for slide, role in splits.items()}
    kept = [patch for _, record in slides for patch in record.kept]
    metadata = {
        **metadata,
        "counts": patch_counts(slides, split_names),
        "rejected": rejections(slides).rejection_counts,
        "without_residual": sum(patch.metrics.get("residual_um") is None for patch in kept),
    }
    files = {
        REJECTED_NAME: rejected_csv(slides, requested_mpp),
        TABLE_NAME: pairs_csv(slides, split_names, requested_mpp),
        METADATA_NAME: json_bytes(metadata),
    }
    try:
        changed = [name for name, content in files.items() if _content(folder / name) != content]
        if changed:
            if path := next(filter(None, (dataset.first_missing_file(record) for _, record in slides)), None):
                raise OutputError(f"{path} is missing or damaged; run again to extract its slide again")
            (folder / METADATA_NAME).unlink(missing_ok=True)
            for name, content in files.items():
                if name in (*changed, METADATA_NAME):
                    write_atomically(folder / name, content)
        _remove_replaced_extractions(dataset, slides)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from error
    return metadata, bool(changed)


def _remove_replaced_extractions(dataset: DatasetFolder, slides: Slides) -> None:
    for pair, record in slides:
        folder = dataset.slide_folder(pair.slide)
        replaced = [path for path in extractions(folder) if path.name != record.key]
        if replaced or (folder / LOCK).exists():  # releasing the lock also removes a left-over lock file
            with slide_lock(folder):
                for extraction in replaced:
                    remove_extraction(extraction)


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

_SHARED_COLUMNS = ("patient", "slide", "her2", "mpp", "grid_mpp", "x_um", "y_um")
_COLUMNS = ("number", "split", "he", "ihc", "half", *_SHARED_COLUMNS, *METRICS, "sha256_he", "sha256_ihc")
_REJECTED_COLUMNS = ("reason", *_SHARED_COLUMNS, *METRICS)


def pairs_csv(slides: Slides, split_names: Mapping[str, str], requested_mpp: float) -> bytes:
    """Return the index of kept patches, which `wsi2ihc.training.data` reads.

    The column ``mpp`` is the requested resolution, and ``grid_mpp`` the actual one: slides within a few percent of the
    requested resolution are not resampled, as in translation.
    """
    rows: list[dict[str, object]] = []
    for pair, record in slides:
        for patch in record.kept:
            files = [path.as_posix() for path in record.paths(patch)]
            rows.append(
                {
                    "number": len(rows),
                    "split": split_names[pair.slide],
                    "he": files[0],
                    "ihc": files[-1],
                    "half": "left" if record.side_by_side else "",  # position of the H&E patch
                    **_shared_values(pair, record, patch, requested_mpp),
                    "sha256_he": patch.sha256_he,
                    "sha256_ihc": patch.sha256_ihc,
                }
            )
    side_by_side = any(record.side_by_side for _, record in slides)
    return _csv([name for name in _COLUMNS if name != "half" or side_by_side], rows)


def rejected_csv(slides: Slides, requested_mpp: float) -> bytes:
    """Return the table of rejected patches with reasons."""
    rows = [
        {"reason": patch.rejected, **_shared_values(pair, record, patch, requested_mpp)}
        for pair, record in slides
        for patch in record.patches
        if patch.rejected
    ]
    return _csv(_REJECTED_COLUMNS, rows)


def _shared_values(pair: SlidePair, record: SlideRecord, patch: PatchRecord, requested_mpp: float) -> dict[str, object]:
    """Return the values of the columns that both tables share."""
    metrics = {name: patch.metrics.get(name) for name in METRICS}
    return {
        "patient": pair.patient,
        "slide": pair.slide,
        "her2": pair.her2 or "",
        "mpp": f"{requested_mpp:.6g}",
        "grid_mpp": f"{record.mpp:.6g}",
        "x_um": f"{patch.x_um:.3f}",
        "y_um": f"{patch.y_um:.3f}",
        **{name: "" if value is None else f"{value:.5g}" for name, value in metrics.items()},
    }


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    return csv_table([columns, *([row.get(name, "") for name in columns] for row in rows)], "\n").encode()
