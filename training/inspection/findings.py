"""Findings of an inspection and the warnings derived from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ..data import ROLES, PairedData, PatchSizes
from .alignment import ASSUMED_MPP, MIN_MEDIAN, AlignmentFindings
from .duplicates import Duplicate, count_by_split
from .image_stats import Description, empty_levels, slide_of


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """All findings about a dataset."""

    data: PairedData  # pairs of the dataset; ``mpp`` includes the option (None if unknown)
    sizes: PatchSizes
    descriptions: tuple[Description, ...]  # image statistics by split and level
    duplicates: tuple[Duplicate, ...]  # duplicate tissue
    alignment: AlignmentFindings
    are_squares: bool = False  # whether all images are read as side-by-side pairs although they are nearly square

    def name(self, number: int) -> str:
        """Return the path of a pair relative to the dataset."""
        path, folder = self.data.pairs[number].he, self.data.folder
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name

    def residual(self, residual_um: float | None) -> float | None:
        """Convert a residual to `unit`: px if the resolution was assumed."""
        if residual_um is None or self.data.mpp is not None:
            return residual_um
        return residual_um / ASSUMED_MPP

    @property
    def unit(self) -> str:
        """Unit of residuals."""
        return "px" if self.data.mpp is None else "µm"

    @property
    def is_split(self) -> bool:
        """Whether the dataset has several splits."""
        return len({pair.role or "train" for pair in self.data.pairs}) > 1


def warnings_of(inspection: Inspection) -> tuple[str, ...]:
    """Return one line for each problem of the dataset, with a remedy."""
    return (
        *_split_across(inspection.data),
        *_contradicting(inspection.data),
        *_leaking(inspection),
        *_repeated(inspection),
        *_misaligned(inspection),
        *empty_levels(inspection.descriptions),
    )


def _split_across(data: PairedData) -> Iterator[str]:
    """Report patients, slides and groups that are in several splits according to their names."""
    reported: list[list[str]] = []
    for field in ("patient", "slide", "group"):
        roles: dict[tuple[str, str], set[str]] = defaultdict(set)
        for pair in data.pairs:
            if (name := getattr(pair, field)) is not None:
                patient = (pair.patient or "") if field == "slide" else ""
                roles[patient, name].add(pair.role or "train")
        affected_keys = sorted(key for key, found in roles.items() if len(found) > 1)
        names = [name for _, name in affected_keys]
        if names and names not in reported:  # groups are often patients
            reported.append(names)
            where = " and ".join(role for role in ROLES if role in roles[affected_keys[0]])
            more = f" (and {len(names) - 1} more in several splits)" if len(names) > 1 else ""
            yield f"the {field} {names[0]!r} is in {where}{more}: keep each in one split"


def _contradicting(data: PairedData) -> Iterator[str]:
    """Report slides with several HER2 levels; different slides of a patient may have different levels."""
    levels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pair in data.pairs:
        if (slide := slide_of(pair)) is not None and pair.her2 is not None:
            levels[slide].add(pair.her2)
    contradicting = sorted(slide for slide, found in levels.items() if len(found) > 1)
    if contradicting:
        _, name = contradicting[0]
        named = " and ".join(sorted(levels[contradicting[0]]))
        more = f" (and {len(contradicting) - 1} more have several levels)" if len(contradicting) > 1 else ""
        yield f"the slide {name!r} is labeled HER2 {named}{more}: a slide has one level; fix the labels"


def _leaking(inspection: Inspection) -> Iterator[str]:
    for between, advice in (
        ("splits", "metrics will be too optimistic; keep pairs with common tissue in one split (--group-by)"),
        ("groups", "merge these groups, so that they stay in one split"),
    ):
        found = [one for one in inspection.duplicates if one.between == between]
        if found:
            counts = count_by_split(inspection.data.pairs, found)
            patches = ", ".join(f"{count:,} of {split}" if split else f"{count:,}" for split, count in counts.items())
            yield f"{_shared(inspection, found, f' of different {between}')}; affected patches: {patches}; {advice}"


def _repeated(inspection: Inspection) -> Iterator[str]:
    """Report overlaps if there are neither groups nor splits, and copies; overlaps within a group are expected."""
    found = [one for one in inspection.duplicates if not one.between]
    if found and not inspection.is_split and not inspection.data.grouped_by:
        yield f"{_shared(inspection, found, '')}; split this dataset by groups (--group-by), not by patches"
    elif copies := {one.second for one in found if one.kind == "same pixels"}:
        yield f"copies of patches of the same split: {len(copies):,}; remove them"


def _shared(inspection: Inspection, found: list[Duplicate], where: str) -> str:
    kinds = [f"{kind}: {count:,}" for kind in ("same pixels", "same field", "overlap")
             if (count := sum(one.kind == kind for one in found))]  # fmt: skip
    first = found[0]
    return (
        f"pairs of patches{where} that show the same tissue: {len(found):,} ({', '.join(kinds)}), such as "
        f"{inspection.name(first.first)} and {inspection.name(first.second)} ({first.overlap:.0%} of a patch)"
    )


def _misaligned(inspection: Inspection) -> Iterator[str]:
    alignment, pairs = inspection.alignment, len(inspection.data.pairs)
    median = alignment.median_correlation
    is_unrelated = median is not None and median < MIN_MEDIAN
    if is_unrelated and inspection.are_squares:
        yield (
            f"all images are nearly square, and their halves do not correlate (median {median:.2f}): these seem to be "
            "single images, not H&E and IHC side by side; put the images of each stain into HE/ and IHC/"
        )
        return
    if is_unrelated:
        yield (
            f"the hematoxylin of H&E and IHC hardly correlates (median {median:.2f}): check that they show the same "
            "tissue and are in the right order (--order)"
        )
    if found := alignment.misaligned:
        worst = found[0]
        correlation = "" if worst.correlation is None else f" (correlation {worst.correlation:.2f})"
        chance = f"; {alignment.no_better:,} correlate no better than by chance" if alignment.no_better else ""
        yield (
            f"misaligned or mismatched pairs: {len(found):,} of {pairs:,}, the worst "
            f"{inspection.name(worst.number)}{correlation}{chance}; fix or remove them"
        )
