"""Patches of one slide on disk, and the record that makes them complete.

Each extraction of a slide has its own folder ``patches/SLIDE/KEY``: patches (`patch_names`), a folder ``registration``
with the transform and figures, and ``record.json``. The record is written last and lists all patches, kept or rejected,
with a fingerprint of the inputs (`fingerprint_of`), which decides whether they have to be extracted again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import imagecodecs
import numpy as np

from wsi2ihc.atomic_files import cannot_write, make_folder, write_atomically
from wsi2ihc.errors import SlideNotFoundError
from wsi2ihc.files import is_image, json_bytes, read_json, read_regular
from wsi2ihc.geometry import RGBImage
from wsi2ihc.registration.report import OWN_NAMES

from ..data.dataset import Role
from .pair_manifest import SlidePair
from .quality import Limits, PatchMetrics, mask_rejection, rejection_reason

PATCHES_NAME = "patches"
RECORD_NAME = "record.json"
REGISTRATION_NAME = "registration"
OVERVIEW_NAME = "patches.png"

SPLIT_NAMES: dict[Role, str] = {"train": "train", "validation": "val", "test": "test"}
"""Names of the roles in tables."""

_KEY = re.compile("[0-9a-f]{8}")
_OWN_FIGURES = (*OWN_NAMES, OVERVIEW_NAME)
_NEEDED = (".json", ".npz")
"""Suffixes of registration files that a complete slide needs, unlike figures."""


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """One patch, kept or rejected."""

    number: int  # number in raster order over all positions of the slide
    # top left corner on the working grid of the H&E slide, and on the slide
    x_px: int
    y_px: int
    x_um: float
    y_um: float
    metrics: Mapping[str, float | None]  # fields of `PatchMetrics`; None if not measurable
    rejected: str = ""  # reason of rejection; "" if kept
    # checksums and sizes of the files; equal for side-by-side images, "" and 0 without files
    sha256_he: str = ""
    sha256_ihc: str = ""
    bytes_he: int = 0
    bytes_ihc: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRecord:
    """Record of a complete extraction."""

    slide: str
    key: str  # name of its folder
    # see `fingerprint_of` and `row_hash`
    fingerprint: str
    row: str
    side_by_side: bool
    limits: Mapping[str, float]  # limits that decided which patches have files
    verified: bool  # whether registration found the transform, see `rejection_reason`
    mpp: float  # µm per px of the patches along x
    files: Mapping[str, int]  # sizes of the registration and transform files
    metadata: Mapping[str, Any]  # further metadata, for JSON
    patches: tuple[PatchRecord, ...]

    @property
    def folder(self) -> Path:
        """Folder of the extraction, relative to the dataset."""
        return Path(PATCHES_NAME, self.slide, self.key)

    @property
    def kept(self) -> tuple[PatchRecord, ...]:
        """Kept patches, in order."""
        return tuple(patch for patch in self.patches if not patch.rejected)

    def paths(self, patch: PatchRecord) -> tuple[Path, ...]:
        """Return the files of a patch, relative to the dataset: H&E and IHC, or one side-by-side image."""
        return tuple(self.folder / name for name in patch_names(self.slide, patch.number, self.side_by_side))

    def file_sizes(self) -> dict[Path, int]:
        """Return the sizes of all files that belong to the extraction, relative to the dataset."""
        sizes = {self.folder / REGISTRATION_NAME / name: size for name, size in self.files.items()}
        for patch in self.patches:
            if patch.sha256_he:
                sizes |= dict(zip(self.paths(patch), (patch.bytes_he, patch.bytes_ihc), strict=False))
        return sizes

    def checksums(self) -> dict[Path, str]:
        """Return the checksums of all patch files, relative to the dataset."""
        return {
            path: checksum
            for patch in self.patches
            if patch.sha256_he
            for path, checksum in zip(self.paths(patch), (patch.sha256_he, patch.sha256_ihc), strict=False)
        }

    def with_limits(self, limits: Limits) -> SlideRecord | None:
        """Return the record with patches rejected by other limits; None if they might keep one without files."""
        if self.limits == dataclasses.asdict(limits):
            return self
        patches = []
        for patch in self.patches:
            metrics = PatchMetrics(**patch.metrics)  # type: ignore[arg-type]
            if patch.sha256_he or metrics.sharpness_he is not None:
                rejected = rejection_reason(metrics, limits, verified=self.verified)
            else:
                rejected = mask_rejection(metrics, limits)
            if not rejected and not patch.sha256_he:
                return None
            patches.append(dataclasses.replace(patch, rejected=rejected))
        return dataclasses.replace(self, patches=tuple(patches))


def patch_names(slide: str, number: int, side_by_side: bool) -> tuple[str, ...]:
    """Return the names of the files of a patch, which are unique over all slides."""
    stem = f"{slide}_{number:05}"
    return (f"{stem}.png",) if side_by_side else (f"{stem}_he.png", f"{stem}_ihc.png")


def read_record(folder: Path) -> SlideRecord | None:
    """Read the record of an extraction; None if missing or invalid; the slide is then extracted again."""
    try:
        metadata = read_json(folder / RECORD_NAME)
        patches = tuple(PatchRecord(**patch) for patch in metadata.pop("patches"))
        record = SlideRecord(**metadata, patches=patches)
        for patch in patches:
            PatchMetrics(**patch.metrics)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if (record.slide, record.key) == (folder.parent.name, folder.name) else None


def extractions(slide_folder: Path) -> list[Path]:
    """Return the folders of all extractions of a slide, complete or not."""
    if not slide_folder.is_dir():
        return []
    return [path for path in sorted(slide_folder.iterdir()) if _KEY.fullmatch(path.name) and path.is_dir()]


def remove_extraction(folder: Path, *, with_figures: bool = True) -> None:
    """Remove the files of an extraction, its record first; files of other origin are kept.

    Raises
    ------
    OutputError
        If removing fails.
    """
    patch = re.compile(rf"{re.escape(folder.parent.name)}_\d{{5,}}(_he|_ihc)?\.png|\.{RECORD_NAME}\..*")
    figures = folder / REGISTRATION_NAME
    try:
        (folder / RECORD_NAME).unlink(missing_ok=True)
        own = [path for path in folder.iterdir() if patch.fullmatch(path.name)] if folder.is_dir() else []
        if with_figures and figures.is_dir():
            own += [path for path in figures.iterdir() if path.name in _OWN_FIGURES or path.name.startswith(".")]
        for path in own:
            path.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error
    for emptied in (figures, folder, folder.parent):
        with contextlib.suppress(OSError):
            emptied.rmdir()  # fails, as intended, if not empty


def unlisted_files(folder: Path, own: Iterable[Path], more: Iterable[str] = ()) -> Iterator[Path]:
    """Yield images of a dataset that do not belong to it, relative to the dataset.

    Searches the folders HE, IHC, train, val, test, patches and ``more`` without hidden files. Extractions without any
    file in ``own`` (incomplete, replaced or removed ones) are skipped.

    Parameters
    ----------
    folder
        Dataset.
    own
        Images that belong to it.
    more
        Further folders in it.
    """
    listed = set(own)
    indexed = {path.parent for path in listed}
    for top in sorted({"HE", "IHC", *SPLIT_NAMES.values(), PATCHES_NAME, *more}):
        for path in sorted((folder / top).rglob("*")):
            if path in listed or not is_image(path.name) or not path.is_file():
                continue
            relative = path.relative_to(folder)
            if top == PATCHES_NAME and len(relative.parts) > 3 and _KEY.fullmatch(relative.parts[2]):
                extraction = folder.joinpath(*relative.parts[:3])
                is_figure = path.parent == extraction / REGISTRATION_NAME and path.name in _OWN_FIGURES
                if is_figure or extraction not in indexed:
                    continue
            yield relative


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


class SlideWriter:
    """Writer of one extraction, which takes effect with `complete`.

    Patches are written without fsync, since the next run removes patches without a record. A killed process leaves no
    incomplete patch in the dataset. A power failure may, if the record reaches the disk first; checksums then reveal
    it.

    Parameters
    ----------
    folder
        Folder of the extraction, see `DatasetFolder.new_extraction`; files of an interrupted one are removed.
    side_by_side
        Whether a patch is one file.

    Raises
    ------
    OutputError
        If writing fails, here or in a method.
    """

    def __init__(self, folder: Path, *, side_by_side: bool = False) -> None:
        self.registration = folder / REGISTRATION_NAME
        """Folder for the transform and figures."""
        self._folder = folder
        self._side_by_side = side_by_side
        self._patches: list[PatchRecord] = []
        remove_extraction(folder)
        make_folder(self.registration)

    def add(
        self,
        at_px: tuple[int, int],
        at_um: tuple[float, float],
        metrics: Mapping[str, float | None],
        *,
        rejected: str = "",
        encoded: EncodedPatch | None = None,
    ) -> None:
        """Add the next patch in raster order: with files if it is kept, else with the reason of rejection.

        Metrics that are not finite become None.
        """
        if bool(rejected) == bool(encoded):
            raise ValueError("a patch is either rejected or has files")
        kept = encoded or EncodedPatch((b"",), "", "")
        measured = {
            name: float(value) if value is not None and math.isfinite(value) else None
            for name, value in metrics.items()
        }
        number, sizes = len(self._patches), [len(content) for content in kept.files]
        patch = PatchRecord(
            number, *at_px, *at_um, measured, rejected, kept.sha256_he, kept.sha256_ihc, sizes[0], sizes[-1]
        )  # fmt: skip
        self._patches.append(patch)
        names = patch_names(self._folder.parent.name, number, self._side_by_side)
        for name, content in zip(names, encoded.files, strict=True) if encoded else ():
            path = self._folder / name
            try:
                path.write_bytes(content)
            except OSError as error:
                raise cannot_write(path, error) from error

    def complete(
        self,
        fingerprint: str,
        mpp: float,
        limits: Limits,
        metadata: Mapping[str, Any] | None = None,
        *,
        row: str = "",
        verified: bool = True,
    ) -> SlideRecord:
        """Write the record; see `SlideRecord` for its fields."""
        try:
            files = {
                path.name: path.stat().st_size for path in sorted(self.registration.iterdir()) if path.suffix in _NEEDED
            }
        except OSError as error:
            raise cannot_write(self.registration, error) from error
        record = SlideRecord(
            slide=self._folder.parent.name,
            key=self._folder.name,
            fingerprint=fingerprint,
            row=row,
            side_by_side=self._side_by_side,
            limits=dataclasses.asdict(limits),
            verified=verified,
            mpp=mpp,
            files=files,
            metadata=dict(metadata or {}),
            patches=tuple(self._patches),
        )
        head = {one.name: getattr(record, one.name) for one in dataclasses.fields(record) if one.name != "patches"}
        # one line per patch, for readability
        patches = ",\n".join(json.dumps(dataclasses.asdict(patch), allow_nan=False) for patch in record.patches)
        text = json_bytes(head, indent=1).removesuffix(b"\n}\n") + f',\n "patches": [\n{patches}\n]\n}}\n'.encode()
        write_atomically(self._folder / RECORD_NAME, text)
        return record


LARGEST_TRANSFORM_BYTES = 64 << 20
"""Maximum size of the JSON file of a saved transform, which usually has some kB."""

_T = TypeVar("_T")


def fingerprint_of(pair: SlidePair, reading: Mapping[str, str] | None = None) -> str:
    """Return a fingerprint of the inputs of a slide's patches. If it changes, they are extracted again.

    Slides are identified by name, size and modification time, since hashing takes minutes. Patient, level and split are
    not included; they only matter for the index.

    ``reading``: see `PairsOptions.reading`.

    Raises
    ------
    SlideNotFoundError
        If a file of the pair is missing.
    """
    given: object = pair.transform
    if isinstance(pair.transform, Path):
        file = pair.transform / "transform.json" if pair.transform.is_dir() else pair.transform
        content = _accessed(file, lambda path: read_regular(path, LARGEST_TRANSFORM_BYTES))
        given = hashlib.sha256(content).hexdigest()  # the content includes the hash of its arrays
    return _hash_of_row(pair, reading, given, _file_metadata)


def row_hash(pair: SlidePair, reading: Mapping[str, str] | None = None) -> str:
    """Return a hash of the manifest's row, with names of files only; identifies a slide whose files are unavailable."""
    given = pair.transform.name if isinstance(pair.transform, Path) else pair.transform
    return _hash_of_row(pair, reading, given, lambda path: path.name)


def _hash_of_row(
    pair: SlidePair, reading: Mapping[str, str] | None, transform: object, describe: Callable[[Path], object]
) -> str:
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    tissue = describe(pair.tissue) if isinstance(pair.tissue, Path) else pair.tissue
    content = [
        *(file and describe(file) for file in files),
        *(pair.he_mpp, pair.ihc_mpp, transform, str(pair.he_image), str(pair.ihc_image)),
        {**(reading or {}), **({} if tissue is None else {"tissue": tissue})},  # the row takes precedence
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_metadata(path: Path) -> tuple[str, int, int]:
    status = _accessed(path, Path.stat)
    return path.name, status.st_size, status.st_mtime_ns


def _accessed(path: Path, access: Callable[[Path], _T]) -> _T:
    try:
        return access(path)
    except OSError as error:
        raise SlideNotFoundError(f"{path} cannot be read ({error.strerror}); check the path") from error
