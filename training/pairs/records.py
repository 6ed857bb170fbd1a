"""Paths and records of extracted slides, and the tables of the dataset.

``slides/ID/record.json`` lists the patches of a slide, with a fingerprint of its inputs (`fingerprint_of`) that decides
whether they have to be extracted again. ``places.json`` maps patches to their numbered files. `pairs_csv`,
`rejected_csv` and `dataset_metadata` are derived from the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wsi2ihc.errors import OutputExistsError, SlideNotFoundError
from wsi2ihc.files import json_bytes, read_json, read_regular
from wsi2ihc.registration.report import OWN_NAMES
from wsi2ihc.storage import write_atomically
from wsi2ihc.text import csv_table, reason

from ..data.dataset import Role
from .pair_manifest import SlidePair
from .quality import LIMIT_OF, REASONS, Reason

RECORD_NAME = "record.json"


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """One patch, kept or rejected.

    Attributes
    ----------
    x_px, y_px
        Top left corner on the working grid of the H&E slide.
    x_um, y_um
        Top left corner on the slide.
    metrics
        Quality metrics by name; None if not measurable.
    rejected
        Reason of rejection; "" if kept.
    sha256_he, sha256_ihc
        Checksums of the files in hexadecimal; equal for side-by-side images, "" if rejected.
    bytes_he, bytes_ihc
        Sizes of the files; 0 if rejected.
    """

    x_px: int
    y_px: int
    x_um: float
    y_um: float
    metrics: Mapping[str, float | None]
    rejected: str = ""
    sha256_he: str = ""
    sha256_ihc: str = ""
    bytes_he: int = 0
    bytes_ihc: int = 0


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """Record of a completely extracted slide.

    Attributes
    ----------
    slide
        Slide id.
    fingerprint
        Fingerprint of the inputs, see `fingerprint_of`.
    mpp
        µm per px of the patches along x.
    patches
        Patches in raster order.
    metadata
        Further metadata, for JSON.
    row
        Hash of the manifest's row, see `row_hash`.
    files
        Sizes of the registration and transform files beside the record.
    """

    slide: str
    fingerprint: str
    mpp: float
    patches: tuple[PatchRecord, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[PatchRecord, ...]:
        """Kept patches, in order."""
        return tuple(patch for patch in self.patches if not patch.rejected)


def write_record(folder: Path, record: SlideRecord) -> None:
    """Write the record to the slide's folder atomically.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    head = {
        "slide": record.slide,
        "fingerprint": record.fingerprint,
        "mpp": record.mpp,
        "metadata": dict(record.metadata),
        "row": record.row,
        "files": dict(record.files),
    }
    # one line per patch, for readability
    patches = ",\n".join(json.dumps(dataclasses.asdict(patch), allow_nan=False) for patch in record.patches)
    text = json_bytes(head, indent=1).removesuffix(b"\n}\n")
    write_atomically(folder / RECORD_NAME, text + f',\n "patches": [\n{patches}\n]\n}}\n'.encode())


def read_record(folder: Path) -> SlideRecord | None:
    """Read the record in a slide's folder; None if missing or invalid; the slide is then extracted again."""
    try:
        metadata = read_json(folder / RECORD_NAME)
        patches = tuple(PatchRecord(**patch) for patch in metadata.pop("patches"))
        return SlideRecord(**metadata, patches=patches)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


PATHS_NAME = "places.json"

ATTEMPT_NAME = "attempt"

PATCHES_NAME = "patches.png"

KEPT_NAMES = (*OWN_NAMES, PATCHES_NAME)
"""Files in a slide's folder beside its record and patches."""

SPLIT_NAMES: dict[Role, str] = {"train": "train", "validation": "val", "test": "test"}
"""Names of the roles in folder and file names."""


@dataclass(frozen=True, slots=True)
class PatchPath:
    """Path of a kept patch in the dataset.

    Attributes
    ----------
    slide
        Slide id.
    x_px, y_px
        Position of the patch.
    split
        "train", "val" or "test".
    name
        File name without ".png".
    """

    slide: str
    x_px: int
    y_px: int
    split: str
    name: str


def slide_folder(folder: Path, slide: str) -> Path:
    """Return the folder of one slide."""
    return folder / "slides" / slide


def attempt_folder(folder: Path, slide: str) -> Path:
    """Return the folder of a running or failed extraction."""
    return slide_folder(folder, slide) / ATTEMPT_NAME


def staging_folder(folder: Path, slide: str) -> Path:
    """Return the folder of patches that are not numbered yet."""
    return slide_folder(folder, slide) / "patches"


def staged_files(folder: Path, slide: str, patch: PatchRecord | PatchPath, side_by_side: bool) -> tuple[Path, ...]:
    """Return the files of a patch before numbering: H&E and IHC, or one side-by-side image."""
    stem = f"{patch.x_px}_{patch.y_px}"
    names = (f"{stem}.png",) if side_by_side else (f"{stem}_he.png", f"{stem}_ihc.png")
    return tuple(staging_folder(folder, slide) / name for name in names)


def relative_files(place: PatchPath, side_by_side: bool) -> tuple[str, ...]:
    """Return the numbered files of a patch relative to the dataset, in the same order."""
    tail = f"{place.split}/{place.name}.png"
    return (tail,) if side_by_side else (f"HE/{tail}", f"IHC/{tail}")


def moves(folder: Path, places: Iterable[PatchPath], side_by_side: bool) -> dict[Path, Path]:
    """Map all files from their paths before numbering to those in the dataset."""
    return {
        staged: folder / relative
        for place in places
        for staged, relative in zip(
            staged_files(folder, place.slide, place, side_by_side), relative_files(place, side_by_side), strict=True
        )
    }


def paths_json(places: Iterable[PatchPath], side_by_side: bool) -> bytes:
    """Return the content of ``places.json``."""
    rows = ",\n".join(
        json.dumps([place.slide, place.x_px, place.y_px, place.split, place.name], ensure_ascii=False)
        for place in places
    )
    return f'{{"side_by_side": {json.dumps(side_by_side)}, "places": [\n{rows}\n]}}\n'.encode()


def read_paths(folder: Path) -> dict[Path, Path]:
    """Read the moves of ``places.json``; empty if there is no such file.

    Raises
    ------
    OutputExistsError
        If it is damaged, so that files cannot be assigned.
    """
    path = folder / PATHS_NAME
    try:
        metadata = read_json(path)
        return moves(folder, [PatchPath(*row) for row in metadata["places"]], metadata["side_by_side"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputExistsError(f"{path} cannot be read ({reason(error)}); choose another folder") from error


LARGEST_TRANSFORM_BYTES = 64 << 20
"""Maximum size of the JSON file of a saved transform, which usually has some kB."""

_T = TypeVar("_T")


def fingerprint_of(pair: SlidePair, reading: Mapping[str, str] | None = None) -> str:
    """Return a fingerprint of the inputs of a slide's patches. If it changes, they are extracted again.

    Slides are identified by name, size and modification time, since hashing takes minutes. Patient, level and split are
    not included; they only matter for numbering.

    Parameters
    ----------
    pair
        Row of the manifest.
    reading
        See `PairsOptions.reading`.

    Raises
    ------
    SlideNotFoundError
        If a file of the pair is missing.
    """
    transform = pair.transform
    if isinstance(transform, Path):
        file = transform / "transform.json" if transform.is_dir() else transform
        # contains the hash of its arrays
        given: object = hashlib.sha256(
            _accessed(file, lambda path: read_regular(path, LARGEST_TRANSFORM_BYTES))
        ).hexdigest()
    else:
        given = transform
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    tissue = _file_metadata(pair.tissue) if isinstance(pair.tissue, Path) else pair.tissue
    return _hash(
        [
            *(_file_metadata(file) for file in files),
            pair.he_mpp,
            pair.ihc_mpp,
            given,
            *_chosen(tissue, reading),
            *_images(pair),
        ]
    )


def row_hash(pair: SlidePair, reading: Mapping[str, str] | None = None) -> str:
    """Return a hash of the manifest's row, with names of files only; identifies a slide whose files are unavailable."""
    transform = pair.transform.name if isinstance(pair.transform, Path) else pair.transform
    files = (pair.he, pair.ihc, pair.he_landmarks, pair.ihc_landmarks)
    tissue = pair.tissue.name if isinstance(pair.tissue, Path) else pair.tissue
    named = [file and file.name for file in files]
    return _hash([*named, pair.he_mpp, pair.ihc_mpp, transform, *_chosen(tissue, reading), *_images(pair)])


def _images(pair: SlidePair) -> list[str]:
    """Return the selected images of the files; empty by default, so that older fingerprints stay valid."""
    return [f"{side}{image}" for side, image in (("he", pair.he_image), ("ihc", pair.ihc_image)) if image]


def _chosen(tissue: object, reading: Mapping[str, str] | None) -> list[object]:
    """Return the options that are not the default, so that older fingerprints stay valid."""
    chosen = {**(reading or {}), **({"tissue": tissue} if tissue is not None else {})}
    return [dict(sorted(chosen.items()))] if chosen else []


def _hash(metadata: object) -> str:
    return hashlib.sha256(json.dumps(metadata).encode()).hexdigest()


def _file_metadata(path: Path | None) -> tuple[str, int, int] | None:
    if path is None:
        return None
    status = _accessed(path, Path.stat)
    return path.name, status.st_size, status.st_mtime_ns


def _accessed(path: Path, access: Callable[[Path], _T]) -> _T:
    try:
        return access(path)
    except OSError as error:
        raise SlideNotFoundError(f"{path} cannot be read ({error.strerror}); check the path") from error


KEPT = "kept"

UNKNOWN_LEVEL = ""
"""Key of patches of slides without a level."""

LEAST_PATCHES = 20
"""Minimum patches of a level, and of the other levels together, for a comparison."""

CONSPICUOUS_RATIO, CONSPICUOUS_Z = 2.0, 3.0
"""Minimum ratio of rejection rates, and of their difference to its standard error, for a warning. Patches of one slide
are correlated, which increases z: this is a hint, not a test."""


@dataclass(frozen=True, slots=True)
class Rejections:
    """Kept and rejected patches.

    Attributes
    ----------
    counts
        Number of patches for each reason that occurs, and for `KEPT`.
    by_level
        Counts for each HER2 level; "" for slides without a level.
    warnings
        Levels with far more rejections than the others, one sentence each.
    """

    counts: Mapping[str, int]
    by_level: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]

    @property
    def rejection_counts(self) -> dict[str, Any]:
        """Rejected patches by reason, in total and for each level with rejections, for JSON."""
        levels = {level: _without_kept(counts) for level, counts in self.by_level.items()}
        return {
            "reasons": _without_kept(self.counts),
            "her2": {level: counts for level, counts in levels.items() if counts},
        }


def _without_kept(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if reason != KEPT}


def summarize_rejections(outcomes: Iterable[tuple[str | None, str]]) -> Rejections:
    """Count kept and rejected patches.

    Parameters
    ----------
    outcomes
        For each patch the HER2 level of its slide ("0", "1+", …; None if unknown) and the reason of rejection ("" if
        kept).
    """
    levels: dict[str, Counter[str]] = {}
    for level, rejected in outcomes:
        levels.setdefault(level or UNKNOWN_LEVEL, Counter())[rejected or KEPT] += 1
    pooled = sum(levels.values(), Counter())
    known = {level: count for level, count in sorted(levels.items()) if level != UNKNOWN_LEVEL}
    warnings = [
        warning
        for level in known
        for reason in REASONS
        if (warning := _warning(level, reason, known[level], _others(known, level)))
    ]
    by_level = {level: _in_order(levels[level]) for level in sorted(levels)}
    return Rejections(_in_order(pooled), by_level, tuple(warnings))


def _others(levels: Mapping[str, Counter[str]], level: str) -> Counter[str]:
    return sum((counts for other, counts in levels.items() if other != level), Counter())


def _warning(level: str, reason: Reason, own: Counter[str], others: Counter[str]) -> str | None:
    """Return a warning if the level loses conspicuously many patches for this reason."""
    if min(own.total(), others.total()) < LEAST_PATCHES:
        return None
    share, share_others = own[reason] / own.total(), others[reason] / others.total()
    if share <= CONSPICUOUS_RATIO * share_others or _z(own, others, reason) <= CONSPICUOUS_Z:
        return None
    name, how = LIMIT_OF[reason]
    return (
        f"HER2 {level} loses {share:.0%} of its {own.total():,} patches to {reason!r}, the other levels "
        f"{share_others:.1%}; inspect some of them, and {how} --{name.replace('_', '-')} if they are good"
    )


def _z(own: Counter[str], others: Counter[str], reason: str) -> float:
    """Return the difference of two proportions in standard errors of the pooled proportion."""
    n, m = own.total(), others.total()
    pooled = (own[reason] + others[reason]) / (n + m)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return (own[reason] / n - others[reason] / m) / error if error > 0 else 0.0


def _in_order(counts: Counter[str]) -> dict[str, int]:
    """Sort counts: kept, then reasons in order, then others."""
    names = [KEPT, *(reason for reason in REASONS if counts[reason])]
    return {name: counts[name] for name in [*names, *sorted(counts.keys() - set(names))]}


REJECTED_NAME = "rejected.csv"

METRICS = (
    "tissue_he", "tissue_ihc", "valid", "residual_um", "correlation", "sharpness_he", "sharpness_ihc", "folds", "pen",
    "stained",
)  # fmt: skip
"""Quality metrics in the order of the columns."""

_OF_SLIDE = ("patient", "slide", "her2", "mpp", "grid_mpp", "x_um", "y_um")
_COLUMNS = ("number", "split", "he", "ihc", "half", *_OF_SLIDE, *METRICS, "sha256_he", "sha256_ihc")
_REJECTED_COLUMNS = ("reason", *_OF_SLIDE, *METRICS)


@dataclass(frozen=True, slots=True)
class Statement:
    """Content of ``dataset.json`` except counts.

    Attributes
    ----------
    mpp
        Requested µm per px of the patches, which models trained on them get.
    patch_px
        Side of the patches.
    failed
        Failed rows of the manifest: slide id (or line number), and reason.
    extra
        Further content for JSON: manifest, seed, options, versions.
    name
        Name of the dataset.
    """

    mpp: float
    patch_px: int
    stain: str | None = None
    license: str | None = None
    failed: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


def pairs_csv(
    placed: Iterable[tuple[PatchPath, SlidePair, SlideRecord, PatchRecord]], mpp: float, side_by_side: bool
) -> bytes:
    """Return the table of kept patches, which `wsi2ihc.training.data` reads.

    ``mpp`` is the requested resolution. ``grid_mpp`` is the actual one: slides within a few percent of the requested
    resolution are not resampled, as in translation.
    """
    rows = []
    for number, (place, pair, record, patch) in enumerate(placed):
        files = relative_files(place, side_by_side)
        rows.append(
            {
                "number": number,
                "split": place.split,
                "he": files[0],
                "ihc": files[-1],
                "half": "left" if side_by_side else "",
                **_of_slide(pair, record, patch, mpp),
                "sha256_he": patch.sha256_he,
                "sha256_ihc": patch.sha256_ihc,
            }
        )
    return _csv([name for name in _COLUMNS if name != "half" or side_by_side], rows)


def rejected_csv(slides: Iterable[tuple[SlidePair, SlideRecord]], mpp: float) -> bytes:
    """Return the table of rejected patches with reasons."""
    rows = [
        {"reason": patch.rejected, **_of_slide(pair, record, patch, mpp)}
        for pair, record in slides
        for patch in record.patches
        if patch.rejected
    ]
    return _csv(_REJECTED_COLUMNS, rows)


def _of_slide(pair: SlidePair, record: SlideRecord, patch: PatchRecord, mpp: float) -> dict[str, object]:
    return {
        "patient": pair.patient,
        "slide": pair.slide,
        "her2": pair.her2 or "",
        "mpp": f"{mpp:.6g}",
        "grid_mpp": f"{record.mpp:.6g}",
        "x_um": f"{patch.x_um:.3f}",
        "y_um": f"{patch.y_um:.3f}",
        **{name: _text(patch.metrics.get(name)) for name in METRICS},
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    return csv_table([columns, *([row.get(name, "") for name in columns] for row in rows)], "\n").encode()


def dataset_metadata(
    slides: Sequence[tuple[SlidePair, SlideRecord]], splits: Mapping[str, str], statement: Statement
) -> dict[str, Any]:
    """Return the content of ``dataset.json``. ``splits`` maps slides to splits."""
    return {
        "mpp": statement.mpp,
        "stain": statement.stain,
        "license": statement.license,
        "name": statement.name,
        "patch_px": statement.patch_px,
        "counts": _counts(slides, splits),
        "rejected": rejections(slides).rejection_counts,
        "without_residual": sum(
            patch.metrics.get("residual_um") is None for _, record in slides for patch in record.kept
        ),
        "failed": [{"slide": slide, "reason": reason} for slide, reason in statement.failed],
        **statement.extra,
    }


def rejections(slides: Iterable[tuple[SlidePair, SlideRecord]]) -> Rejections:
    """Count kept and rejected patches of all slides."""
    return summarize_rejections((pair.her2, patch.rejected) for pair, record in slides for patch in record.patches)


def _counts(slides: Iterable[tuple[SlidePair, SlideRecord]], splits: Mapping[str, str]) -> dict[str, Any]:
    """Return pairs, slides, patients and pairs per known HER2 level of every split with pairs."""
    members: dict[str, list[tuple[SlidePair, int]]] = defaultdict(list)
    for pair, record in slides:
        if record.kept:
            members[splits[pair.slide]].append((pair, len(record.kept)))
    counts: dict[str, Any] = {}
    for split in SPLIT_NAMES.values():
        if not (own := members.get(split)):
            continue
        counts[split] = {
            "pairs": sum(count for _, count in own),
            "slides": len(own),
            "patients": len({pair.patient for pair, _ in own}),
        }
        levels: Counter[str] = Counter()
        for pair, count in own:
            if pair.her2 is not None:
                levels[pair.her2] += count
        if levels:
            counts[split]["her2"] = dict(sorted(levels.items()))
    return counts
