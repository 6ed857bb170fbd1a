"""Summary of a pair dataset: results of a build, counts of kept and rejected patches, and warnings."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from wsi2ihc.system import versions
from wsi2ihc.text import listed, pairs_of_slides, patches, pluralize

from ..data.dataset import Role
from .options import PairsOptions
from .pair_manifest import Manifest, SlidePair
from .patient_split import Splits, split_warnings
from .quality import LIMIT_OF, REASONS, Reason
from .slide_record import OVERVIEW_NAME, REGISTRATION_NAME, SPLIT_NAMES, SlideRecord, unlisted_files


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
    """Numbers of patches of one slide pair; ``is_new``: whether they were extracted in this run."""

    slide: str
    patient: str
    role: Role
    her2: str | None
    kept: int
    rejected: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Result of `build_pairs`."""

    # base names
    dataset: str
    manifest: str
    slides: tuple[SlideTally, ...]  # slide pairs of the dataset, in the order of the manifest
    failed: tuple[FailedPair, ...]
    # as in ``dataset.json``
    counts: Mapping[str, Any] = field(default_factory=dict)
    rejected: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # warnings, one sentence each
    unchanged: bool = False  # whether the dataset was already complete
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


def dataset_warnings(folder: Path, splits: Splits, slides: Slides, options: PairsOptions) -> Iterator[str]:
    """Yield warnings about the slides of a dataset and about unlisted files."""
    yield from split_warnings(splits, [pair for pair, record in slides if record.kept], options.shares)
    for pair, record in slides:
        yield from (f"{pair.slide}: {note}" for note in record.metadata.get("notes", ()))
        if not record.kept:
            overview = (record.folder / REGISTRATION_NAME / OVERVIEW_NAME).as_posix()
            yield f"{pair.slide}: no patch was kept ({rejection_counts([record])}); see {overview}"
    yield from rejections(slides).warnings
    yield from _unmeasured(slides, options)
    yield from _other_versions(slides)
    own = (folder / path for _, record in slides for path in record.file_sizes())
    if found := [path.as_posix() for path in unlisted_files(folder, own)]:
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
    """Yield warnings about slides that were removed from a dataset; ``was`` has their numbers of patches."""
    removed = {slide: count for slide, count in was.items() if slide not in now}
    for slides, why in (
        ([slide for slide in removed if slide not in failed], "not listed in the manifest"),
        ([slide for slide in removed if slide in failed], "with failed rows"),
    ):
        if slides:
            yield (
                f"{pairs_of_slides(len(slides))} {why} ({listed(slides)}) removed from the dataset "
                f"({patches(sum(removed[slide] for slide in slides))} kept in patches/, restored when the rows return)"
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
    """Kept and rejected patches."""

    counts: Mapping[str, int]  # number of patches for each reason that occurs, and for `KEPT`
    by_level: Mapping[str, Mapping[str, int]]  # counts for each HER2 level, or `UNKNOWN_LEVEL`
    warnings: tuple[str, ...]  # levels with far more rejections than the others, one sentence each

    @property
    def rejection_counts(self) -> dict[str, Any]:
        """Rejected patches by reason, in total and for each level with rejections, for JSON."""
        levels = {level: _without_kept(counts) for level, counts in self.by_level.items()}
        return {
            "reasons": _without_kept(self.counts),
            "her2": {level: counts for level, counts in levels.items() if counts},
        }


def rejections(slides: Slides) -> Rejections:
    """Count kept and rejected patches of all slides."""
    return summarize_rejections((pair.her2, patch.rejected) for pair, record in slides for patch in record.patches)


def summarize_rejections(outcomes: Iterable[tuple[str | None, str]]) -> Rejections:
    """Count patches by the HER2 level of their slide (None if unknown) and reason of rejection ("" if kept)."""
    levels: dict[str, Counter[str]] = {}
    for level, rejected in outcomes:
        levels.setdefault(level or UNKNOWN_LEVEL, Counter())[rejected or KEPT] += 1
    pooled = sum(levels.values(), Counter())
    known = {level: count for level, count in sorted(levels.items()) if level != UNKNOWN_LEVEL}
    warnings = [
        warning
        for level, own in known.items()
        for reason in REASONS
        if (warning := _rejection_warning(level, reason, own, sum(known.values(), Counter()) - own))
    ]
    by_level = {level: _in_order(levels[level]) for level in sorted(levels)}
    return Rejections(_in_order(pooled), by_level, tuple(warnings))


def _rejection_warning(level: str, reason: Reason, own: Counter[str], others: Counter[str]) -> str | None:
    """Return a warning if the level loses conspicuously many patches for this reason."""
    n, m = own.total(), others.total()
    if min(n, m) < LEAST_PATCHES:
        return None
    share, share_others = own[reason] / n, others[reason] / m
    pooled = (own[reason] + others[reason]) / (n + m)
    standard_error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    if share <= CONSPICUOUS_RATIO * share_others or share - share_others <= CONSPICUOUS_Z * standard_error:
        return None
    name, how = LIMIT_OF[reason]
    return (
        f"HER2 {level} loses {share:.0%} of its {n:,} patches to {reason!r}, the other levels "
        f"{share_others:.1%}; inspect some of them, and {how} --{name.replace('_', '-')} if they are good"
    )


def _without_kept(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if reason != KEPT}


def _in_order(counts: Counter[str]) -> dict[str, int]:
    """Sort counts: kept, then reasons in order, then others."""
    names = [KEPT, *(reason for reason in REASONS if counts[reason])]
    return {name: counts[name] for name in [*names, *sorted(counts.keys() - set(names))]}


def patch_counts(slides: Slides, splits: Mapping[str, str]) -> dict[str, Any]:
    """Return pairs, slides, patients and pairs per known HER2 level of every split with pairs."""
    counts: dict[str, Any] = {}
    for split in SPLIT_NAMES.values():
        own = [(pair, len(record.kept)) for pair, record in slides if record.kept and splits[pair.slide] == split]
        if not own:
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
