"""What people should know of a data set beside its counts: one sentence each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from wsi2ihc.notation import listed
from wsi2ihc.runtime import versions
from wsi2ihc.text import pluralize

from .manifest import Manifest, SlidePair
from .options import PairsOptions
from .records import SlideRecord
from .splitting import Splits, split_warnings
from .store import PairsStore
from .strays import strays
from .table import rejections
from .words import pairs_of_slides, patches

Slides: TypeAlias = Sequence[tuple[SlidePair, SlideRecord]]
"""Pairs that are in a data set, with their records."""


def manifest_doubts(table: Manifest) -> Iterator[str]:
    """What is odd about a manifest that can be used all the same."""
    if table.ignored:
        yield f"columns of the manifest that mean nothing here: {', '.join(table.ignored)}"
    spellings: dict[str, set[str]] = defaultdict(set)
    levels: dict[str, set[str]] = defaultdict(set)
    for member in table.members:
        spellings[member.patient.casefold()].add(member.patient)
        levels[member.patient] |= {member.her2} - {None} if member.her2 else set()
    for names in spellings.values():
        if len(names) > 1:
            yield (
                f"{' and '.join(map(repr, sorted(names)))} are taken for different patients, though they differ by "
                "upper and lower case alone; if they are one, spell them alike"
            )
    for patient, found in levels.items():
        if len(found) > 1:
            several = " and ".join(sorted(found))
            yield f"the patient {patient!r:.60} has slides of the HER2 levels {several}; a level belongs to a slide"


def dataset_doubts(store: PairsStore, splits: Splits, slides: Slides, options: PairsOptions) -> Iterator[str]:
    """What the slides that are in a data set leave to be desired, and what else lies there."""
    yield from split_warnings(splits, [pair for pair, record in slides if record.kept], options.shares)
    for pair, record in slides:
        yield from (f"{pair.slide}: {note}" for note in record.facts.get("notes", ()))
        if not record.kept:
            reasons = left_out([record])
            yield f"{pair.slide}: no patch was kept ({reasons}); see slides/{pair.slide}/patches.png"
    yield from rejections(slides).warnings
    yield from _unmeasured(slides, options)
    yield from _other_versions(slides)
    own = frozenset(store.placed.values())
    if found := [path.as_posix() for path in strays(store.folder, own)]:
        yield (
            f"{pluralize(len(found), 'image')} in the folders of the data set that pairs.csv does not name "
            f"({listed(found)}): left alone, and not read by training; move away what does not belong there"
        )


def left_out(records: Iterable[SlideRecord]) -> str:
    """How many patches were left out for what, in words."""
    counts = Counter(patch.rejected for record in records for patch in record.patches if patch.rejected)
    named = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
    return f"left out: {named}" if named else "there was no place with tissue"


def gone(was: Mapping[str, int], now: Collection[str], failed: Collection[str]) -> Iterator[str]:
    """Which slides have gone out of a data set, with how many patches, and where they are.

    Parameters
    ----------
    was
        Patches of each slide that was in it.
    now
        Slides that are in it.
    failed
        Those whose rows failed.
    """
    out = {slide: count for slide, count in was.items() if slide not in now}
    for slides, why in (
        ([slide for slide in out if slide not in failed], "which the manifest does not name"),
        ([slide for slide in out if slide in failed], "whose rows failed"),
    ):
        if slides:
            yield (
                f"{pairs_of_slides(len(slides))}, {why} ({listed(slides)}), went out of the data set with "
                f"{patches(sum(out[slide] for slide in slides))}: these wait in slides/, and come back with their rows"
            )


def unreached(slides: Sequence[str]) -> Iterator[str]:
    """Slides whose files are not there now, and that were cut before."""
    if slides:
        yield (
            f"the files of {pairs_of_slides(len(slides))} are not there now ({listed(slides)}): their patches stay, "
            "since they were cut from rows that said the same"
        )


def _unmeasured(slides: Slides, options: PairsOptions) -> Iterator[str]:
    if not options.limits.max_residual_um:
        return
    kept = [patch for _, record in slides for patch in record.kept]
    unknown = sum(patch.figures.get("residual_um") is None for patch in kept)
    if unknown:
        yield (
            f"of {unknown:,} of the {patches(len(kept))} that are kept the residual could not be measured, for want of "
            "structure; nothing is known of how well they lie but their correlation (column residual_um is empty)"
        )


def _other_versions(slides: Slides) -> Iterator[str]:
    now = versions()
    if others := {pair.slide: was for pair, record in slides if (was := record.facts.get("versions", now)) != now}:
        slide, was = next(iter(others.items()))
        changed = ", ".join(f"{name} {was.get(name)}" for name in now if was.get(name) != now[name])
        yield (
            f"{len(others)} of {pairs_of_slides(len(slides))} were cut by other versions ({slide}: {changed}); "
            "to have all alike, make the data set anew in another folder"
        )
