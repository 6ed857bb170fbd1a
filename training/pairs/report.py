"""Summary and warnings of a pair dataset."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from wsi2ihc.system import versions
from wsi2ihc.text import listed, pairs_of_slides, patches, pluralize

from ..data.dataset import Role
from .dataset_writer import PairsStore
from .options import PairsOptions
from .pair_manifest import Manifest, SlidePair
from .patient_split import Splits, split_warnings
from .records import SlideRecord, rejections
from .verify_dataset import unlisted_files


@dataclass(frozen=True, slots=True)
class FailedPair:
    """Failed row of the manifest: line number, slide id ("" if missing) and a one-line message."""

    row: int
    slide: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row}{f' ({self.slide})' if self.slide else ''}: {self.message}"


@dataclass(frozen=True, slots=True)
class SlideTally:
    """Numbers of patches of one slide pair.

    Attributes
    ----------
    slide, patient
        Ids.
    role
        Role of the slide.
    her2
        HER2 level; None if unknown.
    kept, rejected
        Numbers of patches.
    is_new
        Whether the patches were extracted in this run.
    """

    slide: str
    patient: str
    role: Role
    her2: str | None
    kept: int
    rejected: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Result of `build_pairs`.

    Attributes
    ----------
    dataset, manifest
        Base names.
    slides
        Slide pairs of the dataset, in the order of the manifest.
    failed
        Failed rows.
    counts
        Pairs, slides, patients and pairs per HER2 level by split, as in ``dataset.json``.
    rejected
        Rejected patches by reason, in total and per level, as in ``dataset.json``.
    warnings
        Warnings, one sentence each.
    unchanged
        Whether the dataset was already complete.
    seconds
        Duration.
    """

    dataset: str
    manifest: str
    slides: tuple[SlideTally, ...]
    failed: tuple[FailedPair, ...]
    counts: Mapping[str, Any] = field(default_factory=dict)
    rejected: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unchanged: bool = False
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        """Number of patches in the dataset."""
        return sum(slide.kept for slide in self.slides)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return dataclasses.asdict(self) | {"kept": self.kept}


@dataclass(frozen=True, slots=True)
class Preview:
    """Result of `preview_pairs`: usable slide pairs (with the patches of completed ones), and failed rows."""

    slides: tuple[SlideTally, ...]
    failed: tuple[FailedPair, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the preview as JSON values."""
        return dataclasses.asdict(self)


Slides: TypeAlias = Sequence[tuple[SlidePair, SlideRecord]]
"""Slide pairs of a dataset, with their records."""


def manifest_warnings(table: Manifest) -> Iterator[str]:
    """Yield warnings about a valid manifest."""
    if table.ignored:
        yield f"unknown columns of the manifest, ignored: {', '.join(table.ignored)}"
    spellings: dict[str, set[str]] = defaultdict(set)
    levels: dict[str, set[str]] = defaultdict(set)
    for member in table.members:
        spellings[member.patient.casefold()].add(member.patient)
        levels[member.patient] |= {member.her2} - {None} if member.her2 else set()
    for names in spellings.values():
        if len(names) > 1:
            yield (
                f"{' and '.join(map(repr, sorted(names)))} count as different patients, although they differ only in "
                "case; if they are the same patient, use one spelling"
            )
    for patient, found in levels.items():
        if len(found) > 1:
            several = " and ".join(sorted(found))
            yield f"the patient {patient!r:.60} has slides of different HER2 levels: {several}"


def dataset_warnings(store: PairsStore, splits: Splits, slides: Slides, options: PairsOptions) -> Iterator[str]:
    """Yield warnings about the slides of a dataset and about unlisted files."""
    yield from split_warnings(splits, [pair for pair, record in slides if record.kept], options.shares)
    for pair, record in slides:
        yield from (f"{pair.slide}: {note}" for note in record.metadata.get("notes", ()))
        if not record.kept:
            reasons = rejection_counts([record])
            yield f"{pair.slide}: no patch was kept ({reasons}); see slides/{pair.slide}/patches.png"
    yield from rejections(slides).warnings
    yield from _unmeasured(slides, options)
    yield from _other_versions(slides)
    own = frozenset(store.placed.values())
    if found := [path.as_posix() for path in unlisted_files(store.folder, own)]:
        yield (
            f"{pluralize(len(found), 'image')} in the folders of the dataset not listed in pairs.csv "
            f"({listed(found)}): kept, but not used for training; move files that do not belong to the dataset"
        )


def rejection_counts(records: Iterable[SlideRecord]) -> str:
    """Return the numbers of rejected patches by reason, for display."""
    counts = Counter(patch.rejected for record in records for patch in record.patches if patch.rejected)
    named = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
    return f"rejected: {named}" if named else "no position with tissue"


def removed_slides(was: Mapping[str, int], now: Collection[str], failed: Collection[str]) -> Iterator[str]:
    """Yield warnings about slides that were removed from a dataset.

    Parameters
    ----------
    was
        Patches of each slide before.
    now
        Slides of the dataset.
    failed
        Slides of failed rows.
    """
    removed = {slide: count for slide, count in was.items() if slide not in now}
    for slides, why in (
        ([slide for slide in removed if slide not in failed], "not listed in the manifest"),
        ([slide for slide in removed if slide in failed], "with failed rows"),
    ):
        if slides:
            yield (
                f"{pairs_of_slides(len(slides))} {why} ({listed(slides)}) removed from the dataset "
                f"({patches(sum(removed[slide] for slide in slides))} kept in slides/, restored when the rows return)"
            )


def unavailable(slides: Sequence[str]) -> Iterator[str]:
    """Yield a warning about completed slides whose files are unavailable."""
    if slides:
        yield (
            f"the files of {pairs_of_slides(len(slides))} are unavailable ({listed(slides)}): their patches are kept, "
            "since they were extracted from equal rows"
        )


def _unmeasured(slides: Slides, options: PairsOptions) -> Iterator[str]:
    if not options.limits.max_residual_um:
        return
    kept = [patch for _, record in slides for patch in record.kept]
    unknown = sum(patch.metrics.get("residual_um") is None for patch in kept)
    if unknown:
        yield (
            f"the residual of {unknown:,} of the {patches(len(kept))} kept could not be measured for lack of "
            "structure; only their correlation is known (column residual_um is empty)"
        )


def _other_versions(slides: Slides) -> Iterator[str]:
    now = versions()
    if others := {pair.slide: was for pair, record in slides if (was := record.metadata.get("versions", now)) != now}:
        slide, was = next(iter(others.items()))
        changed = ", ".join(f"{name} {was.get(name)}" for name in now if was.get(name) != now[name])
        yield (
            f"{len(others)} of {pairs_of_slides(len(slides))} were extracted by other versions ({slide}: {changed}); "
            "for equal versions, rebuild the dataset in another folder"
        )
