"""What an inspection has found, before it is put into words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ..data import ROLES, PairedData, PatchSizes
from .describing import Description, empty_levels, slide_of
from .leaks import Leak, affected
from .misalignment import ASSUMED_MPP, LEAST_MEDIAN, Alignment


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """All findings about a data set.

    data:          its pairs; ``mpp`` as it was used (None: not known)
    sizes:         of the patches
    descriptions:  per split and level
    leaks:         tissue that is there more than once
    alignment:     of H&E and IHC
    are_squares:   whether all images are taken for two side by side, and are square or so as they are
    """

    data: PairedData
    sizes: PatchSizes
    descriptions: tuple[Description, ...]
    leaks: tuple[Leak, ...]
    alignment: Alignment
    are_squares: bool = False

    def name(self, number: int) -> str:
        """A pair's file within the data set, which tells it from all others."""
        path, folder = self.data.pairs[number].he, self.data.folder
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name

    def residual(self, residual_um: float | None) -> float | None:
        """In `unit`: what was measured under an assumed resolution is told in px."""
        if residual_um is None or self.data.mpp is not None:
            return residual_um
        return residual_um / ASSUMED_MPP

    @property
    def unit(self) -> str:
        """Of residuals."""
        return "px" if self.data.mpp is None else "µm"

    @property
    def is_split(self) -> bool:
        """Whether the data have several splits."""
        return len({pair.role or "train" for pair in self.data.pairs}) > 1


def warnings_of(inspection: Inspection) -> tuple[str, ...]:
    """What is wrong with the data set, a line each, with what to do about it."""
    return (
        *_parted(inspection.data),
        *_contradicting(inspection.data),
        *_leaking(inspection),
        *_repeated(inspection),
        *_misaligned(inspection),
        *empty_levels(inspection.descriptions),
    )


def _parted(data: PairedData) -> Iterator[str]:
    """Groups, slides and patients in several splits, by what the data say themselves."""
    told: list[list[str]] = []
    for field in ("patient", "slide", "group"):
        roles: dict[tuple[str, str], set[str]] = defaultdict(set)
        for pair in data.pairs:
            if (name := getattr(pair, field)) is not None:
                patient = (pair.patient or "") if field == "slide" else ""
                roles[patient, name].add(pair.role or "train")
        parted = sorted(key for key, found in roles.items() if len(found) > 1)
        names = [name for _, name in parted]
        if names and names not in told:  # groups are often patients
            told.append(names)
            where = " and ".join(role for role in ROLES if role in roles[parted[0]])
            more = f" (and {len(names) - 1} more are parted)" if len(names) > 1 else ""
            yield f"the {field} {names[0]!r} is in {where}{more}: keep each in one split"


def _contradicting(data: PairedData) -> Iterator[str]:
    """Slides with several levels; a patient may have them, on several slides."""
    levels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pair in data.pairs:
        if (slide := slide_of(pair)) is not None and pair.her2 is not None:
            levels[slide].add(pair.her2)
    doubtful = sorted(slide for slide, found in levels.items() if len(found) > 1)
    if doubtful:
        _, name = doubtful[0]
        named = " and ".join(sorted(levels[doubtful[0]]))
        more = f" (and {len(doubtful) - 1} more have several levels)" if len(doubtful) > 1 else ""
        yield f"the slide {name!r} is labelled HER2 {named}{more}: a level is that of a whole slide, so mend the labels"


def _leaking(inspection: Inspection) -> Iterator[str]:
    for between, advice in (
        ("splits", "that flatters every figure, so keep what shares tissue in one split (--group-by)"),
        ("groups", "put them into one group, or they may be parted"),
    ):
        leaks = [one for one in inspection.leaks if one.between == between]
        if leaks:
            counts = affected(inspection.data.pairs, leaks)
            patches = ", ".join(f"{count:,} of {split}" if split else f"{count:,}" for split, count in counts.items())
            yield f"{_shared(inspection, leaks, f' of different {between}')}; patches concerned: {patches}; {advice}"


def _repeated(inspection: Inspection) -> Iterator[str]:
    """Within a group, overlaps are to be expected; without groups and splits, nothing yet keeps them together."""
    leaks = [one for one in inspection.leaks if not one.between]
    if leaks and not inspection.is_split and not inspection.data.grouped_by:
        yield f"{_shared(inspection, leaks, '')}; split this data set by groups (--group-by), not by patches"
    elif copies := {one.second for one in leaks if one.kind == "same pixels"}:
        yield f"patches that are a copy of another one of the same split: {len(copies):,}; remove them"


def _shared(inspection: Inspection, leaks: list[Leak], where: str) -> str:
    kinds = [f"{kind}: {count:,}" for kind in ("same pixels", "same field", "overlap")
             if (count := sum(one.kind == kind for one in leaks))]  # fmt: skip
    first = leaks[0]
    return (
        f"pairs of patches{where} that show the same tissue: {len(leaks):,} ({', '.join(kinds)}), such as "
        f"{inspection.name(first.first)} and {inspection.name(first.second)} ({first.share:.0%} of a patch)"
    )


def _misaligned(inspection: Inspection) -> Iterator[str]:
    alignment, pairs = inspection.alignment, len(inspection.data.pairs)
    median = alignment.median_correlation
    is_unrelated = median is not None and median < LEAST_MEDIAN
    if is_unrelated and inspection.are_squares:
        yield (
            f"all images are square or so, and their halves have nothing in common (median correlation {median:.2f}): "
            "these seem to be single images, and not H&E and IHC side by side; put those of either stain into HE/ and "
            "IHC/"
        )
        return
    if is_unrelated:
        yield (
            f"the haematoxylin of H&E and IHC hardly correlates (median {median:.2f}): are they of the same tissue, "
            "and the right way round (--order)?"
        )
    if found := alignment.misaligned:
        worst = found[0]
        correlation = "" if worst.correlation is None else f" (correlation {worst.correlation:.2f})"
        chance = f"; {alignment.no_better:,} agree no better than by chance" if alignment.no_better else ""
        yield (
            f"pairs that are misaligned or do not belong together: {len(found):,} of {pairs:,}, the worst "
            f"{inspection.name(worst.number)}{correlation}{chance}; mend or remove them"
        )
